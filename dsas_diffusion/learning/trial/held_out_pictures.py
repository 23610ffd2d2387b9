"""Pictures of held-out prompts, unsteered and steered, and what of them stays as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from dsas_core.concept.concept import Concept
from dsas_core.learning.prompts.held_out import neighbours_in
from dsas_core.learning.prompts.prompt_set import PromptSet
from dsas_core.model.sites import Site

from ...generation.compare import UNCHANGED, change
from ...generation.pictures import decode, latent_batches, latents_of, seeds_for
from ...generation.settings import Settings
from ...pipelines.adapter import PipelineAdapter
from ...pipelines.batch_layout import BatchLayout
from ...steering.concept_masks import LateMeans, find_masks
from ...steering.steer import steer
from ..mask_fit import pool_patches
from .kept import Kept, change_beside, count_kept


class HeldOutPrompts(NamedTuple):
    """Prompts that nothing is fitted on.

    Args:
        source: prompts that show the concept.
        control: prompts that must stay.
        neighbours: of each source prompt, the other thing in it that must stay, or None.
    """

    source: Sequence[str]
    control: Sequence[str]
    neighbours: Sequence[str | None]

    @classmethod
    def of(cls, sides: Mapping[str, Sequence[str]], content: PromptSet | None) -> HeldOutPrompts:
        """Of prompts by side, and the prompt file whose templates tell what stands beside the concept."""
        return cls(sides["source"], sides["control"], neighbours_in(content, sides["source"]))


class Drawn(NamedTuple):
    """Final latents of some prompts, and their pictures."""

    latents: torch.Tensor
    pictures: list[Image.Image]


class HeldOutPictures:
    """Pictures of held-out prompts; each is drawn once.

    Args:
        adapter: of the pipeline.
        prompts: to draw.
        settings: of the pictures.
        seed: of the run, from which the seeds of these pictures derive.
        batch: prompts per generation.

    Attributes:
        source: unsteered, of source prompts.
        control: unsteered, of control prompts.
    """

    def __init__(
        self, adapter: PipelineAdapter, prompts: HeldOutPrompts, settings: Settings, seed: int, batch: int
    ) -> None:
        self.adapter, self.prompts, self.settings, self.batch = adapter, prompts, settings, batch
        self._seeds = {
            "source": seeds_for(prompts.source, seed + 1),
            "control": seeds_for(prompts.control, seed + 2),
        }
        self._steered: dict[tuple[str, float, str], Drawn] = {}  # by what a concept does, not by its evidence
        self._grids: dict[Site, torch.Tensor] = {}  # what probes of masks read of the unsteered source pictures
        self.source = self._draw_source()
        self.control = self._draw("control")

    def _draw(self, side: str) -> Drawn:
        prompts: Any = getattr(self.prompts, side)
        if not prompts:
            return Drawn(torch.zeros(0), [])
        latents = latents_of(self.adapter, prompts, self._seeds[side], self.settings, self.batch)
        return Drawn(latents, decode(self.adapter, latents))

    def _draw_source(self) -> Drawn:
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
        return Drawn(latents, decode(self.adapter, latents))

    def steered(self, concept: Concept, strength: float, side: str) -> Drawn:
        """Pictures of a side at a map strength."""
        plain = replace(concept.with_unit(1.0), range=None)  # trials go beyond it
        key = plain.digest, strength, side
        if key not in self._steered:
            with steer(self.adapter, {plain: strength}):
                self._steered[key] = self._draw(side)
        return self._steered[key]

    def masks_of(self, concept: Concept) -> list[np.ndarray] | None:
        """Where the unsteered pictures of source prompts show a concept; None where it has no place."""
        return find_masks(concept, self._grids, self.source.pictures[0].size)

    def count_kept(self, concept: Concept, strength: float) -> Kept:
        """What of the pictures stays at a map strength, part by part."""
        source, control = (self.steered(concept, strength, side).pictures for side in ("source", "control"))
        around = change_beside(self.source.pictures, source, self.masks_of(concept))
        changed = change(self.control.pictures, control) > UNCHANGED
        return count_kept(around, self.prompts.neighbours, changed)
