"""What a strength does to pictures, measured on held-out prompts by features of the unsteered denoiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from dsas_core.concept.concept import Concept
from dsas_core.concept.evidence import MIN_CLASSIFIER_ACCURACY
from dsas_core.learning.calibration.unit import KNEE, UNITS, Trial, choose, units_of
from dsas_core.learning.held_out_trial import HeldOutTrial, OutcomeClassifier
from dsas_core.model.sites import Site

from ..generation.compare import UNCHANGED, change
from ..generation.pictures import decode, latent_batches, latents_of, seeds_for
from ..generation.settings import Settings
from ..pipelines.adapter import PipelineAdapter
from ..pipelines.batch_layout import BatchLayout
from ..steering.concept_masks import LateMeans, MaskRule, find_masks, rule_as_evidence
from ..steering.steer import steer
from .denoiser_features import DenoiserFeatures
from .kept import Kept, change_beside, count_kept
from .mask_fit import pool_patches
from .reach import reach_of

#: a unit among those that may be chosen, and the effect that there should be at least for the others to be tried
PROBED, PROMISING = UNITS[len(UNITS) // 2], 0.75


class HeldOutPrompts(NamedTuple):
    """Prompts that nothing is fitted on.

    Args:
        source: prompts that show the concept.
        target: the same asking in words for what it becomes.
        control: prompts that must stay.
        neighbours: of each source prompt, the other thing in it that must stay, or None.
    """

    source: Sequence[str]
    target: Sequence[str]
    control: Sequence[str]
    neighbours: Sequence[str | None] = ()


class _Drawn(NamedTuple):
    latents: torch.Tensor
    pictures: list[Image.Image]


class PictureTrial(HeldOutTrial):
    """Tries strengths on held-out prompts, see `HeldOutTrial`.

    The wanted outputs, and the reference, are the pictures of target prompts, which ask in words. An effect of 1 is
    their mean progress. Drift is the share of pictures that change where they must stay: those of control prompts, and
    around the concept those in which it is beside something else.

    Args:
        adapter: of the pipeline.
        latents: of the "source" and "target" pictures that the classifier is fitted on.
        held_out: prompts to try strengths on.
        settings: of the pictures.
        seed: of the run, from which the seeds of these pictures derive.
        batch: prompts per generation.
    """

    SPAN = "asked_in_words"

    def __init__(
        self,
        adapter: PipelineAdapter,
        latents: Mapping[str, torch.Tensor],
        held_out: HeldOutPrompts,
        settings: Settings,
        seed: int,
        batch: int,
    ) -> None:
        self.adapter, self.settings, self.batch = adapter, settings, batch
        self.features = DenoiserFeatures(adapter, settings)
        classifier = OutcomeClassifier(self.features(latents["target"]), self.features(latents["source"]))
        self.prompts = held_out
        self.neighbours = held_out.neighbours or [None] * len(held_out.source)
        self._seeds = {
            side: seeds_for(getattr(held_out, side), seed + 1 + (side == "control")) for side in ("source", "control")
        }
        self._steered: dict[tuple[Concept, float, str], _Drawn] = {}
        self._grids: dict[Site, torch.Tensor] = {}  # what probes of masks read of the unsteered source pictures
        self._source, self._control = self._draw_source(), self._draw("control")
        target = latents_of(adapter, held_out.target, seeds_for(held_out.target, seed + 1), settings, batch)
        source, wanted = self.features(self._source.latents), self.features(target)
        super().__init__(classifier, source, wanted, wanted)
        self.span = max(self.span, 1e-6)
        self.full_progress = max(self.progress(wanted), 1e-6)

    # ---- pictures ----------------------------------------------------------------------------------------------------

    def _draw(self, side: str) -> _Drawn:
        latents = latents_of(self.adapter, getattr(self.prompts, side), self._seeds[side], self.settings, self.batch)
        return _Drawn(latents, decode(self.adapter, latents))

    def _draw_source(self) -> _Drawn:
        """Unsteered pictures of source prompts; keeps what probes of masks read."""
        parts, sites = [], self.adapter.find_mask_sites()
        grids: dict[Site, list[torch.Tensor]] = {site: [] for site in sites}
        prompts, seeds = self.prompts.source, self._seeds["source"]
        with (
            BatchLayout(self.adapter) as layout,
            LateMeans(layout, sites, lambda site, x: pool_patches(x)) as means,
        ):
            for latents in latent_batches(self.adapter, prompts, seeds, self.settings, self.batch):
                parts.append(latents)
                for site, grid in means.take().items():
                    grids[site].append(grid)
        self._grids = {site: torch.cat(own) for site, own in grids.items() if own}
        latents = torch.cat(parts)
        return _Drawn(latents, decode(self.adapter, latents))

    def _draw_steered(self, concept: Concept, strength: float, side: str) -> _Drawn:
        """Pictures of a side at a map strength, each drawn once."""
        key = concept.with_unit(1.0), strength, side
        if key not in self._steered:
            with steer(self.adapter, {key[0]: strength}):
                self._steered[key] = self._draw(side)
        return self._steered[key]

    # ---- what a strength does ----------------------------------------------------------------------------------------

    def measure(self, concept: Concept, strength: float) -> tuple[torch.Tensor, float]:
        return self._features_at(concept, strength), self.measure_drift(concept, strength)

    def _features_at(self, concept: Concept, strength: float) -> torch.Tensor:
        return self.features(self._draw_steered(concept, strength, "source").latents)

    def measure_effect(self, concept: Concept, strength: float) -> float:
        """The effect of a map strength."""
        return self.progress(self._features_at(concept, strength)) / self.full_progress

    def measure_drift(self, concept: Concept, strength: float) -> float:
        """The share of pictures that a map strength changes where they must stay."""
        return self.count_kept(concept, strength).drift

    def count_kept(self, concept: Concept, strength: float) -> Kept:
        """What of the held-out pictures stays at a map strength, part by part."""
        source, control = (self._draw_steered(concept, strength, side).pictures for side in ("source", "control"))
        around = change_beside(self._source.pictures, source, self._masks_of(concept))
        return count_kept(around, self.neighbours, change(self._control.pictures, control) > UNCHANGED)

    def _masks_of(self, concept: Concept) -> list[np.ndarray] | None:
        """Where the unsteered pictures of source prompts show a concept; None where it has no place."""
        return find_masks(concept, self._grids, self._source.pictures[0].size)

    def is_promising(self, concept: Concept) -> bool:
        """Whether a large map strength has much of the effect, so that the right one is worth finding."""
        units = units_of(concept.method)
        return self.measure_effect(concept, PROBED if PROBED in units else units[0]) >= PROMISING

    def _choose(
        self,
        concept: Concept,
        drift: float,
        attempt: Callable[[float], Trial],
        done: Callable[[], object] = lambda: None,
    ) -> tuple[float, dict[str, Any]]:
        """The smallest unit that has nearly the full effect, as a larger one changes the rest more."""
        units, drift_of = units_of(concept.method), partial(self.measure_drift, concept)
        return choose(lambda unit: (self.measure_effect(concept, unit), 0.0), drift, done, units, KNEE, drift_of)

    def measure_reach(self, concept: Concept) -> Concept:
        """The concept with a mask that grows by how far, at a strength of 1, its change reaches beyond its thing."""
        rule = MaskRule.of(concept)
        if rule is None or not rule.localises:
            return concept
        plain = replace(concept, evidence={**concept.evidence, "mask": rule_as_evidence(replace(rule, growth=0.0))})
        steered, masks = self._draw_steered(concept, concept.unit, "source").pictures, self._masks_of(plain)
        assert masks is not None
        pairs = zip(steered, self._source.pictures, strict=True)
        growth = reach_of([np.asarray(after, float) - np.asarray(before, float) for after, before in pairs], masks)
        return replace(concept, evidence={**concept.evidence, "mask": rule_as_evidence(replace(rule, growth=growth))})

    def unit_evidence(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        reached = summary["reached"] and self.classifier.accuracy >= MIN_CLASSIFIER_ACCURACY
        return {**super().unit_evidence(summary), "reached": reached}
