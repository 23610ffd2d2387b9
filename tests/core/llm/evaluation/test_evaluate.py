"""Evaluating concepts on a tiny random language model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dsas_core import Concept, DSASError, llm
from dsas_core.evaluation import ARMS, Plan, RunStore
from dsas_core.learning.prompts.kept import hash_prompt
from dsas_core.learning.prompts.prompt_file import load_prompts
from dsas_core.llm.evaluation import repetition
from dsas_core.llm.evaluation.answer_store import AnswerStore
from dsas_core.llm.evaluation.evaluate import TextEvaluation, evaluate, identity
from dsas_core.llm.evaluation.judges import ScoredJudge, judge_from
from dsas_core.llm.evaluation.repetition import repeats
from dsas_core.llm.evaluation.toxicity import LexiconScorer
from dsas_core.llm.learning.reader import Reader
from dsas_core.llm.model.conversations import encode, pad_token
from dsas_core.utils.repetition import goes_in_circles
from tests.fixtures.language_models import PROMPTS, Words, tiny

PLAN = Plan(count=4, strengths=(1.0, 30.0), targets=(0.5, 0.001))


@pytest.fixture(scope="module")
def concept(tokenizer: Words) -> Concept:
    return llm.learn(tiny("llama"), tokenizer, PROMPTS, count=16, recipe={"form": "token"})  # "auto" needs its plane


def words_of(tokenizer: Words) -> ScoredJudge:
    """A judge of half of the words."""
    return ScoredJudge(LexiconScorer([word for word in tokenizer.words[2::2] if word[0].isalpha()]))


def measure(concept: Concept, tokenizer: Words, folder: Path) -> dict[str, Any]:
    model, prompts = tiny("llama"), load_prompts(PROMPTS)
    run = RunStore(folder, identity(model, concept, prompts))
    judges = [words_of(tokenizer), ScoredJudge(LexiconScorer(["w1"]), wanted=True, name="a word")]
    return evaluate(model, tokenizer, concept, prompts, judges, run, PLAN)


@pytest.fixture(scope="module", autouse=True)
def straight() -> Iterator[None]:
    """A random model goes in circles, and what does scores nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repetition, "goes_in_circles", lambda words: False)
        yield


@pytest.fixture(scope="module")
def document(concept: Concept, tokenizer: Words, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    # a random model may write numbers that are no words
    tokenizer.words += [f"w{i}" for i in range(61 - len(tokenizer.words))]
    return measure(concept, tokenizer, tmp_path_factory.mktemp("run") / "run")


def test_every_arm_at_every_strength(document: dict[str, Any]) -> None:
    assert list(document["arms"]) == list(ARMS)
    weak, strong = document["arms"]["on"]["points"]
    assert strong["unchanged"] < 1
    assert strong["perplexity_ratio"] != 1
    assert weak["cost"]["value"] == pytest.approx(1 - weak["unchanged"])
    assert [line["target"] for line in document["auto"]] == [0.5, 0.001]
    assert all(set(line) == {"target", "effect", "cost", "over"} for line in document["auto"])
    dose = document["dose"]
    assert 0 <= dose["dsas"]["control"] <= dose["dsas"]["source"] <= 1
    assert dose["constant_gate"] == dict.fromkeys(("source", "control"), dose["dsas"]["source"])
    assert any("knowledge" in reason for reason in document["skipped"])
    answers = document["samples"][0]["answers"]
    assert set(answers) == {"base", *ARMS, "dsas ×30", "on ×30"}
    assert answers["on ×30"] != answers["base"]
    on, oracle = (document["arms"][name]["points"][1] for name in ("on", "oracle"))
    assert oracle["effect"] == on["effect"], "prompts that show the concept are steered"
    assert (oracle["cost"]["value"], oracle["unchanged"], oracle["perplexity_ratio"]) == (0, 1, 1), "others are not"
    (other,) = document["judges"]
    assert (other["judge"], set(other)) == ("a word", {"judge", "base", *ARMS})
    assert sum(line["answers"] for line in document["wordings"]) == len(document["prompts"]["source"])
    assert document["cost"]["time_ratio"] > 0


def test_concepts_that_cannot_choose_their_strength_say_so(concept: Concept, tokenizer: Words, tmp_path: Path) -> None:
    latched = llm.learn(tiny("llama"), tokenizer, PROMPTS, count=16, recipe={"form": "latch"})
    figures = measure(latched, tokenizer, tmp_path / "run")
    assert figures["auto"] == []
    assert any(reason.startswith("strength auto: at ") for reason in figures["skipped"])


def test_nothing_is_answered_twice(
    document: dict[str, Any],
    concept: Concept,
    tokenizer: Words,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = measure(concept, tokenizer, tmp_path / "run")
    assert {**first, "cost": None} == {**document, "cost": None}, "the same everywhere, but for time"
    monkeypatch.setattr(AnswerStore, "_measure", None)
    assert measure(concept, tokenizer, tmp_path / "run") == first


def test_rewritten_prompts_are_the_measure_where_there_are_any(
    concept: Concept, tokenizer: Words, tmp_path: Path, document: dict[str, Any]
) -> None:
    assert document["asked"] is None
    assert any("no unseen_target" in reason for reason in document["skipped"])
    unseen = {
        "unseen_source": ["user: {thing} is {place} you fool"],
        "unseen_target": ["user: where is {thing} please"],
        "unseen_control": ["user: {thing} is {place}"],
    }
    model, prompts = tiny("llama"), load_prompts({**PROMPTS, "evaluation": unseen})
    run = RunStore(tmp_path / "run", identity(model, concept, prompts))
    figures = evaluate(model, tokenizer, concept, prompts, words_of(tokenizer), run, PLAN)
    rewritten = figures["baselines"]["asked in words"]
    assert rewritten["shown"] == figures["asked"] != figures["baselines"]["no steering"]["shown"]
    judge, reader = words_of(tokenizer), Reader(model, pad_token(tokenizer), 8)
    texts = [encode(tokenizer, text) for text in figures["prompts"]["target"]]
    said = [str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip() for ids in reader.answers(texts)]
    scores = [0.0 if repeats(text) else score for text, score in zip(said, judge.target_scores(said), strict=True)]
    assert figures["asked"] == pytest.approx(sum(scores) / len(scores))


@pytest.mark.parametrize(
    ("spec", "texts", "expected"),
    [
        ({"words": {"any": ["sun"]}}, ["the sun shines", "rain"], [1, 0]),
        ({"words": {"any": ["sun"], "wanted": False}}, ["the sun shines", "rain"], [0, 1]),
    ],
)
def test_judges_from_yaml(spec: Any, texts: list[str], expected: list[float]) -> None:
    assert judge_from(spec).target_scores(texts) == expected


def test_the_built_in_scorer_judges_what_is_to_go_away() -> None:
    judge = judge_from({"scorer": {"model": "builtin:chat"}})
    rude, kind = judge.target_scores(["shut up, you stupid donkey.", "i am sorry about the parcel."])
    assert rude < 0.2 < 0.8 < kind


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "expected scorer: {model, wanted} or words"),
        ({"builtin": {}}, "expected scorer"),
        ({"words": {"wanted": True}}, "judge words: expected any, a list, and wanted"),
        ({"scorer": {"model": "x", "label": 1}}, "judge scorer: expected model, a name, and wanted"),
        ({"scorer": {"model": "builtin:poet"}}, "no built-in scorer builtin:poet"),
        ({"words": {"any": ["x"], "wanted": "yes"}}, "wanted: true or false"),
        ({"words": {"any": 5}}, "judge words: expected any, a list"),
        ({"scorer": {"model": ["a"]}}, "judge scorer: expected model, a name"),
    ],
)
def test_bad_judges(spec: Any, message: str) -> None:
    with pytest.raises(DSASError, match=message):
        judge_from(spec)


def test_models_with_an_encoder_are_refused(concept: Concept, tokenizer: Words, tmp_path: Path) -> None:
    model, prompts = tiny("t5"), load_prompts(PROMPTS)
    with pytest.raises(DSASError, match="a model with an encoder cannot be evaluated yet"):
        evaluate(model, tokenizer, concept, prompts, words_of(tokenizer), RunStore(tmp_path / "run", {}), PLAN)


@pytest.mark.parametrize("keep", ["hash", "all"])
def test_private_prompts_are_in_no_file_of_an_evaluation(keep: str, tokenizer: Words, tmp_path: Path) -> None:
    """Nor in its report; with the same figures as of prompts that may be shown."""
    model, content = tiny("llama"), {**PROMPTS, "private": True}
    reports = []
    for name, known in {"private": content, "shown": PROMPTS}.items():
        prompts = load_prompts(known)
        learned = llm.learn(model, tokenizer, known, count=16, keep_prompts=keep if name == "private" else None)
        run = RunStore(tmp_path / name, identity(model, learned, prompts))
        plan = Plan(count=4, strengths=(1.0,), arms=("dsas", "on"))
        reports.append(evaluate(model, tokenizer, learned, prompts, words_of(tokenizer), run, plan))
    hidden, shown = reports
    texts = {side: [*shown["prompts"][side]] for side in shown["prompts"]}
    assert hidden["prompts"] == {side: list(map(hash_prompt, prompts)) for side, prompts in texts.items()}
    assert hidden["samples"] == []
    assert shown["samples"]
    assert hidden["arms"] == shown["arms"]
    written = {
        name: json.dumps(report) + "".join(path.read_text() for path in sorted((tmp_path / name).rglob("*.json")))
        for name, report in zip(("private", "shown"), reports, strict=True)
    }
    templates = [template for side in ("source", "target", "control") for template in PROMPTS[side]]
    secrets = [json.dumps(text)[1:-1] for text in [*templates, *texts["source"], *texts["control"]]]
    ids = json.dumps(encode(tokenizer, texts["source"][0]).ids)
    assert not [text for text in secrets if text in written["private"]]
    assert ids[1:-1] not in " ".join(written["private"].split())
    assert all(text in written["shown"] for text in secrets[len(templates) :])
    assert ids[1:-1] in " ".join(written["shown"].split())


def test_an_answer_that_goes_in_circles_scores_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """However kind it is."""
    monkeypatch.setattr(repetition, "goes_in_circles", goes_in_circles)
    circle = "i am here to help. you are welcome. " * 3
    answers = SimpleNamespace(values=lambda arm, strength: {"source": ["you are welcome.", circle]})
    judge: Any = SimpleNamespace(target_scores=lambda texts: [1.0] * len(texts))
    scores = TextEvaluation.judge_outputs(SimpleNamespace(answers=answers), judge, "dsas", 1.0)  # type: ignore[arg-type]
    assert scores.tolist() == [1.0, 0.0]
