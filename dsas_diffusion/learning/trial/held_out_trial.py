"""What a strength does to pictures, measured on held-out prompts by features of the unsteered denoiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from dsas_core.concept.concept import Concept
from dsas_core.concept.evidence import MIN_CLASSIFIER_ACCURACY
from dsas_core.learning.calibration.unit import UNITS, Trial, choose, units_of
from dsas_core.learning.held_out_trial import HeldOutTrial, OutcomeClassifier
from dsas_core.learning.prompts.prompt_set import PromptSet

from ...generation.pictures import latents_of, seeds_for
from ...generation.settings import Settings
from ...pipelines.adapter import PipelineAdapter
from ...steering.concept_masks import MaskRule, rule_as_evidence
from ..reach import reach_of
from .denoiser_features import DenoiserFeatures
from .held_out_pictures import HeldOutPictures, HeldOutPrompts

#: a unit among those that may be chosen, and the effect that there should be at least for the others to be tried
PROBED, PROMISING = UNITS[len(UNITS) // 2], 0.75
#: share of the effect of all steps that later ones should have there: looks (blurred, grey, of ten things and kinds)
#: have .95 to 1 of it below timestep 500, other shapes .80 and .89
LATE_SHARE = 0.92
#: of what asking in words does, the effect that is enough: with the built-in model most pictures show it from here on
ENOUGH = 0.95


class PictureTrial(HeldOutTrial):
    """Tries strengths on held-out prompts, see `HeldOutTrial`.

    The wanted outputs, and the reference, are the pictures of target prompts, which ask in words. An effect of 1 is
    their mean progress. Drift is the share of pictures that change where they must stay: of those of control prompts,
    or around the concept of those in which it is beside something else, whichever is larger.

    Args:
        adapter: of the pipeline.
        latents: of the "source" and "target" pictures that the classifier is fitted on.
        held_out: prompts of each side to try strengths on.
        content: the prompt file, whose templates tell what is beside the concept; None where it is not known.
        settings: of the pictures.
        seed: of the run, from which the seeds of these pictures derive.
        batch: prompts per generation.
        done: called after each of `PARTS` parts of the unsteered pictures, for a progress bar.
    """

    PARTS = 2
    SPAN = "asked_in_words"

    def __init__(
        self,
        adapter: PipelineAdapter,
        latents: Mapping[str, torch.Tensor],
        held_out: Mapping[str, Sequence[str]],
        content: PromptSet | None,
        settings: Settings,
        seed: int,
        batch: int,
        done: Callable[[], object] = lambda: None,
    ) -> None:
        self.features = DenoiserFeatures(adapter, settings)
        classifier = OutcomeClassifier(self.features(latents["target"]), self.features(latents["source"]))
        self.pictures = HeldOutPictures(adapter, HeldOutPrompts.of(held_out, content), settings, seed, batch)
        done()
        texts = held_out["target"]
        target = latents_of(adapter, texts, seeds_for(texts, seed + 1), settings, batch)
        done()
        source, wanted = self.features(self.pictures.source.latents), self.features(target)
        super().__init__(classifier, source, wanted, wanted)
        self.span = max(self.span, 1e-6)
        self.full_progress = max(self.progress(wanted), 1e-6)

    # ---- what a strength does ----------------------------------------------------------------------------------------

    def measure(self, concept: Concept, strength: float) -> tuple[torch.Tensor, float]:
        return self._features_at(concept, strength), self.measure_drift(concept, strength)

    def _features_at(self, concept: Concept, strength: float) -> torch.Tensor:
        return self.features(self.pictures.steered(concept, strength, "source").latents)

    def measure_effect(self, concept: Concept, strength: float) -> float:
        """The effect of a map strength."""
        return self.progress(self._features_at(concept, strength)) / self.full_progress

    def measure_drift(self, concept: Concept, strength: float) -> float:
        """The larger share of pictures that a map strength changes where they must stay."""
        return self.pictures.count_kept(concept, strength).drift

    def harm(self, concept: Concept, strength: float, drift_limit: float) -> float:
        """The larger share of pictures that change, without the concept and beside it, in parts of the limit.

        Beside it, as many may change as at a strength of 1, where that is more than the limit.
        """
        limit = max(drift_limit, 1e-6)
        kept, usual = (self.pictures.count_kept(concept, at) for at in (strength, concept.unit))
        return max(kept.without.share / limit, kept.beside.share / max(limit, usual.beside.share))

    def is_promising(self, late: Concept, concept: Concept) -> bool:
        """Whether a large map strength in late steps has much of the effect, and nearly that of all steps.

        Otherwise no unit is worth finding: larger ones move what is beside the thing before they change its shape.
        """
        units = units_of(concept.method)
        effect = partial(self.measure_effect, strength=PROBED if PROBED in units else units[0])
        return effect(late) >= max(PROMISING, LATE_SHARE * effect(concept))

    def _choose(
        self,
        concept: Concept,
        drift: float,
        attempt: Callable[[float], Trial],
        done: Callable[[], object] = lambda: None,
    ) -> tuple[float, dict[str, Any]]:
        """The smallest unit that has most of the effect, as a larger one changes the rest more."""
        units, drift_of = units_of(concept.method), partial(self.measure_drift, concept)
        return choose(lambda unit: (self.measure_effect(concept, unit), 0.0), drift, done, units, ENOUGH, drift_of)

    def measure_reach(self, concept: Concept) -> Concept:
        """The concept with a mask that grows by how far, at a strength of 1, its change reaches beyond its thing."""
        rule = MaskRule.of(concept)
        if rule is None or not rule.localises:
            return concept
        plain = replace(concept, evidence={**concept.evidence, "mask": rule_as_evidence(replace(rule, growth=0.0))})
        steered, masks = self.pictures.steered(concept, concept.unit, "source").pictures, self.pictures.masks_of(plain)
        assert masks is not None
        pairs = zip(steered, self.pictures.source.pictures, strict=True)
        growth = reach_of([np.asarray(after, float) - np.asarray(before, float) for after, before in pairs], masks)
        return replace(concept, evidence={**concept.evidence, "mask": rule_as_evidence(replace(rule, growth=growth))})

    def unit_evidence(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        reached = summary["reached"] and self.classifier.accuracy >= MIN_CLASSIFIER_ACCURACY
        return {**super().unit_evidence(summary), "reached": reached}
