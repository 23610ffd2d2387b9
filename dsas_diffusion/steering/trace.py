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
from ..pipelines.batch_layout import BatchLayout


@dataclass(frozen=True)
class PictureRecord(Record):
    """A record with h by picture.

    Args:
        pictures: h on the patches of each picture, float [pictures, patches]; None where the call has no rows of them.
    """

    pictures: torch.Tensor | None = None


class PictureTrace(Trace):
    """A trace of pictures: h on the patches of each picture.

    Attributes:
        pictures: of the present call: how many are drawn at once.
        block: which of the steered blocks of so many rows is theirs; None for none.
        patches: how many of the positions, the first of them, are of the picture itself; None for all.

    Example:
        >>> from dsas_diffusion import load_pipeline, steer
        >>> pipe = load_pipeline("builtin:emoji", device="cpu")
        >>> with steer(pipe, {"builtin:banana-blur": 1.0}, trace=True) as steering:
        ...     picture = pipe("a banana", num_inference_steps=2).images[0]
        >>> steering.trace.heat("banana-blur", picture.size).shape
        (64, 64)
        >>> steering.trace.heatmap("banana-blur", picture).size
        (64, 64)
    """

    def __init__(self) -> None:
        super().__init__()
        self.pictures = 1
        self.block: int | None = 0
        self.patches: int | None = None

    def follow(self, layout: BatchLayout) -> None:
        """Take from the layout, before a call of the denoiser is recorded, which rows and positions are pictures."""
        self.pictures, self.patches = layout.request.pictures, layout.request.patches
        self.block = layout.heatmap_block

    def record(self, *args: Any, **options: Any) -> Record:
        """Keep what one concept did at one site in one call, see `Trace.record`."""
        record, pictures = super().record(*args, **options), None
        if self.block is not None:
            first = self.block * self.pictures
            pictures = record.h[first : first + self.pictures, : self.patches]
        self.records[-1] = PictureRecord(**vars(record), pictures=pictures)
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
        """Where a concept was detected in one picture of the last generation.

        Args:
            concept: its name.
            size: (width, height) of the picture.
            image: which picture of the batch, in the order of `pipe(...).images`.
            site: one site; by default the mean over all sites that read patches.
            root: sites below one root only.
            below: only steps with a timestep up to this; in the first steps there is no picture yet.
            at: the step of one timestep alone, of those that `by_step` lists.

        Returns:
            float32 [height, width] in [0, 1], averaged over the steps.

        Raises:
            DSASError: nothing was recorded there, or no such concept steers.
        """
        width, height = size
        maps = [
            record.pictures[image]
            for record in self._of_patches(concept, site, root)
            if record.timestep is None or (record.timestep <= below if at is None else record.timestep == at)
            if record.pictures is not None and 0 <= image < len(record.pictures)
        ]
        if not maps:
            known = ", ".join(sorted({f"{record.concept} at {record.site}" for record in self.records}))
            raise DSASError(
                f"no heat for {concept!r}, picture {image}: recorded are "
                f"{known or 'nothing: call the pipeline inside steer()'}; text sites have no patches"
            )
        total = torch.zeros(height, width)
        for h in maps:
            grid = h.view(1, 1, *patch_grid(len(h), height, width))
            total += torch.nn.functional.interpolate(grid, (height, width), mode="bilinear", align_corners=False)[0, 0]
        return (total / len(maps)).clamp(0, 1).numpy()

    def heatmap(self, concept: str, picture: Image.Image, *, image: int = 0, **which: Any) -> Image.Image:
        """The picture with the concept's h over it, dark where h is 0 and bright where it is 1; see `heat`."""
        return overlay(picture, self.heat(concept, picture.size, image=image, **which))

    def patch_sites(self, concept: str) -> list[Site]:
        """Sites with h on patches, so that `heat` can draw it."""
        return list(dict.fromkeys(record.site for record in self._of_patches(concept)))

    def by_step(self, concept: str, *, prompt: int = 0) -> dict[Site, dict[float | None, float]]:
        """Mean h of one prompt: site -> timestep (None in text encoders) -> h, in the order of the calls."""
        values: dict[Site, dict[float | None, list[float]]] = {}
        for record in self.select(concept):
            rows = record.prompts == prompt
            counted = (torch.ones_like(record.h) if record.mask is None else record.mask)[rows] > 0
            if counted.any():
                steps = values.setdefault(record.site, {})
                steps.setdefault(record.timestep, []).append(float(record.h[rows][counted].mean()))
        return {site: {t: fmean(means) for t, means in steps.items()} for site, steps in values.items()}

    def _of_patches(self, concept: str, site: str | None = None, root: str | None = None) -> list[PictureRecord]:
        """Records of one concept that have patches of the pictures."""
        return [
            record
            for record in self.select(concept, site, root)
            if isinstance(record, PictureRecord) and record.mask is None and not record.site.argument
            if record.site.stream != "text"
            if record.pictures is not None and record.pictures.shape[1] > 1
        ]
