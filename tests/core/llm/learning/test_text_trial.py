"""What a strength does to what is written: outcomes and their limits, on a tiny model that answers or continues."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from dsas_core import Concept, llm
from dsas_core.errors import PromptError
from dsas_core.llm.learning.held_out_trial import CONTINUATION, GIVEN, LIMITS, TextOutcome, TextTrial
from dsas_core.llm.learning.outcomes import AnswerClassifier, TextDetector
from dsas_core.llm.learning.reader import OnBatch, Reader
from dsas_core.llm.model.conversations import Encoded
from dsas_core.probes import ConstantProbe, LinearProbe
from tests.fixtures.language_models import PROMPTS, Words, close, concept_for, text_probe, tiny
from tests.fixtures.visitors import Bare

LOW, HIGH = range(3, 20), range(20, 50)


def of_tokens(known: range, count: int, length: int = 9, seed: int = 0) -> list[tuple[int, ...]]:
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(known.start, known.stop, (count, length), generator=random)
    return [tuple(row) for row in ids.tolist()]


def plain(known: range, count: int, length: int = 9, seed: int = 0) -> list[Encoded]:
    return [Encoded(ids, len(ids)) for ids in of_tokens(known, count, length, seed)]


def sides(seed: int, count: int, length: int = 9) -> dict[str, list[Encoded]]:
    known = {"source": LOW, "target": HIGH, "control": range(3, 50)}
    return {side: plain(tokens, count, length, seed) for side, tokens in known.items()}


@pytest.fixture(scope="module")
def trial() -> TextTrial:
    return TextTrial(Reader(tiny("llama"), 0, 16), sides(0, 16), sides(1, 6))


@pytest.fixture
def answering(tokenizer: Words) -> TextTrial:
    lesson = llm.Lesson(tiny("llama"), tokenizer, PROMPTS, count=16)
    return TextTrial(lesson.reader, lesson.fitting, lesson.held_out)


def concept(form: Any = replace) -> Concept:
    found = concept_for(tiny("llama"))
    items = [
        replace(item, probes=tuple(form(probe) for probe in item.probes if isinstance(probe, LinearProbe)))
        for item in found.interventions
    ]
    return replace(found, interventions=tuple(items))


# ---- what is measured -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "answers"])
def test_a_strength_of_nothing_does_no_harm(kind: str, trial: TextTrial, answering: TextTrial) -> None:
    tried = trial if kind == "plain" else answering
    bare = Bare.of(tiny("llama"))
    found = tried(concept(), 0.0)
    assert tried.outcomes[0.0] == pytest.approx(TextOutcome(0, 0, 0, 0), abs=1e-5)
    assert (found.drift, found.harm, found.displacement) == pytest.approx((0, 0, 0), abs=1e-4)
    assert Bare.of(tiny("llama")) == bare


def test_harm_is_the_largest_part_of_a_limit(trial: TextTrial) -> None:
    found, outcome = trial(concept(), 3.0), trial.outcomes[3.0]
    assert found.harm == pytest.approx(max(getattr(outcome, name) / limit for name, limit in LIMITS.items()))
    assert outcome.always_on > 0
    assert found.drift == outcome.drift > 0


@pytest.mark.parametrize(("form", "counts"), [(replace, True), (text_probe, False)])
def test_drift_counts_where_a_gate_does_not_decide_about_whole_texts(form: Any, counts: bool, trial: TextTrial) -> None:
    found, within = (trial(concept(form), 0.05, drift_limit=limit).harm for limit in (1e-6, math.inf))
    assert found is not None
    assert (found > 100) == counts
    assert (found == within) != counts


def test_only_texts_whose_gate_opens_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is measured is the same as by a trial that tries all of them."""

    def gated_at(threshold: float) -> Concept:
        steep = {"threshold": torch.tensor(threshold), "temperature": torch.tensor(1e-3)}
        return concept(lambda probe: replace(text_probe(probe), **steep))

    tried, fresh = (TextTrial(Reader(tiny("llama"), 0, 16), sides(0, 16), sides(1, 6)) for _ in range(2))
    gated = gated_at(1.25)  # open for some of the texts
    tried(gated, 0.3)
    opened = dict(tried._open)
    assert 0 < len(opened["source"]) < len(tried.sources)
    assert 0 < len(opened["control"]) < len(tried.controls)
    read: dict[str, int] = {}
    for name in ("answers", "predictions"):
        method = getattr(Reader, name)

        def counted(reader: Reader, texts: Any, *args: Any, name: str = name, method: Any = method, **more: Any) -> Any:
            read[name] = len(texts)
            return method(reader, texts, *args, **more)

        monkeypatch.setattr(Reader, name, counted)
    again = tried(gated, 5.0)
    assert read == {"answers": len(opened["source"]), "predictions": len(opened["control"])}
    expected = fresh(gated, 5.0)
    assert read == {"answers": len(tried.sources), "predictions": len(tried.controls)}
    assert again.displacement > 0
    assert again == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert tried.outcomes[5.0] == pytest.approx(fresh.outcomes[5.0], rel=1e-3, abs=1e-5)
    tried(gated_at(1.0), 0.3)
    assert read == {"answers": len(tried.sources), "predictions": len(tried.controls)}, "of another concept, all"


def test_plain_texts_are_continued_from_some_of_their_tokens_on(
    trial: TextTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert trial.length == CONTINUATION
    assert [text.answer for text in trial.sources] == [round(share * 9) for share in GIVEN for _ in range(6)]
    asked: list[tuple[int, Any]] = []
    answers = Reader.answers

    def watched(
        reader: Reader, texts: Sequence[Encoded], on_batch: OnBatch, length: int | None = None
    ) -> list[tuple[int, ...]]:
        written = answers(reader, texts, on_batch, length)
        asked.append((max(map(len, written)), length))
        return written

    monkeypatch.setattr(Reader, "answers", watched)
    trial(concept(), 0.1)
    assert asked == [(CONTINUATION, CONTINUATION)]


def test_texts_without_an_end_cannot_be_continued() -> None:
    with pytest.raises(PromptError, match="held-out texts have at most 2 tokens, at least 3 are needed"):
        TextTrial(Reader(tiny("llama"), 0, 16), sides(0, 16), sides(1, 6, length=2))


def test_controls_of_conversations_are_answered_though_they_have_no_answer(tokenizer: Words) -> None:
    controls = ["user: my {thing} is {place} so please", "user: where is my {thing} if {place}"]
    lesson = llm.Lesson(tiny("llama"), tokenizer, {**PROMPTS, "control": controls}, count=16)
    tried = TextTrial(lesson.reader, lesson.fitting, lesson.held_out)
    assert tried.length is None
    assert len(tried.wanted) == len(lesson.held_out["control"])


def test_a_model_that_falls_silent_was_steered_too_far(trial: TextTrial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reader, "answers", lambda reader, texts, on_batch, length=None: [()] * len(texts))
    assert not trial(concept(), 7.0).is_harmless()
    assert trial.outcomes[7.0].unlikely == sys.float_info.max
    json.dumps(trial.outcomes[7.0], allow_nan=False)


# ---- the unit -------------------------------------------------------------------------------------------------------


def test_the_unit_is_within_the_limits_and_says_why(trial: TextTrial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "answers_differ", True)
    monkeypatch.setattr(trial, "harm", lambda concept, strength, drift_limit: 2.0)
    with pytest.warns(UserWarning, match=r"the unit, 0\.1, has .* of the full effect, and the largest one within"):
        unit, evidence = trial.choose_unit(concept(), drift=1.0)
    assert unit == 0.1
    assert not evidence["reached"]
    assert {"unit", "effect", "harm", *TextOutcome._fields} == set(evidence["trials"][0])
    assert {"limits", "drift_limit", "answers_differ_by", "eyes_accuracy"} <= set(evidence)


def test_continuations_that_do_not_differ_are_warned_of(trial: TextTrial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "answers_differ", False)
    told = r"the model continues source prompts much as .* by which the unit, [\d.]+, was chosen are uncertain"
    with pytest.warns(UserWarning, match=told):
        unit, evidence = trial.choose_unit(concept(), drift=1.0)
    (chosen,) = (found for found in evidence["trials"] if found["unit"] == unit)
    assert chosen["harm"] <= 1 or unit == min(found["unit"] for found in evidence["trials"])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_nothing_is_added_up_over_concepts(answering: TextTrial) -> None:
    """A lesson tries many concepts by one trial."""
    first = answering.choose_unit(concept(), drift=0.5)
    always = replace(
        concept(), interventions=tuple(replace(x, probes=(ConstantProbe(),)) for x in concept().interventions)
    )
    answering.choose_unit(always, drift=0.01)
    assert answering.choose_unit(concept(), drift=0.5) == first


def test_where_nothing_is_unusual_nothing_shows_an_effect(trial: TextTrial, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the smallest unit would seem to have the full effect."""
    usual = trial.wanted[trial.classifier.logit(trial.wanted).argmin()]
    monkeypatch.setattr(trial, "source", usual.expand_as(trial.source))
    assert trial.progress(trial.source) == 0.0


# ---- the judges -----------------------------------------------------------------------------------------------------


def test_a_detector_tells_what_texts_are_made_of() -> None:
    reader = Reader(tiny("llama"), 0, 5)
    judge = TextDetector(
        reader, of_tokens(LOW, 40), of_tokens(HIGH, 40), (of_tokens(LOW, 20, seed=1), of_tokens(HIGH, 20, seed=1))
    )
    assert judge.accuracy > 0.6
    mixed = [*of_tokens(LOW, 5, seed=2), *of_tokens(HIGH, 6, length=4, seed=3), ()]
    together = judge.read(mixed)
    assert together.shape == (12, judge.features.shape[1])
    assert together.dtype == torch.float64
    assert close(torch.cat([judge.read([text]) for text in mixed]), together)
    logits = judge.logit(together)
    assert float(logits[:5].mean()) > float(logits[5:11].mean())


def test_a_detector_reads_a_model_of_any_family() -> None:
    for family in ("gpt2", "gemma2", "llava"):
        judge = TextDetector(
            Reader(tiny(family), 0, 8), of_tokens(LOW, 12), of_tokens(HIGH, 12), (of_tokens(LOW, 4), of_tokens(HIGH, 4))
        )
        assert bool(judge.features.isfinite().all())


def test_a_classifier_reads_answers_behind_control_prompts() -> None:
    reader = Reader(tiny("llama"), 0, 5)
    contexts = [Encoded((*ids, 4, 4), 6) for ids in of_tokens(HIGH, 3, length=6, seed=5)]
    judge = AnswerClassifier(reader, contexts, of_tokens(LOW, 40, length=4), of_tokens(HIGH, 40, length=4))
    assert judge.accuracy > 0.6
    (answer,) = of_tokens(LOW, 1, length=4, seed=7)
    first = judge.read([answer, answer, answer, answer])
    assert torch.allclose(first[0], first[3], atol=1e-4), "the contexts take turns"
    assert not torch.allclose(first[0], first[1], atol=1e-2)
    expected = reader.states([Encoded((*contexts[1].ids[:6], *answer), 6)]).double()
    assert close(first[1:2], expected)


@pytest.mark.parametrize("selection", ["all", "answer"])
def test_losses_are_those_of_a_loop(selection: str) -> None:
    model = tiny("llama")
    texts = [Encoded(ids, 3) for n in (4, 7, 5) for ids in of_tokens(HIGH, 1, length=n, seed=n)]
    expected = []
    for text in texts:
        ids = torch.tensor(text.ids)
        with torch.no_grad():
            logits = model(ids[None]).logits[0]
        start = 1 if selection == "all" else text.answer - 1  # a row's first token is never read
        losses = torch.nn.functional.cross_entropy(logits[start:-1], ids[start + 1 :], reduction="none")
        expected.append(float(losses.mean()))
    assert Reader(model, 0, 2).losses(texts, selection).tolist() == pytest.approx(expected, rel=1e-4)
