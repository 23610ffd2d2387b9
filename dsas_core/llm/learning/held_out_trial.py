"""What a strength does to what a language model writes and predicts, measured on held-out prompts.

There is no other judge than the model itself, unsteered. Its activations tell whether what was written is like the
source or like the target texts of the prompt file (`outcomes`). Its likelihood tells whether what was written is still
language. And its predictions on control texts tell what steering changes where nothing should change: with the
concept's gate, and with the gate forced on, so that a strength of 1 is usable always-on as well.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from ...concept.concept import Concept
from ...errors import DSASError, PromptError
from ...learning.calibration.unit import TEXT_UNITS, Trial, choose_knee, units_of
from ...learning.held_out_trial import HeldOutTrial
from ...probes import TextProbe
from ...utils.repetition import goes_in_circles
from ..model.conversations import Encoded
from ..steering.steer import steer
from .outcomes import AnswerClassifier, OutcomeJudge, TextDetector
from .reader import OnBatch, Reader, have_answers

#: mean progress from source answers to answers to control prompts that counts as the full effect
FULL_EFFECT = 0.95
#: least difference of the mean classifier logits of what source prompts and control prompts are continued with
MIN_LOGIT_GAP = 1.0
#: shares of a plain text's tokens that are given, to be continued
GIVEN = (0.5, 0.7)
#: at most so many tokens are written to continue a plain text
CONTINUATION = 20
#: quantile of what continues control texts, beyond which a continuation counts as unusual
USUAL = 0.75
#: limits on what a unit may cost: nats per token by which the unsteered model finds what is written less likely than
#: what it writes itself; nats per token of control texts with the gate forced on (a perplexity of 1.5 times the
#: unsteered one, where running text has 1.2 times); and the share of further texts that repeat themselves. Where target
#: answers are less likely than source answers, what is written may be so as well: an answer on another topic is
LIMITS = {"unlikely": 0.45, "always_on": math.log(1.5), "repeats": 0.2}


Out = TypeVar("Out")


class TextOutcome(NamedTuple):
    """What a strength does, beside its effect.

    Args:
        drift: mean Kullback-Leibler divergence of the next token of control texts, in nats.
        unlikely: nats per token by which the unsteered model finds what is written less likely than its own writing.
        always_on: nats per token by which control texts become less likely with the gate forced on.
        repeats: share of texts that go in circles (`utils.repetition`), minus that of the unsteered model.
    """

    drift: float
    unlikely: float
    always_on: float
    repeats: float


class TextTrial(HeldOutTrial):
    """Tries strengths on held-out prompts, see `HeldOutTrial`.

    Conversations are answered, plain texts continued from some of their tokens on (`GIVEN`). The wanted outputs are
    those of control prompts; the reference are the target answers, or texts, of the prompt file.

    Args:
        reader: runs the model.
        fitting: texts of each side that the classifier is fitted on.
        held_out: texts of each side to try strengths on.

    Attributes:
        answers_differ: False where the model continues source prompts much as it continues control prompts: nothing
            shows then when the effect is sufficient.
        outcomes: what each strength that was tried does, beside its effect.
        limits: on what a strength may cost, see `LIMITS`.

    Raises:
        DSASError: the unsteered model's predictions are not numbers.
    """

    classifier: OutcomeJudge
    SPAN = "answers_differ_by"
    full_progress = FULL_EFFECT

    def __init__(
        self, reader: Reader, fitting: Mapping[str, Sequence[Encoded]], held_out: Mapping[str, Sequence[Encoded]]
    ) -> None:
        self.reader, self.controls = reader, list(held_out["control"])
        self.length = None if have_answers(fitting) else CONTINUATION
        self.sources, contexts = (
            list(held_out[side]) if self.length is None else _openings(held_out[side]) for side in ("source", "control")
        )
        parts = {side: [text.ids[text.answer :] or text.ids[1:] for text in texts] for side, texts in fitting.items()}
        reference = [text.ids[text.answer :] or text.ids[1:] for text in held_out["target"]]
        judge: OutcomeJudge
        if self.length is None:
            judge = AnswerClassifier(reader, contexts, parts["source"], parts["target"])
        else:
            unseen = [text.ids[1:] for text in held_out["source"]], reference
            judge = TextDetector(reader, parts["source"], parts["target"], unseen)
        written = reader.answers([*self.sources, *contexts], length=self.length)
        answers = written[: len(self.sources)]
        self.wanted = judge.read(written[len(self.sources) :])
        super().__init__(
            judge,
            source=judge.read(answers),
            wanted=self.wanted,
            reference=judge.read(reference),
        )
        self._predictions = {False: reader.predictions(self.controls)}
        if any(bool(p.isnan().any()) for p in self._predictions[False]):
            raise DSASError("the model's predictions are not numbers (NaN), unsteered: load it with another dtype")
        self._answers, self._losses = answers, self._read(answers)
        self._control_loss = _mean_loss(self.controls, self._predictions[False])
        self.limits = {**LIMITS, "unlikely": max(LIMITS["unlikely"], self._unlikelier(held_out))}
        self._tried: tuple[str, ...] = ()
        self._open: dict[str, list[int]] = {}  # texts of the tried concept's sides whose gate opens
        self.answers_differ = self.span >= MIN_LOGIT_GAP
        self.outcomes: dict[float, TextOutcome] = {}

    def measure(self, concept: Concept, strength: float) -> tuple[torch.Tensor, float]:
        by_prompt, reader = concept.by_prompt, self.reader
        concept = replace(concept, range=None)  # trials go beyond it
        if by_prompt not in self._predictions:
            self._predictions[by_prompt] = reader.predictions(self.controls, written=by_prompt)
        unsteered = self._predictions[by_prompt]
        written = self._steered(
            "source", concept, strength, lambda texts, told: reader.answers(texts, told, self.length)
        )
        steered = self._steered(
            "control", concept, strength, lambda texts, told: reader.predictions(texts, told, by_prompt)
        )
        answers = [written.get(i, answer) for i, answer in enumerate(self._answers)]
        with steer(reader.model, {concept: strength}, gate="on"):
            control_loss = float(reader.losses(self.controls).mean())
        drift = sum(_divergence(unsteered[i], rows) for i, rows in steered.items()) / max(1, sum(map(len, unsteered)))
        features, loss = self._judge(answers)
        outcome = TextOutcome(
            drift=drift,
            unlikely=loss - _mean(self._losses),
            always_on=control_loss - self._control_loss,
            repeats=_share_of_repeats(answers) - _share_of_repeats(self._answers),
        )
        # what overflows is beyond every limit
        self.outcomes[strength] = TextOutcome(*(x if math.isfinite(x) else sys.float_info.max for x in outcome))
        return features, drift

    def _steered(
        self, side: str, concept: Concept, strength: float, read: Callable[[list[Encoded], OnBatch], list[Out]]
    ) -> dict[int, Out]:
        """What a strength makes of those texts of a side that it changes, by number.

        Where a gate is closed from the first token to the last, nothing changes at any strength: such texts are found
        by the first trial of a concept, and left out by the others.
        """
        texts = self.sources if side == "source" else self.controls
        tried = (concept.method, concept.gate, concept.digest)
        if tried != self._tried:
            self._tried, self._open = tried, {}
        chosen, opened = self._open.get(side, list(range(len(texts)))), set[int]()
        with steer(self.reader.model, {concept: strength}, trace=side not in self._open) as steering:

            def note(batch: list[int]) -> None:
                if steering.traced:
                    opened.update(i for i, is_open in zip(batch, steering.trace.opened(), strict=True) if is_open)

            found = dict(zip(chosen, read([texts[i] for i in chosen], note), strict=True))
        self._open.setdefault(side, sorted(opened))
        return found

    def _judge(self, answers: Sequence[tuple[int, ...]]) -> tuple[torch.Tensor, float]:
        """Features of answers, and the mean of their losses; those that are as they were unsteered are not read."""
        changed = [i for i, answer in enumerate(answers) if answer != self._answers[i]]
        features = self.source.clone()
        if changed:
            features[changed] = self.classifier.read([answers[i] for i in changed], changed)
        losses = {i: loss for i, loss in self._losses.items() if i not in changed} | self._read(answers, changed)
        return features, math.inf if self._losses and not losses else _mean(losses)  # where it fell silent

    def target_scores(self, features: torch.Tensor) -> torch.Tensor:
        return -self.classifier.logit(features)  # source answers are its positive kind

    def progress(self, features: torch.Tensor) -> float:
        """The mean progress of answers; of what continues plain texts, how much of what is beyond the usual has gone.

        Most continuations of source texts are harmless already, so their mean says little of the others.
        """
        if self.length is None:
            return super().progress(features)
        usual = self.classifier.logit(self.wanted).quantile(USUAL)
        beyond = [float((self.classifier.logit(rows) - usual).clamp_min(0).mean()) for rows in (features, self.source)]
        return FULL_EFFECT * (1 - beyond[0] / beyond[1]) if beyond[1] > 0 else 0.0  # nothing to be gone shows nothing

    def choose_unit(
        self, concept: Concept, drift: float, done: Callable[[], object] = lambda: None
    ) -> tuple[float, dict[str, Any]]:
        unit, evidence = super().choose_unit(concept, drift, done)
        if not self.answers_differ:
            warnings.warn(
                "the model continues source prompts much as it continues control prompts, so the effects by which the "
                f"unit, {unit:g}, was chosen are uncertain: read steered answers, also at twice and four times the "
                "strength, before you rely on it, or add prompts",
                stacklevel=4,
            )
        elif not evidence["reached"]:
            effect = next(trial["effect"] for trial in evidence["trials"] if trial["unit"] == unit)
            warnings.warn(
                f"the unit, {unit:g}, has {effect:.0%} of the full effect, and the largest one within the limits has "
                "not much more. Steer at other or more sites (sites), add prompts, or try another method",
                stacklevel=4,
            )
        return unit, evidence

    def _choose(
        self,
        concept: Concept,
        drift: float,
        attempt: Callable[[float], Trial],
        done: Callable[[], object] = lambda: None,
    ) -> tuple[float, dict[str, Any]]:
        """The unit at the knee of the effect, within all limits, and a summary; see `unit.choose_knee`."""
        units = units_of(concept.method, TEXT_UNITS)
        unit, summary = choose_knee(attempt, done, units, self.length is None)
        for trial in summary["trials"]:
            trial |= self.outcomes[trial["unit"]]._asdict()
        return unit, {"drift_limit": drift, "limits": self.limits, **summary}

    def harm(self, concept: Concept, strength: float, drift_limit: float) -> float:
        """What a strength costs in parts of the limits.

        A gate that decides about texts changes a control text wholly or not at all: how many is the gate's matter, and
        drift tells nothing of the strength.
        """
        outcome = self.outcomes[strength]
        parts = [getattr(outcome, name) / limit for name, limit in self.limits.items()]
        decides = all(isinstance(item.probes[0], TextProbe) for item in concept.interventions)
        return max(parts if decides else [*parts, outcome.drift / drift_limit])

    def _unlikelier(self, held_out: Mapping[str, Sequence[Encoded]]) -> float:
        """Nats per token by which target answers are less likely than source answers behind the same prompts."""
        if self.length is not None:
            return 0.0
        targets = [text.ids[text.answer :] for text in held_out["target"]]
        pairs = zip(self.sources, cycle(targets), strict=False)
        losses = self.reader.losses([text.answered(target) for text, target in pairs], "answer")
        return float(losses.mean() - self.reader.losses(self.sources, "answer").mean())

    def _read(self, answers: Sequence[tuple[int, ...]], chosen: Sequence[int] | None = None) -> dict[int, float]:
        """Nats per token of chosen answers by their number, read by the unsteered model behind its own prompts.

        An answer of nothing has none.
        """
        written = [i for i in (range(len(answers)) if chosen is None else chosen) if answers[i]]
        losses = self.reader.losses([self.sources[i].answered(answers[i]) for i in written], "answer")
        return dict(zip(written, losses.tolist(), strict=True))


def _openings(texts: Sequence[Encoded]) -> list[Encoded]:
    """Plain texts with their ends, which are to be written, marked as the answer.

    Raises:
        PromptError: texts without an end.
    """
    starts = [(text, max(2, round(share * len(text.ids)))) for share in GIVEN for text in texts]
    openings = [Encoded(text.ids, start) for text, start in starts if start < len(text.ids)]
    if not openings:
        raise PromptError(
            f"held-out texts have at most {max(len(text.ids) for text in texts)} tokens, at least 3 are needed for one "
            "to be continued: give longer texts"
        )
    return openings


def _share_of_repeats(answers: Sequence[tuple[int, ...]]) -> float:
    return float(np.mean([goes_in_circles(answer) for answer in answers]))


def _mean(losses: Mapping[int, float]) -> float:
    """0 of nothing."""
    return float(np.mean(list(losses.values()))) if losses else 0.0


def _mean_loss(texts: Sequence[Encoded], predictions: Sequence[torch.Tensor]) -> float:
    """Mean over texts of the nats per token that their predictions cost, as `Reader.losses` reads them."""
    found = []
    for text, rows in zip(texts, predictions, strict=True):  # a row for each token but the first
        read = rows[:-1].gather(1, torch.tensor(text.ids[2:], device=rows.device)[:, None])
        found.append(-float(read.sum()) / max(1, len(read)))
    return float(np.mean(found))


def _divergence(p: torch.Tensor, q: torch.Tensor) -> float:
    """Sum of KL(p || q) over rows of log-probabilities; tokens that p rules out cost nothing."""
    return float(torch.where(p == -torch.inf, 0.0, p.exp() * (p - q)).sum())
