"""lm-evaluation-harness on the built-in model, steered: local tasks, and how lm-eval finds the model."""

from __future__ import annotations

import json
import math
import runpy
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval.tasks", exc_type=ImportError)  # it wants newer libraries than our oldest

import lm_eval
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

from dsas_core import Concept, DSASError, llm
from dsas_core.learning.prompts.prompt_file import load_prompts
from dsas_core.llm.builtin.corpus import fact_questions
from dsas_core.llm.evaluation import lm_eval_harness
from dsas_core.llm.evaluation.lm_eval_harness import SteeredLM
from dsas_core.llm.model.load import BUILTIN
from dsas_core.probes import LatchProbe
from dsas_diffusion import cli
from tests.fixtures.language_models import concept_for

CHOICES = """
task: facts
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}, cache_dir: CACHE}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list: [{metric: acc}]
metadata: {version: 1}
"""
ANSWERS = """
task: answers
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}, cache_dir: CACHE}
output_type: generate_until
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{choices[label]}}"
generation_kwargs: {until: ["</s>"], max_gen_toks: 12}
metric_list: [{metric: exact_match}]
metadata: {version: 1}
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two tasks on eight facts: answers to choose from, and answers to write."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {"question": q.text, "choices": [q.wrong, q.right] if i % 2 else [q.right, q.wrong], "label": i % 2}
        for i, q in enumerate(fact_questions()[::300][:8])
    ]
    (folder / "facts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, text in {"facts": CHOICES, "answers": ANSWERS}.items():
        text = text.replace("FILE", str(folder / "facts.jsonl")).replace("CACHE", str(folder / "cache"))
        (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def concept() -> Concept:
    model, _ = llm.load("builtin:chat", device="cpu")
    return replace(concept_for(model), unit=20.0)


@pytest.fixture(scope="module")
def folder(concept: Concept, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return concept.save_pretrained(tmp_path_factory.mktemp("concepts") / "random")


def evaluate_task(tasks: Path, task: str, model: str, arguments: str, **settings: Any) -> list[Any]:
    """What the model answers to each question: log-likelihoods of the choices, or texts."""
    name = "builtin:chat" if model == "dsas" else BUILTIN["builtin:chat"]
    result: Any = lm_eval.simple_evaluate(
        model=model,
        model_args=f"pretrained={name},dtype=float32,{arguments}".strip(","),
        tasks=[task],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        device="cpu",
        apply_chat_template=True,
        bootstrap_iters=0,
        batch_size=4,
        **settings,
    )
    assert result["results"][task]["alias"] == task
    samples = sorted(result["samples"][task], key=lambda sample: sample["doc_id"])
    return [sample["resps"] for sample in samples]


@pytest.fixture(scope="module")
def base(tasks: Path) -> dict[str, list[Any]]:
    """Of lm-eval's own model."""
    return {task: evaluate_task(tasks, task, "hf", "") for task in ("facts", "answers")}


@pytest.mark.parametrize("task", ["facts", "answers"])
@pytest.mark.parametrize(
    ("settings", "same"), [("strength=0", True), ("gate=off", True), ("strength=1", False), ("gate=on", False)]
)
def test_what_changes_a_task(
    tasks: Path, folder: Path, base: dict[str, list[Any]], task: str, settings: str, same: bool
) -> None:
    assert (evaluate_task(tasks, task, "dsas", f"concept={folder},{settings}") == base[task]) is same


def test_choices_score_as_the_steered_model_does(tasks: Path, folder: Path, concept: Concept) -> None:
    scored = evaluate_task(tasks, "facts", "dsas", f"concept={folder}")
    model, tokenizer = llm.load("builtin:chat", device="cpu")
    first = json.loads((tasks / "facts.jsonl").read_text().splitlines()[0])
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": first["question"]}], tokenize=False, add_generation_prompt=True
    )
    with llm.steer(model, {concept: 1.0}), torch.no_grad():
        for choice, (result,) in zip(first["choices"], scored[0], strict=True):
            given = len(tokenizer(chat, add_special_tokens=False).input_ids)
            ids = torch.tensor([tokenizer(chat + choice, add_special_tokens=False).input_ids])
            answers = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[given - 1 :]
            assert float(result[0]) == pytest.approx(float(answers.sum()), abs=1e-3)


def test_several_concepts(tasks: Path, folder: Path, concept: Concept, base: dict[str, list[Any]]) -> None:
    other = replace(concept, name="other").save_pretrained(folder.parent / "other", overwrite=True)
    both = f"concept={folder}+{other}"
    undone = evaluate_task(tasks, "answers", "dsas", f"{both},strength=0+0")
    assert undone == base["answers"]
    assert evaluate_task(tasks, "answers", "dsas", f"{both},strength=1+0") != base["answers"]
    lm = SteeredLM("builtin:chat", f"{folder}+{other}", "1+-0.5", device="cpu")
    assert dict(lm.steering.strengths) == {"random": 1.0, "other": -0.5}


def test_what_a_steered_model_reaches_in_tasks(tasks: Path, concept: Concept) -> None:
    model, tokenizer = llm.load("builtin:chat", device="cpu")
    files = [str(tasks / "facts.yaml"), str(tasks / "answers.yaml")]
    plain = lm_eval_harness.run_tasks(model, tokenizer, files)
    assert set(plain) == {"facts, acc", "answers, exact_match"}
    assert plain["facts, acc"] == 1.0, "it knows its facts"
    with llm.steer(model, {concept: 5.0}, gate="on"):
        assert lm_eval_harness.run_tasks(model, tokenizer, files)["facts, acc"] < 1.0
    assert lm_eval_harness.run_tasks(model, tokenizer, files[:1], limit=2) == {"facts, acc": 1.0}


def test_an_evaluation_asks_tasks(
    tasks: Path, concept: Concept, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = "prompts/rudeness.yaml"
    saved = replace(concept, provenance={"prompts": load_prompts(prompts).to_dict()}).save_pretrained(
        tmp_path / "concept"
    )
    given = ["eval", "--model", "builtin:chat", "--concept", str(saved), "--quick", "--count", "2", "--strengths", "1"]
    given += ["--tasks", str(tasks / "facts.yaml"), "--out", str(tmp_path / "out"), "--quiet"]
    assert cli.main([*given, "--limit", "4", "--device", "cpu"]) == 0
    (result,) = json.loads((tmp_path / "out" / "report.json").read_text())["concepts"]
    assert [line["arm"] for line in result["tasks"]] == ["base", "dsas", "on"]
    assert result["tasks"][0]["facts, acc"] == 1.0
    assert "Tasks of lm-evaluation-harness" in (tmp_path / "out" / "report.md").read_text()
    capsys.readouterr()
    assert cli.main([*given[:-3], "--tasks", "./lost.yaml", "--out", str(tmp_path / "other"), "--quiet"]) == 1
    assert capsys.readouterr().err == "dsas: error: no task file lost.yaml\n"
    assert not (tmp_path / "other").exists()


def test_tasks_that_are_not_there(tasks: Path) -> None:
    (tasks / "nameless.yaml").write_text("task: [a, b]\n")
    with pytest.raises(DSASError, match=r"nameless.yaml names no task: expected task: or group: and a name"):
        lm_eval_harness.check_tasks([str(tasks / "nameless.yaml")])
    (tasks / "tagged.yaml").write_text("task: 'tagged'\nprocess_docs: !function utils.process\n")
    assert lm_eval_harness._name_of(tasks / "tagged.yaml") == "tagged"
    with pytest.raises(DSASError, match="no task file"):
        lm_eval_harness.check_tasks(["./nowhere.yaml"])


def test_a_model_that_is_loaded_already(folder: Path) -> None:
    model, tokenizer = llm.load("builtin:chat", device="cpu")
    lm = SteeredLM(model, str(folder), tokenizer=tokenizer)
    assert lm.model is model
    assert lm.steering.sites
    lm.steering.detach()


@pytest.mark.parametrize("what", ["phase=prompt", "phase=generation", "latch"])
def test_choices_refuse_what_goes_by_the_end_of_the_prompt(
    what: str, tasks: Path, folder: Path, concept: Concept, base: dict[str, list[Any]]
) -> None:
    settings = f"concept={folder},{what}"
    if what == "latch":
        item = concept.interventions[0]
        latched = replace(item, probes=tuple(LatchProbe(probe) for probe in item.probes))  # type: ignore[arg-type]
        saved = replace(concept, name="latch", interventions=(latched,))
        settings = f"concept={saved.save_pretrained(folder.parent / 'latch', overwrite=True)}"
    with pytest.raises(DSASError, match=r"goes by where the prompt ends.* take phase=all and another gate, or tasks"):
        evaluate_task(tasks, "facts", "dsas", settings)
    evaluate_task(tasks, "answers", "dsas", settings, limit=2)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"pretrained": None}, "which model? Pass pretrained=, a folder, a Hub name, or builtin:chat"),
        ({"pretrained": "builtin:poet"}, "no built-in language model builtin:poet; there is builtin:chat"),
        ({"pretrained": "./nowhere"}, "cannot load ./nowhere: "),
        ({"concept": None}, "concept None: expected the folder or Hub name of a concept, or several joined by '+'"),
        ({"concept": "a+"}, "concept 'a+': expected"),
        ({"concept": "a+a"}, "concept 'a' is given twice: give it one strength"),
        ({"concept": "./no-concept"}, "no-concept"),
        ({"strength": "much"}, "strength 'much': expected a number, or one per concept joined by '+'"),
        ({"strength": "1+2"}, "2 strengths for 1 concepts: give one for all, or one each"),
        ({"strength": math.inf}, "strength of 'random': expected a finite number"),
        ({"gate": "ajar"}, "gate 'ajar': expected None (the concept's own), on or off"),
        ({"phase": "answer"}, "phase 'answer': expected one of prompt, generation, all"),
    ],
)
def test_bad_arguments_say_what_is_wrong(folder: Path, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(DSASError) as caught:
        SteeredLM(**{"pretrained": "builtin:chat", "concept": str(folder), "device": "cpu", **settings})
    assert match in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_concept_of_another_model(folder: Path, concept: Concept) -> None:
    foreign = replace(concept, base={"model": "0123456789abcdef"})
    saved = str(foreign.save_pretrained(folder.parent / "foreign", overwrite=True))
    with pytest.raises(DSASError, match="learned on another model"):
        SteeredLM("builtin:chat", saved, device="cpu")
    assert SteeredLM("builtin:chat", saved, force=True, device="cpu").steering.sites


def test_the_command_line(
    tasks: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))  # 15 seconds faster
    assert get_model("dsas") is SteeredLM
    given = ["--tasks", "facts", "--include_path", str(tasks), "--device", "cpu", "--limit", "2"]
    model = ["--model", "dsas", "--model_args", f"pretrained=builtin:chat,concept={folder},strength=1+0"]
    monkeypatch.setattr(sys, "argv", ["lm_eval", *given, *model])
    assert lm_eval_harness.main() == 1
    assert capsys.readouterr().err.endswith("error: 2 strengths for 1 concepts: give one for all, or one each\n")
    monkeypatch.setattr(sys, "argv", ["lm_eval", *given, *model[:-1], model[-1].replace("1+0", "0.5")])
    with pytest.raises(SystemExit) as ended, pytest.warns(RuntimeWarning, match="found in sys.modules"):
        runpy.run_module("dsas_core.llm.evaluation.lm_eval_harness", run_name="__main__", alter_sys=True)
    assert ended.value.code == 0
    assert "|facts|" in capsys.readouterr().out.replace(" ", "")
