"""What a strength does, measured on held-out prompts by features of the unsteered model; no judge takes part.

A logistic probe, fitted on features of source and target outputs, tells how far a steered output has come from the one
to the other. Pictures and texts differ in how outputs and features are made, and in what drift is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch

from .. import methods
from ..concept.concept import Concept
from ..probes import LinearProbe
from ..utils.progress import progress_bar
from .calibration.novelty import NearestNeighbourNovelty
from .calibration.slider_range import MAX_TRIALS, Trial, find_range
from .calibration.unit import choose, units_of


class OutcomeClassifier:
    """Tells outputs of two kinds apart by features of theirs: a linear probe, cross-validated.

    Args:
        positive, negative: features of outputs of each kind, float64 [n, features].

    Attributes:
        features: all that it was fitted on.
        accuracy: its cross-validated balanced accuracy.
    """

    def __init__(self, positive: torch.Tensor, negative: torch.Tensor) -> None:
        fitted = methods.get("dsas", "gate").cross_fit(positive, negative, rank=16, scaler="std")
        self.features = torch.cat([positive, negative])
        self.accuracy: float = fitted.evidence.balanced_accuracy
        self._probe: LinearProbe = fitted.probe

    def logit(self, features: torch.Tensor) -> torch.Tensor:
        """How much each output is of the positive kind, float64 [n]."""
        return self._probe.logit(features)[:, 0]


class HeldOutTrial(ABC):
    """Tries strengths on held-out prompts.

    An output's progress is its share of the way, by the classifier's logit, from the mean of unsteered source outputs
    to the mean of those that show all that is wanted; it is cut to [0, 1], so that an output that goes too far does not
    stand in for one that stays behind. The effect of a strength is the mean progress over `full_progress`. Displacement
    is how far source outputs move in their features, standardised, over how far the reference moves them; novelty how
    far they are from those that the classifier was fitted on, over how far unsteered ones are (`strangeness.Usual`).

    Args:
        classifier: fitted on outputs that are not among the held-out ones.
        source: features of unsteered outputs of held-out source prompts, float64 [n, features].
        wanted: features of outputs that show all that is wanted.
        reference: features of held-out target outputs, the first of them pairs of the source's.
    """

    #: the name of the logit's span in the evidence
    SPAN: ClassVar[str]
    #: mean progress that counts as an effect of 1
    full_progress = 1.0

    def __init__(
        self, classifier: OutcomeClassifier, source: torch.Tensor, wanted: torch.Tensor, reference: torch.Tensor
    ) -> None:
        self.classifier, self.source = classifier, source
        self.start = self.target_scores(source).mean()
        self.span = float(self.target_scores(wanted).mean() - self.start)
        both = torch.cat([source, reference])
        self.scale = both.std(0).clamp_min(1e-6)
        self.reference_displacement = max(self._displacement(reference), 1e-6)
        self.usual = NearestNeighbourNovelty(classifier.features, both)

    def __call__(self, concept: Concept, strength: float) -> Trial:
        """What a concept does at a map strength of either sign."""
        features, drift = self.measure(concept.with_unit(1.0), strength)
        return Trial(
            effect=self.progress(features) / self.full_progress,
            drift=drift,
            displacement=self._displacement(features) / self.reference_displacement,
            novelty=self.usual.novelty(features),
        )

    @abstractmethod
    def measure(self, concept: Concept, strength: float) -> tuple[torch.Tensor, float]:
        """Features of the steered outputs of held-out source prompts, and the drift of control prompts."""

    def target_scores(self, features: torch.Tensor) -> torch.Tensor:
        """How much outputs are like targets rather than sources, float64 [n]."""
        return self.classifier.logit(features)

    def progress(self, features: torch.Tensor) -> float:
        """The mean progress of outputs."""
        return float(((self.target_scores(features) - self.start) / self.span).clamp(0, 1).mean())

    def _displacement(self, features: torch.Tensor) -> float:
        """Median distance from the unsteered outputs, from each to its pair, where it has one."""
        count = min(len(features), len(self.source))
        return float(((features[:count] - self.source[:count]) / self.scale).norm(dim=1).median())

    def choose_unit(
        self, concept: Concept, drift: float, done: Callable[[], object] = lambda: None
    ) -> tuple[float, dict[str, Any]]:
        """The smallest unit whose effect is 1 within the limit of drift, and the evidence; see `unit.choose`."""
        unit, summary = choose(lambda unit: self(concept, unit)[:2], drift, done, units_of(concept.method))
        return unit, self.unit_evidence(summary)

    def calibrate(self, concept: Concept, drift: float, show_progress: bool = False) -> Concept:
        """The concept with its unit and range found anew; see `calibration.calibrated`."""
        with progress_bar(MAX_TRIALS, "trying strengths", show_progress) as bar:
            ranged = find_range(concept, lambda strength: self(concept, strength), drift, bar.update)
        unit_evidence = self.unit_evidence(ranged.evidence["unit"])
        return replace(ranged, evidence={**ranged.evidence, "unit": unit_evidence})

    def unit_evidence(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """The summary that `unit.choose` gives of its trials, with what tells how far to trust them."""
        return {**summary, self.SPAN: self.span, "eyes_accuracy": self.classifier.accuracy}
