"""Whether what a language model wrote is like the source or like the target texts of a prompt file.

Two judges of one interface, both made of activations of the unsteered model. `AnswerClassifier` judges answers of
conversations as a whole, behind the prompts of controls. `TextDetector` judges what continues plain texts by their
strongest tokens, as `probes.TextProbe` reads a text: most of a toxic continuation is harmless.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from ... import methods
from ...learning.held_out_trial import OutcomeClassifier
from ...model.hooks import Call, visit
from ...model.sites import Site
from ...probes import LinearProbe
from ...probes.running import text_scores
from ..model.conversations import Encoded
from ..model.layers import find_read_sites, roots_of
from .reader import Reader, sites_of

#: what a model wrote, in tokens
Answers = Sequence[tuple[int, ...]]


class OutcomeJudge(Protocol):
    """Judges what was written.

    Attributes:
        features: of the texts that it was fitted on, float64 [n, features].
        accuracy: balanced accuracy on texts that it was not fitted on.
    """

    features: torch.Tensor
    accuracy: float

    def read(self, answers: Answers, places: Sequence[int] | None = None) -> torch.Tensor:
        """Features of what was written, float64 [n, features].

        Args:
            answers: what was written.
            places: the number of each answer, by which it is read in context; None for 0, 1, …
        """
        ...

    def logit(self, features: torch.Tensor) -> torch.Tensor:
        """How much it is like the source texts, float64 [n]."""
        ...


class AnswerClassifier(OutcomeClassifier):
    """Judges answers by their mean activation at the output of every layer, all read behind control prompts.

    Args:
        reader: runs the model.
        contexts: control prompts, with their answers.
        source: answers of the kind to be left.
        target: answers of the kind that is wanted.
    """

    def __init__(self, reader: Reader, contexts: Sequence[Encoded], source: Answers, target: Answers) -> None:
        self._reader, self._contexts = reader, contexts
        super().__init__(self.read(source), self.read(target))

    def read(self, answers: Answers, places: Sequence[int] | None = None) -> torch.Tensor:
        contexts = [self._contexts[i % len(self._contexts)] for i in places or range(len(answers))]
        texts = [context.answered(answer) for context, answer in zip(contexts, answers, strict=True)]
        return self._reader.states(texts).double()


class TextDetector:
    """Judges texts by their strongest and their mean token, at several early layers.

    Args:
        reader: runs the model.
        source: texts to be left, to fit on.
        target: texts that are wanted, to fit on.
        unseen: texts of both kinds, to measure the accuracy on.
    """

    def __init__(self, reader: Reader, source: Answers, target: Answers, unseen: tuple[Answers, Answers]) -> None:
        self._reader = reader
        # nothing is steered while it reads, so a model of one layer is read there
        sites = find_read_sites(reader.model, sites_of(reader)) or sites_of(reader)
        means = [
            reader.capture([Encoded(ids, len(ids)) for ids in side], sites, [("", "all")], tokens=0)
            for side in (source, target)
        ]
        gate = methods.get("dsas", "gate")
        self._probes: dict[Site, LinearProbe] = {
            site: gate.fit(*(side.rows[site, 0, ""].gathered("pooled") for side in means), rank="ridge", scaler="std")
            for site in sites
        }
        self.features = self.read([*source, *target])
        logits = self.logit(self.features)
        middle = (logits[: len(source)].median() + logits[len(source) :].median()) / 2
        shares = [float((self.logit(self.read(side)) > middle).double().mean()) for side in unseen]
        self.accuracy = (shares[0] + 1 - shares[1]) / 2

    def read(self, answers: Answers, places: Sequence[int] | None = None) -> torch.Tensor:
        rows: dict[int, torch.Tensor] = {}
        texts = [Encoded((self._reader.pad, *answer), 1 + len(answer)) for answer in answers]  # the first is not read
        for chosen, batch in self._reader.batches_by_length(texts):
            recorder = _ScoreRecorder(self._probes, batch.token_mask("all").to(self._reader.device))
            sites = list(self._probes)
            with self._reader.stop_after(sites), visit(roots_of(self._reader.model), sites, recorder):
                self._reader.read(batch)
            rows |= zip(chosen, torch.stack(recorder.scores, 1).cpu(), strict=True)
        return torch.stack([rows[i] for i in range(len(texts))]).double()

    def logit(self, features: torch.Tensor) -> torch.Tensor:
        return features.mean(1)


class _ScoreRecorder:
    """A visitor that keeps the score of each text at its end, at every site: [rows] for each."""

    def __init__(self, probes: dict[Site, LinearProbe], mask: torch.Tensor) -> None:
        self._probes, self._mask = probes, mask
        self.scores: list[torch.Tensor] = []

    def begin(self, root: str, call: Call) -> None:
        """Every row counts."""

    def visit(self, site: Site, x: torch.Tensor) -> None:
        logits = self._probes[site].map_tensors(lambda tensor: tensor.to(x.device)).logit(x)[..., 0].float()
        self.scores.append(text_scores(logits, self._mask)[0][:, -1])
