"""What a strength does to a language model's answers and predictions, measured on held-out prompts.

There is no other judge than the model's own activations: unsteered, it reads an answer behind a control prompt, and a
classifier fitted on the source and target answers of the prompt file decides which of the two it is like.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ...concept.concept import Concept
from ...errors import DSASError
from ...learning.held_out_trial import HeldOutTrial, OutcomeClassifier
from ..model.conversations import Encoded
from ..steering.steer import steer
from .reader import Reader

#: mean progress from source answers to answers to control prompts that counts as the full effect
FULL_EFFECT = 0.95
#: least difference of the mean classifier logits of answers to source prompts and to control prompts
MIN_LOGIT_GAP = 1.0


class TextTrial(HeldOutTrial):
    """Tries strengths on held-out conversations, see `HeldOutTrial`.

    The wanted outputs are the answers to control prompts; the reference are the target answers of the prompt file.
    Drift is the mean Kullback-Leibler divergence of the next token, in nats, over the tokens of control prompts.

    Args:
        reader: runs the model.
        fitting: texts of each side that the classifier is fitted on.
        held_out: texts of each side to try strengths on.

    Attributes:
        answers_differ: False where the model answers source prompts much as it answers control prompts: nothing shows
            then when the effect is sufficient.

    Raises:
        DSASError: the unsteered model's predictions are not numbers.
    """

    SPAN = "answers_differ_by"
    full_progress = FULL_EFFECT

    def __init__(
        self, reader: Reader, fitting: Mapping[str, Sequence[Encoded]], held_out: Mapping[str, Sequence[Encoded]]
    ) -> None:
        self.reader, self.sources, self.contexts = reader, list(held_out["source"]), list(held_out["control"])

        def written(texts: Sequence[Encoded]) -> torch.Tensor:
            return self._features([text.ids[text.answer :] for text in texts])

        super().__init__(
            OutcomeClassifier(written(fitting["source"]), written(fitting["target"])),
            source=self._features(reader.answers(self.sources)),
            wanted=self._features(reader.answers(self.contexts)),
            reference=written(held_out["target"]),
        )
        self._predictions = {False: reader.predictions(self.contexts)}
        if any(bool(p.isnan().any()) for p in self._predictions[False]):
            raise DSASError("the model's predictions are not numbers (NaN), unsteered: load it with another dtype")
        self.answers_differ = self.span >= MIN_LOGIT_GAP

    def measure(self, concept: Concept, strength: float) -> tuple[torch.Tensor, float]:
        by_prompt = concept.by_prompt
        if by_prompt not in self._predictions:
            self._predictions[by_prompt] = self.reader.predictions(self.contexts, by_prompt)
        unsteered = self._predictions[by_prompt]
        with steer(self.reader.model, {concept: strength}):
            answers = self.reader.answers(self.sources)
            steered = self.reader.predictions(self.contexts, by_prompt)
        divergence = sum(_divergence(p, q) for p, q in zip(unsteered, steered, strict=True))
        return self._features(answers), divergence / max(1, sum(map(len, unsteered)))

    def target_scores(self, features: torch.Tensor) -> torch.Tensor:
        return -self.classifier.logit(features)  # source answers are its positive kind

    def choose_unit(
        self, concept: Concept, drift: float, done: Callable[[], object] = lambda: None
    ) -> tuple[float, dict[str, Any]]:
        if self.answers_differ:
            return super().choose_unit(concept, drift, done)
        warnings.warn(
            "the model answers source prompts much as it answers control prompts, so nothing tells when enough is "
            "done: the unit is 1, the map as it was fitted",
            stacklevel=4,
        )
        return 1.0, self.unit_evidence({"drift_limit": drift, "trials": [], "reached": False})

    def _features(self, answers: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """Features of answers, all read behind control prompts, so that only answers differ: float64 [n, features]."""
        contexts = [self.contexts[i % len(self.contexts)] for i in range(len(answers))]
        pairs = zip(contexts, answers, strict=True)
        texts = [Encoded((*text.ids[: text.answer], *answer), text.answer) for text, answer in pairs]
        return self.reader.states(texts).double()


def _divergence(p: torch.Tensor, q: torch.Tensor) -> float:
    """Sum of KL(p || q) over rows of log-probabilities; tokens that p rules out cost nothing."""
    return float(torch.where(p == -torch.inf, 0.0, p.exp() * (p - q)).sum())
