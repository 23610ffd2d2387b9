"""What a strength does to pictures, measured on held-out prompts by features of the unsteered denoiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from dsas_core.concept.concept import Concept
from dsas_core.concept.evidence import MIN_CLASSIFIER_ACCURACY
from dsas_core.learning.held_out_trial import HeldOutTrial, OutcomeClassifier

from ..generation.compare import UNCHANGED, change
from ..generation.pictures import decode, latents_of, seeds_for
from ..generation.settings import Settings
from ..pipelines.adapter import PipelineAdapter
from ..steering.concept_masks import MaskRule, rule_as_evidence
from ..steering.steer import steer
from .denoiser_features import DenoiserFeatures
from .reach import measure_reach


class PictureTrial(HeldOutTrial):
    """Tries strengths on held-out prompts, see `HeldOutTrial`.

    The wanted outputs, and the reference, are the pictures of target prompts, which ask in words. An effect of 1 is
    their mean progress. Drift is the share of control pictures that change.

    Args:
        adapter: of the pipeline.
        latents: of the "source" and "target" pictures that the classifier is fitted on.
        held_out: prompts of each side to try strengths on.
        settings: of the pictures.
        seed: of the run, from which the seeds of these pictures derive.
        batch: prompts per generation.
    """

    SPAN = "asked_in_words"

    def __init__(
        self,
        adapter: PipelineAdapter,
        latents: Mapping[str, torch.Tensor],
        held_out: Mapping[str, Sequence[str]],
        settings: Settings,
        seed: int,
        batch: int,
    ) -> None:
        self.adapter, self.settings, self.batch = adapter, settings, batch
        self.features = DenoiserFeatures(adapter, settings)
        classifier = OutcomeClassifier(self.features(latents["target"]), self.features(latents["source"]))
        unsteered, seeds = {}, {}
        for i, (side, texts) in enumerate(held_out.items()):
            seeds[side] = seeds_for(texts, seed + 1 + (i == 2))
            unsteered[side] = latents_of(self.adapter, texts, seeds[side], settings, batch)
        self.sources = held_out["source"]
        self.texts = [*self.sources, *held_out["control"]]
        self.seeds = [*seeds["source"], *seeds["control"]]
        self.controls = decode(self.adapter, unsteered["control"])
        source, target = (self.features(unsteered[side]) for side in ("source", "target"))
        super().__init__(classifier, source, target, target)
        self.span = max(self.span, 1e-6)
        self.full_progress = max(self.progress(target), 1e-6)

    def measure(self, concept: Concept, strength: float) -> tuple[torch.Tensor, float]:
        with steer(self.adapter, {replace(concept, range=None): strength}):  # trials go beyond it
            latents = latents_of(self.adapter, self.texts, self.seeds, self.settings, self.batch)
        controls = decode(self.adapter, latents[len(self.source) :])
        changed = change(self.controls, controls) > UNCHANGED
        return self.features(latents[: len(self.source)]), float(changed.mean())

    def measure_reach(self, concept: Concept) -> Concept:
        """The concept with a mask that grows by how far, at a strength of 1, its change reaches beyond its thing."""
        rule = MaskRule.of(concept)
        if rule is None or not rule.localises:
            return concept
        seeds = self.seeds[: len(self.sources)]
        growth = measure_reach(self.adapter, concept, self.sources, seeds, self.settings, self.batch)
        return replace(concept, evidence={**concept.evidence, "mask": rule_as_evidence(replace(rule, growth=growth))})

    def unit_evidence(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        reached = summary["reached"] and self.classifier.accuracy >= MIN_CLASSIFIER_ACCURACY
        return {**super().unit_evidence(summary), "reached": reached}
