"""Learning from conversations on a tiny random model, and watching with what was learned."""

from __future__ import annotations

import inspect
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from dsas_core import Concept, DSASError, llm, visit
from dsas_core.learning.capture import Capture
from dsas_core.learning.prompts.held_out import split_held_out
from dsas_core.learning.prompts.prompt_file import load_prompts
from dsas_core.learning.prompts.prompt_set import SIDES
from dsas_core.llm.learning.held_out_trial import TextOutcome, TextTrial
from dsas_core.llm.model.conversations import encode, parse_turns
from dsas_core.model.hooks import find_visitors
from tests.fixtures.language_models import PROMPTS, THINGS, Words, concept_for, tiny, written
from tests.fixtures.visitors import Bare, Recorder

#: texts to be continued
PLAIN = {
    "name": "plain",
    "placeholders": {"thing": THINGS, "place": PROMPTS["placeholders"]["place"]},
    "source": ["{thing} {place} fool", "{place} fool"],
    "target": ["{thing} {place} sorry", "{place} sorry"],
    "control": ["{thing} {place} please", "{place} please", "{thing} please"],
}


@pytest.fixture(scope="module")
def learned(tokenizer: Words) -> Concept:
    return llm.learn(tiny("llama"), tokenizer, PROMPTS, count=32)


def said(tokenizer: Words, text: str) -> torch.Tensor:
    conversation = [{"role": "user", "content": text}]
    text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    return torch.tensor([tokenizer(text).input_ids])


def test_what_was_learned_is_what_is_saved(learned: Concept, tmp_path: Path) -> None:
    assert Concept.from_pretrained(learned.save_pretrained(tmp_path / "rudeness")) == learned
    assert "out = model.generate" in (tmp_path / "rudeness" / "README.md").read_text()
    assert learned.provenance["pooling"] == "answer"
    assert {site["auroc"] > 0.9 for site in learned.evidence["sites"]} == {True}
    assert learned.evidence["unit"]["drift_limit"] == 0.01
    assert set(learned.base) == {"model"}


@pytest.mark.parametrize("form", ["prefix", "latch"])
def test_gates_that_go_by_what_came_before(form: str, tokenizer: Words) -> None:
    model = tiny("llama")
    concept = llm.learn(model, tokenizer, PROMPTS, count=32, recipe={"form": form})
    assert {probe.kind for item in concept.interventions for probe in item.probes} == {form}
    with llm.steer(model, {concept: 1.0}, trace=True) as steering:
        assert steering.trace is not None
        highest = {}
        for name, side in {"rude": "source", "kind": "control"}.items():
            prompt = PROMPTS[side][0].format(thing="key", place="here")
            ids = encode(tokenizer, prompt).ids[: None if form == "prefix" else encode(tokenizer, prompt).answer]
            model(torch.tensor([ids]))
            highest[name] = steering.trace.tokens()[-1].max_h
    assert highest["rude"] > 2 * highest["kind"]


def test_learning_again_gives_the_same(learned: Concept, tokenizer: Words) -> None:
    assert llm.learn(tiny("llama"), tokenizer, PROMPTS, count=32) == learned


def test_controls_are_left_alone(learned: Concept, tokenizer: Words) -> None:
    model, prompts, steered = tiny("llama"), load_prompts(PROMPTS), {}
    with llm.steer(model, {learned: 1.0}, trace=True) as steering:
        assert steering.trace is not None
        for side in ("source", "control"):
            highest = []
            for prompt in prompts.expanded(side):
                model(said(tokenizer, parse_turns(prompt)[0]["content"]))
                highest.append(max(token.max_h for token in steering.trace.tokens()))
            steered[side] = sum(h > 0.5 for h in highest) / len(highest)
    assert steered["source"] > 0.7
    assert steered["control"] < 0.4 * steered["source"], "random weights tell them apart a little"


def test_the_monitor_changes_nothing_and_tells_each_request(learned: Concept, tokenizer: Words) -> None:
    model, file = tiny("llama"), io.StringIO()
    ids = said(tokenizer, "my key is here you fool")
    base = model(ids).logits
    with llm.Monitor(model, [learned], file, tokenizer) as monitor:
        assert torch.equal(model(ids).logits, base)
        model(ids.repeat(2, 1))
        assert monitor.requests == 1, "the last request is written when the next one comes, or at the end"
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [(line["request"], line["row"]) for line in lines] == [(0, 0), (1, 0), (1, 1)]
    top = lines[0]["rudeness"]
    assert top["token"] == tokenizer.decode([int(ids[0, top["position"]])])
    assert 0 < top["mean_h"] <= top["max_h"] <= 1
    assert lines[0]["tokens"] == ids.shape[1] - 1


def test_a_monitor_never_stands_in_the_way(learned: Concept, tokenizer: Words, tmp_path: Path) -> None:
    model, file = tiny("llama"), io.StringIO()
    with llm.Monitor(model, [learned], file, tokenizer):
        model(torch.randint(3, len(tokenizer.words), (1, 80)))  # longer than the model takes
    assert json.loads(file.getvalue())["tokens"] == 79
    with pytest.raises(DSASError, match="cannot write"):
        llm.Monitor(model, [learned], tmp_path, tokenizer)
    assert not find_visitors(model)


def test_the_monitor_of_an_encoder_follows_beams(tokenizer: Words) -> None:
    model, file = tiny("t5"), io.StringIO()
    with llm.Monitor(model, [concept_for(model)], file):
        written(model, num_beams=3, num_return_sequences=3)
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [line["row"] for line in lines] == list(range(6)), "a line for each beam of two prompts"


def test_evidence_on_another_domain(tokenizer: Words) -> None:
    unseen = {
        "unseen_source": ["user: is my key here you {what}"],
        "unseen_control": ["user: is my key here if {what}"],
    }
    content = {**PROMPTS, "placeholders": {**PROMPTS["placeholders"], "what": ["fool", "clown"]}, "evaluation": unseen}
    concept = llm.learn(tiny("llama"), tokenizer, content, count=32)
    for site in concept.evidence["sites"]:
        assert {"auroc", "balanced_accuracy", "control_h", "control_fired_before"} <= set(site["unseen"])
        assert 0 <= site["unseen"]["control_fired"] <= site["unseen"]["control_fired_before"] <= 1


def test_texts_that_are_plain_are_learned_from(tokenizer: Words) -> None:
    for form in ("text", "token", "latch"):
        concept = llm.learn(tiny("llama"), tokenizer, PLAIN, count=24, sites="block", recipe={"form": form})
        assert concept.provenance["pooling"] == "all"
        trials = {trial["unit"]: trial for trial in concept.evidence["unit"]["trials"]}
        assert set(TextOutcome._fields) <= set(trials[concept.unit])
        assert concept.unit == min(trials) or trials[concept.unit]["harm"] <= 1


def test_an_encoder_is_read_where_it_is(tokenizer: Words) -> None:
    concept = llm.learn(tiny("t5"), tokenizer, PROMPTS, count=32)
    assert {site.root for site in concept.sites} == {"encoder"}
    with pytest.raises(DSASError, match="prompts go through the encoder"):
        llm.learn(tiny("t5"), tokenizer, PROMPTS, sites=["block"])


@pytest.mark.parametrize(
    ("change", "settings", "match"),
    [
        ({"source": ["x"] * 9}, {}, "source gives 1 prompts, at least 8 are needed"),
        ({"control": []}, {}, "lacks control"),
        ({"target": PROMPTS["source"]}, {}, "source and target are identical"),
        ({}, {"pooling": "first"}, "pooling 'first': expected one of all, prompt, answer, last"),
        (
            {},
            {"recipe": {"form": "pooled"}},
            "reads tokens that are not written yet: choose text, message, token, prefix, latch, last, paper",
        ),
        ({}, {"recipe": {"colour": 1}}, "recipe has no field colour"),
        (
            {},
            {"method": "mean-act", "recipe": {"options": {"spatial": "mean shift"}}},
            "spatial=mean shift goes by all positions at once",
        ),
        ({}, {"sites": "layers"}, "no site matches 'layers'"),
        ({}, {"sites": ["norm"]}, "llama has no norm sites"),
    ],
)
def test_bad_input_says_what_is_wrong(tokenizer: Words, change: Any, settings: Any, match: str) -> None:
    with pytest.raises(DSASError, match=match):
        llm.learn(tiny("llama"), tokenizer, {**PROMPTS, **change}, **settings)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("nowhere", "no model nowhere: no such folder, no Hub name"),
        ("builtin:poet", "no built-in language model builtin:poet; there is builtin:chat"),
        (".", "is no language model: it has no config.json"),
    ],
)
def test_a_model_that_is_not_there(name: str, match: str, tmp_path: Path) -> None:
    with pytest.raises(DSASError, match=match):
        llm.load(tmp_path if name == "." else name)


@pytest.mark.parametrize("family", ["llama", "t5", "llava"])
def test_a_folder_is_loaded_as_what_it_is(family: str, tmp_path: Path) -> None:
    from dsas_core.llm.model.load import BUILTIN

    tiny(family).save_pretrained(tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((BUILTIN["builtin:chat"] / file).read_bytes())
    model, tokenizer = llm.load(tmp_path, device="cpu")
    assert type(model) is type(tiny(family))
    assert not model.training
    assert tokenizer("hello").input_ids


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path)
    with pytest.raises(DSASError, match="it has none of tokenizer"):
        llm.load(tmp_path)
    assert llm.is_language_model(tmp_path)
    assert not llm.is_language_model("nowhere")


def test_causal_learning_reads_what_the_layers_before_leave(learned: Concept, tokenizer: Words) -> None:
    model = tiny("llama")
    causal, steered = (
        llm.learn(model, tokenizer, PROMPTS, count=32, sites="block", recipe={"mode": "causal", "target_rows": rows})
        for rows in ("clean", "steered")
    )
    clean = llm.learn(model, tokenizer, PROMPTS, count=32, sites="block")
    assert len(clean.sites) > 1
    assert clean.sites == causal.sites == steered.sites
    first, later = ([concept.interventions[i] for concept in (clean, causal, steered)] for i in (0, -1))
    shifts = [[item.maps[0].tensors()[0] for item in found] for found in (first, later)]
    assert torch.equal(shifts[0][0], shifts[0][1])
    assert not any(torch.equal(shifts[1][0], other) for other in shifts[1][1:])
    assert not torch.equal(*shifts[1][1:])
    assert not find_visitors(model)
    assert causal.provenance["recipe"]["mode"] == "causal"


SPANS = {**PROMPTS, "spans": ["you fool", "you clown", "go away {thing}", "go away"]}


@pytest.mark.parametrize(("lead", "marked"), [(0, ["away", "go"]), (1, ["<assistant>", "go"])])
def test_spans_mark_the_states_that_write_them(
    lead: int, marked: list[str], tokenizer: Words, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers are read, so of their spans the states of the answer count; one earlier is the one about to write."""
    seen: list[Any] = []
    mark = Capture.mark

    def watched(self: Capture, kind: str, told: Any) -> None:
        mark(self, kind, told)
        seen.append(self)

    monkeypatch.setattr(Capture, "mark", watched)
    recipe = {"supervision": "positions", "lead": lead}
    concept = llm.learn(tiny("llama"), tokenizer, SPANS, count=32, recipe=recipe)
    assert concept.provenance["prompts"]["spans"] == SPANS["spans"]
    (capture,) = seen
    rows = next(rows for (_, _, kind), rows in capture.rows.items() if kind == "source")
    texts = [encode(tokenizer, prompt).ids for prompt in _drawn(SPANS)]
    places = zip(rows.gathered("position_prompts").tolist(), rows.gathered("places").tolist(), strict=True)
    shown = zip(places, rows.gathered("labels").tolist(), strict=True)
    assert sorted({tokenizer.words[texts[prompt][place]] for (prompt, place), label in shown if label}) == marked


def _drawn(content: dict[str, Any]) -> list[str]:
    return split_held_out(load_prompts(content).draw(32, 0))[0]["source"]


@pytest.mark.parametrize(
    ("spans", "message"),
    [([], "'rudeness' has no spans, .*add them"), (["you foo"], "none of its spans is in a source prompt.*'you foo'")],
)
def test_spans_that_mark_nothing(spans: list[str], message: str, tokenizer: Words) -> None:
    with pytest.raises(DSASError, match=message):
        llm.learn(tiny("llama"), tokenizer, {**PROMPTS, "spans": spans}, recipe={"supervision": "positions"})


def test_the_cloud_is_of_all_tokens_of_the_targets(learned: Concept, tokenizer: Words) -> None:
    """Whatever the map is fitted on, every token is moved."""
    model = tiny("llama")
    concept = llm.learn(model, tokenizer, PROMPTS, count=32, recipe={"cloud": 4})
    bare = replace(concept, interventions=tuple(replace(item, clouds=()) for item in concept.interventions))
    assert bare.digest == learned.digest, "looking for clouds changes nothing else"
    item = concept.interventions[0]
    (cloud,) = item.clouds
    assert 1 <= len(cloud.axes) <= 4
    recorder = Recorder()
    with visit({"model": model}, [item.site], recorder):
        model(torch.tensor([encode(tokenizer, PROMPTS["target"][0].format(thing="key", place="here")).ids]))
    (x,) = recorder.seen[item.site]
    assert float((cloud.distance(x[:, 1:]) <= cloud.radius).double().mean()) > 0.7


# ---- calibration ----------------------------------------------------------------------------------------------------


def test_calibration_finds_unit_and_ends_on_the_same_quarter(
    learned: Concept, tokenizer: Words, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DSASError, match="answers source prompts much as it answers control prompts"):
        llm.calibrate(tiny("llama"), tokenizer, learned)
    monkeypatch.setattr(
        "dsas_core.llm.learning.held_out_trial.MIN_LOGIT_GAP", -math.inf
    )  # a random model answers as it will
    learned = llm.learn(tiny("llama"), tokenizer, PROMPTS, count=32)
    model, bare = tiny("llama"), Bare.of(tiny("llama"))
    given = replace(learned, unit=123.0)
    found = llm.calibrate(model, tokenizer, given)
    assert Bare.of(model) == bare
    assert found == llm.calibrate(model, tokenizer, given)
    assert (found.digest, found.provenance) == (learned.with_unit(found.unit).digest, learned.provenance)
    trials, chosen = found.evidence["range"]["trials"], found.evidence["unit"]
    assert found.unit == learned.unit
    assert chosen == learned.evidence["unit"], "nothing but the ends is new"
    low, high = found.range or (0.0, 0.0)
    useful = {round(trial["strength"], 6): trial["useful"] for trial in trials}
    assert all(useful[end] for end in (low, high) if end)
    assert (
        llm.calibrate(model, tokenizer, given, PROMPTS, count=12, seed=5).evidence["range"] != found.evidence["range"]
    )


def test_what_cannot_be_calibrated_says_why(learned: Concept, tokenizer: Words) -> None:
    model = tiny("llama")
    plain = {side: [text.replace("user: ", "").replace("\nassistant:", "") for text in PROMPTS[side]] for side in SIDES}
    for concept, prompts, message in (
        (replace(learned, provenance={}), None, "does not tell from which prompts"),
        (replace(learned, base={"unet": "0"}), None, "is of a model that draws, and this is a language model"),
        (learned, {**PROMPTS, **plain}, "an assistant's turn at the end"),
        (learned, "nowhere.yaml", "no prompt file nowhere.yaml"),
    ):
        with pytest.raises(DSASError, match=message):
            llm.calibrate(model, tokenizer, concept, prompts)


def test_concepts_of_one_lesson_are_read_once(tokenizer: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every method from one pass over the prompts, and each as if it had been learned alone."""
    model = tiny("llama")
    chosen = [("caa", None), ("mean-act", None), ("linear-act", "gaps"), ("iti", "cosine"), ("mera", None)]
    alone = [llm.learn(model, tokenizer, PROMPTS, count=16, method=method, gate=gate) for method, gate in chosen]
    captures: list[Any] = []
    capture = llm.Lesson._capture
    monkeypatch.setattr(
        llm.Lesson, "_capture", lambda *given, **more: (captures.append(given), capture(*given, **more))[1]
    )
    lesson = llm.Lesson(model, tokenizer, PROMPTS, count=16)
    assert not captures
    together = [lesson.learn(method, gate) for method, gate in chosen]
    assert len(captures) == 2, "gates that decide about texts read at other sites"
    assert together == alone
    lesson.learn("caa", recipe={"form": "prefix"})
    assert len(captures) == 3, "another form reads other tokens"


@pytest.mark.parametrize("form", ["token", "latch", "last"])
def test_drift_is_seen_where_the_gate_is_open(form: str, tokenizer: Words) -> None:
    """Gates that go by where a prompt ends are shut while a given answer is read whole: it is read as if written."""
    model = tiny("llama")
    concept = llm.learn(model, tokenizer, PROMPTS, count=32, recipe={"form": form, "control_h": None})
    opened = [
        replace(item, probes=tuple(probe.with_lower_bias(-1e3) for probe in item.probes))
        for item in concept.interventions
    ]
    lesson = llm.Lesson(model, tokenizer, PROMPTS, count=32)
    trial = TextTrial(lesson.reader, lesson.fitting, lesson.held_out)
    assert trial(replace(concept, interventions=tuple(opened)), 30.0).drift > 0.01
    assert trial(concept, 0.0).drift == pytest.approx(0, abs=1e-6)


def test_an_answer_reads_the_same_behind_its_prompt(tokenizer: Words) -> None:
    lesson = llm.Lesson(tiny("llama"), tokenizer, PROMPTS, count=32)
    texts = lesson.held_out["control"]
    whole, written = (torch.cat(lesson.reader.predictions(texts, written=how)) for how in (False, True))
    torch.testing.assert_close(whole, written, atol=1e-3, rtol=1e-3)


def test_learn_has_the_keywords_of_its_lesson_and_hands_them_on(monkeypatch: pytest.MonkeyPatch) -> None:
    own, expected = (inspect.signature(kind).parameters for kind in (llm.learn, llm.Lesson))
    assert {name: own[name] for name in expected} == dict(expected)
    lesson = Mock()
    monkeypatch.setitem(llm.learn.__globals__, "Lesson", lesson)
    settings: dict[str, Any] = {name: object() for name in list(expected)[3:]}
    llm.learn(torch.nn.Identity(), None, PROMPTS, **settings)
    assert lesson.call_args.kwargs == settings
