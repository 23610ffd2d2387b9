"""What a strength does, measured on held-out prompts by features of the unsteered model, without any other judge.

A logistic probe, fitted on features of source and target outputs, measures how far a steered output has moved from the
former to the latter. Pictures and texts differ in how outputs, features and drift are computed.
"""

from __future__ import annotations

import math
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
    """Tells outputs of two kinds apart by their features: a linear probe, cross-validated.

    Args:
        positive: features of outputs of the positive kind, float64 [n, features].
        negative: features of outputs of the negative kind, float64 [m, features].

    Attributes:
        features: all features that it was fitted on.
        accuracy: its cross-validated balanced accuracy.

    Example:
        >>> noise = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> classifier = OutcomeClassifier(noise[:10] + 4, noise[10:] - 4)
        >>> classifier.accuracy, (classifier.logit(torch.eye(3).double() + 4) > 0).tolist()
        (1.0, [True, True, True])
    """

    def __init__(self, positive: torch.Tensor, negative: torch.Tensor) -> None:
        fitted = methods.get("dsas", "gate").cross_fit(positive, negative, rank=16, scaler="std")
        self.features = torch.cat([positive, negative])
        self.accuracy: float = fitted.evidence.balanced_accuracy
        self._probe: LinearProbe = fitted.probe

    def logit(self, features: torch.Tensor) -> torch.Tensor:
        """The logit that each output is of the positive kind, float64 [n]."""
        return self._probe.logit(features)[:, 0]


class HeldOutTrial(ABC):
    """Tries strengths on held-out prompts.

    An output's progress is where its classifier logit lies between the mean logit of unsteered source outputs (0) and
    that of the wanted outputs (1). It is clipped to [0, 1], so that an output that overshoots does not compensate for
    one that stays behind. The effect of a strength is the mean progress over `full_progress`. Displacement is how far
    source outputs move in their standardised features, over how far the reference moves them; novelty how far they are
    from the outputs that the classifier was fitted on, over how far unsteered ones are
    (`calibration.novelty.NearestNeighbourNovelty`).

    Args:
        classifier: fitted on outputs that are not among the held-out ones.
        source: features of unsteered outputs of held-out source prompts, float64 [n, features].
        wanted: features of outputs that show all that is wanted, float64 [m, features].
        reference: features of held-out target outputs, float64 [k, features], the first of them paired with the
            source's.
    """

    #: key of the logit's span in the evidence
    SPAN: ClassVar[str]
    #: mean progress that counts as an effect of 1
    full_progress = 1.0

    def __init__(self, classifier: Any, source: torch.Tensor, wanted: torch.Tensor, reference: torch.Tensor) -> None:
        self.classifier, self.source = classifier, source
        self.start = self.target_scores(source).mean()
        self.span = float(self.target_scores(wanted).mean() - self.start)
        both = torch.cat([source, reference])
        self.scale = both.std(0).clamp_min(1e-6)
        self.reference_displacement = max(self._displacement(reference), 1e-6)
        self.usual = NearestNeighbourNovelty(classifier.features, both)

    def __call__(self, concept: Concept, strength: float, drift_limit: float = math.inf) -> Trial:
        """Try a concept at a map strength of either sign; a drift of the limit counts as a harm of 1."""
        features, drift = self.measure(concept.with_unit(1.0), strength)
        return Trial(
            effect=self.progress(features) / self.full_progress,
            drift=drift,
            displacement=self._displacement(features) / self.reference_displacement,
            novelty=self.usual.novelty(features),
            harm=self.harm(concept, strength, drift_limit),
        )

    @abstractmethod
    def measure(self, concept: Concept, strength: float) -> tuple[torch.Tensor, float]:
        """Features of the steered outputs of held-out source prompts, and the drift of control prompts."""

    def harm(self, concept: Concept, strength: float, drift_limit: float) -> float | None:
        """What a strength that was measured costs, in parts of the limits; None where drift alone tells it."""
        return None

    def target_scores(self, features: torch.Tensor) -> torch.Tensor:
        """The logit that outputs are like targets rather than sources, float64 [n]."""
        return self.classifier.logit(features)

    def progress(self, features: torch.Tensor) -> float:
        """The mean progress of outputs."""
        return float(((self.target_scores(features) - self.start) / self.span).clamp(0, 1).mean())

    def _displacement(self, features: torch.Tensor) -> float:
        """Median distance from the unsteered outputs, over the outputs that have a pair."""
        count = min(len(features), len(self.source))
        return float(((features[:count] - self.source[:count]) / self.scale).norm(dim=1).median())

    def choose_unit(
        self, concept: Concept, drift: float, done: Callable[[], object] = lambda: None
    ) -> tuple[float, dict[str, Any]]:
        """The unit of a concept, and the evidence."""
        unit, summary = self._choose(concept, drift, lambda strength: self(concept, strength, drift), done)
        return unit, self.unit_evidence(summary)

    def _choose(
        self,
        concept: Concept,
        drift: float,
        attempt: Callable[[float], Trial],
        done: Callable[[], object] = lambda: None,
    ) -> tuple[float, dict[str, Any]]:
        """The smallest unit whose effect is 1 within the limit of drift, and a summary; see `unit.choose`."""
        return choose(lambda unit: attempt(unit)[:2], drift, done, units_of(concept.method))

    def calibrate(self, concept: Concept, drift: float, show_progress: bool = False) -> Concept:
        """The concept with unit and range measured anew; see `slider_range.find_range`."""
        with progress_bar(MAX_TRIALS, "trying strengths", show_progress) as bar:
            ranged = find_range(
                concept,
                lambda strength: self(concept, strength, drift),
                drift,
                bar.update,
                lambda attempt: self._choose(concept, drift, attempt),
            )
        unit_evidence = self.unit_evidence(ranged.evidence["unit"])
        return replace(ranged, evidence={**ranged.evidence, "unit": unit_evidence})

    def unit_evidence(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """The summary of `_choose`, with the span and the classifier's accuracy, by which to trust it."""
        return {**summary, self.SPAN: self.span, "eyes_accuracy": self.classifier.accuracy}
