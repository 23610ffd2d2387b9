"""The record of h where pictures are steered: on the patches of each picture, and as a heat-map over it."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from PIL import Image

from dsas_core.errors import DSASError
from dsas_core.model.sites import Site, patch_grid
from dsas_core.steering.trace import Record, Trace

from ..generation.strips import overlay


@dataclass(frozen=True)
class PictureRecord(Record):
    """A record that knows the pictures.

    Args:
        pictures: h on the patches of each, float [pictures, patches]; None where the call is not of them.
    """

    pictures: torch.Tensor | None = None


class PictureTrace(Trace):
    """A trace of pictures: h on the patches of each picture.

    Of the call that is being recorded: `pictures` is how many are made at once, `block` which of the blocks of so many
    rows that are steered is theirs, None for none; `patches` is how many of the positions are of the picture itself,
    the first of them, None for all.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pictures = 1
        self.block: int | None = 0
        self.patches: int | None = None

    def record(self, *seen: Any, **more: Any) -> Record:
        """As `Trace.record`."""
        made = super().record(*seen, **more)
        shown = None
        if self.block is not None:
            shown = made.h[self.block * self.pictures : (self.block + 1) * self.pictures, : self.patches]
        self.records[-1] = PictureRecord(**vars(made), pictures=shown)
        return self.records[-1]

    def heat(
        self,
        concept: str,
        size: tuple[int, int],
        *,
        image: int = 0,
        site: str | None = None,
        root: str | None = None,
        below: float = 1000.0,
        at: float | None = None,
    ) -> np.ndarray:
        """Where a concept was seen in one picture of the last generation.

        Args:
            concept: its name.
            size: (width, height) of the picture.
            image: which picture of the batch, in the order of `pipe(...).images`.
            site: one site; by default the mean over all sites that see patches.
            root: sites below one root only.
            below: only steps with a timestep up to this; in the first steps there is no picture to see yet.
            at: the step of one timestep alone, of those that `by_step` lists.

        Returns:
            float32 [height, width] in [0, 1], averaged over the steps.

        Raises:
            DSASError: nothing was recorded there.
        """
        width, height = size
        records = [
            record
            for record in self._of_patches(concept, site, root)
            if record.timestep is None or (record.timestep <= below if at is None else record.timestep == at)
        ]
        maps = [h[image] for record in records if (h := record.pictures) is not None and 0 <= image < len(h)]
        if not maps:
            known = sorted({f"{r.concept} at {r.site}" for r in self.records})
            told = ", ".join(known) or "nothing: call the pipeline inside steer()"
            raise DSASError(
                f"no heat for {concept!r}, picture {image}: recorded are {told}; text sites have no patches"
            )
        total = torch.zeros(height, width)
        for h in maps:
            grid = h.view(1, 1, *patch_grid(len(h), height, width))
            total += torch.nn.functional.interpolate(grid, (height, width), mode="bilinear", align_corners=False)[0, 0]
        return (total / len(maps)).clamp(0, 1).numpy()

    def patch_sites(self, concept: str) -> list[Site]:
        """Where a concept was seen on patches, so that `heat` can draw it."""
        return list(dict.fromkeys(record.site for record in self._of_patches(concept)))

    def by_step(self, concept: str, *, prompt: int = 0) -> dict[Site, dict[float | None, float]]:
        """Mean h of one prompt by site, and there by timestep, in the order of the calls; text encoders know none."""
        found: dict[Site, dict[float | None, list[float]]] = {}
        for record in self.select(concept):
            counted = (torch.ones_like(record.h) if record.mask is None else record.mask)[record.prompts == prompt] > 0
            if counted.any():
                steps = found.setdefault(record.site, {})
                steps.setdefault(record.timestep, []).append(float(record.h[record.prompts == prompt][counted].mean()))
        return {site: {t: fmean(values) for t, values in steps.items()} for site, steps in found.items()}

    def _of_patches(self, concept: str, site: str | None = None, root: str | None = None) -> list[PictureRecord]:
        """Records of one concept that have patches of the pictures."""
        return [
            record
            for record in self.select(concept, site, root)
            if isinstance(record, PictureRecord) and record.mask is None and record.site.stream != "text"
            if record.pictures is not None and record.pictures.shape[1] > 1
        ]

    def heatmap(self, concept: str, picture: Image.Image, *, image: int = 0, **which: Any) -> Image.Image:
        """The picture with the concept's h over it, dark where h is 0 and bright where it is 1; see `heat`."""
        return overlay(picture, self.heat(concept, picture.size, image=image, **which))
