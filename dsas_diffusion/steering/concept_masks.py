"""Where pictures show concepts, read by the concepts' own probes while an unsteered pass draws them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Self

import numpy as np
import torch

from dsas_core.concept.concept import Concept
from dsas_core.model.hooks import Call
from dsas_core.model.sites import patch_grid
from dsas_core.steering.steering import Steering

from ..pipelines.batch_layout import BatchLayout
from .trace import PictureTrace

#: h above which a patch shows the concept; up to which timestep it is read, as earlier steps show no picture yet; the
#: share of a picture above which a concept is no thing in it
THRESHOLD, LATEST, MOST = 0.5, 700.0, 0.6


class MaskReader:
    """Reads where pictures show some concepts, in the generation that runs in its `with` block.

    Args:
        layout: of the pipeline's batches, which is watched already.
        concepts: whose probes read.

    Example:
        >>> from dsas_diffusion import load_pipeline
        >>> from dsas_diffusion.pipelines.adapter import adapt
        >>> adapter = adapt(load_pipeline("builtin:emoji", device="cpu"))
        >>> with BatchLayout(adapter) as layout:
        ...     with MaskReader(layout, [Concept.from_pretrained("builtin:banana-blur")]) as reader:
        ...         images = adapter.pipe("a banana", num_inference_steps=4).images
        >>> reader.masks(images[0].size, 1)[0].shape, reader.unlocalised
        ((64, 64), [])
    """

    def __init__(self, layout: BatchLayout, concepts: Sequence[Concept]) -> None:
        self._layout, self._names = layout, [concept.name for concept in concepts]
        watched = [_watching(concept, layout.adapter.family.denoiser) for concept in concepts]
        self._watching = [concept for concept in watched if concept.interventions]
        self._trace = PictureTrace()
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        if self._watching:
            watcher, denoiser = (
                _Watcher(self._layout, self._watching, self._trace),
                self._layout.adapter.family.denoiser,
            )
            # the denoiser alone: what describes calls of text encoders may be asked once for each
            describe = {denoiser: self._layout.describe()[denoiser]}
            self._undo.enter_context(watcher.attach(self._layout.adapter.roots, describe))
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    @property
    def unlocalised(self) -> list[str]:
        """Names of concepts that are no thing at some place: their probes see no patches, or most of the pictures."""
        blind = set(self._names) - {concept.name for concept in self._watching}
        shares = {name: self._shares(name) for name in self._names if name not in blind}
        wide = {name for name, shown in shares.items() if shown and float(np.mean(shown)) > MOST}
        return [name for name in self._names if name in blind | wide]

    def masks(self, size: tuple[int, int], pictures: int) -> list[np.ndarray]:
        """Where each picture shows one of the concepts.

        Args:
            size: (width, height) of the pictures.
            pictures: how many were drawn.

        Returns:
            float32 [height, width] in [0, 1], one for each picture; all 0 where nothing is seen.
        """
        masks = [np.zeros(size[::-1], np.float32) for _ in range(pictures)]
        for name in self._traced():
            for mask, heat in zip(masks, self._heat(name, size, pictures), strict=True):
                np.maximum(mask, _grow(heat > THRESHOLD, self._cell(name, size)), out=mask)
        return masks

    def _shares(self, name: str) -> list[float]:
        """The share of each picture in which a concept is seen, of those that show it."""
        if name not in self._traced():
            return []
        shares = [float((heat > THRESHOLD).mean()) for heat in self._heat(name, (64, 64), self._trace.pictures)]
        return [share for share in shares if share]

    def _traced(self) -> list[str]:
        return [concept.name for concept in self._watching if self._trace.patch_sites(concept.name)]

    def _heat(self, name: str, size: tuple[int, int], pictures: int) -> list[np.ndarray]:
        steps = [record.timestep for record in self._trace.select(name) if record.timestep is not None]
        below = max(LATEST, min(steps, default=LATEST))  # one of a single step reads in that
        return [self._trace.heat(name, size, image=image, below=below) for image in range(pictures)]

    def _cell(self, name: str, size: tuple[int, int]) -> int:
        """The width of the largest patch that is read, in pixels."""
        counts = [record.pictures.shape[1] for record in self._trace._of_patches(name) if record.pictures is not None]
        return -(-size[0] // patch_grid(min(counts), size[1], size[0])[1])


class _Watcher(Steering):
    """Records what some concepts' probes see."""

    def __init__(self, layout: BatchLayout, concepts: Sequence[Concept], trace: PictureTrace) -> None:
        super().__init__(dict.fromkeys(concepts, 0.0), trace=trace)
        self._layout, self._pictures = layout, trace

    def begin(self, root: str, call: Call) -> None:
        if root == self._layout.adapter.family.denoiser:
            self._pictures.follow(self._layout)
        super().begin(root, call)


def _watching(concept: Concept, denoiser: str) -> Concept:
    """A copy of a concept that only reads, in the denoiser."""
    read = [
        item.as_read_only()
        for item in concept.interventions
        if item.site.root == denoiser and (item.probe_site is None or item.probe_site.root == denoiser)
    ]
    return replace(concept, interventions=tuple(read))


def _grow(mask: np.ndarray, cells: int) -> np.ndarray:
    """A bool mask grown by so many pixels on each side, float32."""
    grown = torch.nn.functional.max_pool2d(torch.from_numpy(mask)[None].float(), 2 * cells + 1, 1, cells)[0]
    return grown.numpy()
