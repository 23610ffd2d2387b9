"""Where pictures show concepts, read by the concepts' own probes while an unsteered pass draws them.

Below timestep 500 a denoiser's activations show what is in the picture, whatever the prompt calls it. A concept has
probes for that at one site or two (`dsas_diffusion.learning.mask_fit`). The mean of their logits, over those steps and
sites, is above 0 where a patch shows the concept. Things that look alike pass 0 here and there, too, so only regions
count whose highest logit is above a second threshold, placed between what held-out control and source pictures reach;
that is thresholding with hysteresis (Canny, 1986). A region grows by how far the concept's change reaches beyond its
thing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F

from dsas_core.concept.concept import Concept
from dsas_core.concept.evidence import describe_mask
from dsas_core.errors import ArtifactError
from dsas_core.model.hooks import Call, Visit, visit
from dsas_core.model.sites import Site, patch_grid
from dsas_core.probes import Probe

from ..pipelines.batch_layout import BatchLayout

#: in the steps below this timestep, of 1000, activations are read
LATE = 500.0
#: rows and columns of the grids that are read, about, and the shorter side of the maps on which regions are found
GRID, SIDE = 16, 64
#: a concept is a thing at some place where its mask covers up to this share of a source picture, and is found in more
#: than this share of them
MOST, FOUND = 0.5, 0.5


@dataclass(frozen=True)
class MaskRule:
    """How a concept's mask is made of its probes' logits; kept as `evidence["mask"]`.

    Args:
        sites: whose probes are read.
        margin: a region has a logit above 0, and goes on around where it is above minus this.
        growth: by how much a region grows on each side, in widths of the picture.
        covered: mean share of the source pictures that the mask covers, before it grows.
        missed: share of held-out source pictures in which nothing is seen.
        touched: share of held-out control pictures in which something is seen.
        unnamed: of held-out pictures of prompts that do not name the concept, where masks of them were known: how many
            there are and show it ("pictures", "showing"), and the shares of those in which it is seen, and of the
            others ("found", "touched").

    Example:
        >>> rule = MaskRule(("unet.up_blocks.1.resnets.0",), margin=5.0)
        >>> logits = np.array([[4.0, -4.0, -6.0, -1.0]])
        >>> rule.apply(logits).tolist()
        [[1.0, 1.0, 0.0, 0.0]]
    """

    sites: tuple[str, ...]
    margin: float
    growth: float = 0.0
    covered: float = 0.0
    missed: float = 0.0
    touched: float = 0.0
    unnamed: Mapping[str, float] | None = None

    @classmethod
    def of(cls, concept: Concept) -> MaskRule | None:
        """The rule of a concept; None where it has none.

        Raises:
            ArtifactError: one that this version cannot read.
        """
        given = concept.evidence.get("mask")
        if given is None:
            return None
        known = {str(item.site) for item in concept.interventions if item.read_only}
        try:
            rule = cls(**{**given, "sites": tuple(given["sites"])})
            describe_mask(given)  # as the card will
            numbers = (rule.margin, rule.growth, rule.covered, rule.missed, rule.touched)
            least = min(rule.margin, rule.growth)
            if not rule.sites or not known.issuperset(rule.sites) or not np.isfinite(numbers).all() or least < 0:
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise ArtifactError(
                f"concept {concept.name!r}: evidence of its mask is damaged, found {given!r}: expected sites that "
                "it only reads, and finite numbers, margin and growth from 0 up; learn it anew"
            ) from None
        return rule

    @property
    def localises(self) -> bool:
        """Whether the concept is a thing at some place of the picture."""
        return self.covered <= MOST and 1 - self.missed > FOUND

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """The mask of a picture, float32 [height, width], 0 or 1, of its logits in the same size."""
        from scipy import ndimage

        regions, count = ndimage.label(logits > -self.margin)
        seen = np.zeros(count + 1, bool)
        seen[np.unique(regions[logits > 0])] = True
        seen[0] = False
        mask = seen[regions]
        radius = self.growth * logits.shape[1]
        if radius > 0 and mask.any():
            mask = ndimage.distance_transform_edt(~mask) <= radius
        return mask.astype(np.float32)


def localises(concept: Concept) -> bool:
    """Whether a concept has probes that tell where a picture shows it, and is a thing at some place.

    Example:
        >>> from dataclasses import replace
        >>> localises(replace(Concept.from_pretrained("builtin:banana-blur"), evidence={}))
        False
    """
    rule = MaskRule.of(concept)
    return rule is not None and rule.localises


class LateMeans:
    """A visitor that keeps the mean over a generation's late steps of what each picture has at some sites.

    A generation without steps below `LATE` is read in its last step.

    Args:
        layout: of the pipeline's batches.
        sites: sites of the denoiser.
        read: what to keep of an activation [pictures, patches, width] at a site.
    """

    def __init__(
        self, layout: BatchLayout, sites: Collection[Site], read: Callable[[Site, torch.Tensor], torch.Tensor]
    ) -> None:
        self._layout, self._sites, self._read = layout, sites, read
        self._rows = torch.zeros(0, dtype=torch.long)
        self._timestep = 0.0
        self._sums: dict[Site, tuple[torch.Tensor, int]] = {}
        self._counts = self._late = False
        self._visit: Visit | None = None

    def __enter__(self) -> Self:
        root = self._layout.adapter.family.denoiser
        self._visit = visit(self._layout.adapter.roots, self._sites, self, {root: self._layout.prompt_call})
        return self

    def __exit__(self, *_: object) -> None:
        if self._visit is not None:
            self._visit.detach()
            self._visit = None

    def begin(self, root: str, call: Call) -> None:
        self._rows = call.steered.nonzero().flatten()
        timestep = 0.0 if call.timestep is None else float(call.timestep)
        if not len(self._rows):  # of negative prompts alone
            return
        late = timestep < LATE
        if not self._late and (late or timestep != self._timestep):
            self._sums.clear()
        self._counts, self._late, self._timestep = late or not self._late, self._late or late, timestep

    def visit(self, site: Site, x: torch.Tensor) -> None:
        if not self._counts or not len(self._rows):
            return
        own = x.index_select(0, self._rows.to(x.device))[:, : self._layout.request.patches]
        values = self._read(site, own.float()).float()  # the sum may be beyond what float16 holds
        total, count = self._sums.get(site, (torch.zeros_like(values), 0))
        self._sums[site] = total + values, count + 1

    def take(self) -> dict[Site, torch.Tensor]:
        """The means of the generation that has ended, by site; forgets it."""
        means = {site: total / count for site, (total, count) in self._sums.items()}
        self._sums.clear()
        self._late = False
        return means


class MaskReader:
    """Reads where pictures show a concept, in the generation that runs in its `with` block.

    Args:
        layout: of the pipeline's batches, which is watched already.
        concept: whose probes read.

    Raises:
        ArtifactError: a rule of masks that this version cannot read.

    Attributes:
        localises: whether the concept is a thing at some place, and has probes for it; if not, nothing is read.

    Example:
        >>> from dsas_diffusion import load_pipeline
        >>> from dsas_diffusion.pipelines.adapter import adapt
        >>> adapter = adapt(load_pipeline("builtin:emoji", device="cpu"))
        >>> with BatchLayout(adapter) as layout:
        ...     with MaskReader(layout, Concept.from_pretrained("builtin:banana-blur")) as reader:
        ...         images = adapter.pipe("a banana", num_inference_steps=4).images
        >>> reader.localises, reader.masks(images[0].size, 1)[0].shape
        (True, (64, 64))
    """

    def __init__(self, layout: BatchLayout, concept: Concept) -> None:
        self._rule = MaskRule.of(concept)
        self.localises = self._rule is not None and self._rule.localises
        read = self._rule.sites if self._rule is not None and self.localises else ()
        readers = [item for item in concept.interventions if item.read_only and str(item.site) in read]
        self._probes: dict[Site, Probe] = {item.site: item.probes[0] for item in readers}
        self._means = LateMeans(layout, self._probes, self._logits)

    def __enter__(self) -> Self:
        if self._probes:
            self._means.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._means.__exit__()

    def _logits(self, site: Site, x: torch.Tensor) -> torch.Tensor:
        """Logits at a site, float32 [pictures, patches]."""
        return self._probes[site].map_tensors(lambda tensor: tensor.to(x)).logit(x)[..., 0]

    def masks(self, size: tuple[int, int], pictures: int) -> list[np.ndarray]:
        """Where each picture shows the concept.

        Args:
            size: (width, height) of the pictures.
            pictures: how many were drawn.

        Returns:
            float32 [height, width], 0 or 1, one for each picture; all 0 where nothing is seen.
        """
        if self._rule is None or not (maps := list(self._means.take().values())):
            return [np.zeros(size[::-1], np.float32) for _ in range(pictures)]
        return _apply(self._rule, maps, size)


def find_masks(concept: Concept, grids: Mapping[Site, torch.Tensor], size: tuple[int, int]) -> list[np.ndarray] | None:
    """Where pictures show a concept, of activations that `LateMeans` kept.

    Args:
        concept: whose probes read.
        grids: means over the late steps, [pictures, patches, width] by site.
        size: (width, height) of the pictures.

    Returns:
        Of each picture float32 [height, width], 0 or 1; None where the concept is no thing at some place.
    """
    rule = MaskRule.of(concept)
    if rule is None or not rule.localises:
        return None
    readers = [item for item in concept.interventions if item.read_only and str(item.site) in rule.sites]
    maps = [item.probes[0].map_tensors(lambda x: x.cpu()).logit(grids[item.site].float())[..., 0] for item in readers]
    return _apply(rule, maps, size)


def _apply(rule: MaskRule, logits: Sequence[torch.Tensor], size: tuple[int, int]) -> list[np.ndarray]:
    """Masks of pictures of a size by the logits of one site or two, [pictures, patches] each."""
    scale = SIDE / min(size)
    small = round(size[0] * scale), round(size[1] * scale)
    maps = torch.stack([on_picture(part, small) for part in logits]).mean(0)
    regions = np.stack([rule.apply(part) for part in maps.cpu().numpy()])
    if small == size:
        return list(regions)
    resized = F.interpolate(torch.from_numpy(regions)[:, None], size[::-1], mode="bilinear", align_corners=False)
    return list((resized[:, 0] >= 0.5).float().numpy())


def on_picture(values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Values by patch [pictures, patches] as maps of another size, float32 [pictures, height, width].

    Args:
        values: of every patch; those of fine grids are averaged first, see `pool_grid`.
        size: (width, height).

    Example:
        >>> on_picture(torch.tensor([[0.0, 1.0]]), (2, 1)).tolist()
        [[[0.0, 1.0]]]
    """
    width, height = size
    grid = pool_grid(values.float().unflatten(1, patch_grid(values.shape[1], height, width))[:, None])
    return F.interpolate(grid, (height, width), mode="bilinear", align_corners=False)[:, 0]


def pool_grid(grid: torch.Tensor) -> torch.Tensor:
    """Averages of a grid [pictures, …, rows, columns] on about `GRID` x `GRID` cells; coarser ones stay.

    Example:
        >>> pool_grid(torch.zeros(1, 1, 64, 96)).shape, pool_grid(torch.zeros(1, 1, 8, 8)).shape
        (torch.Size([1, 1, 13, 20]), torch.Size([1, 1, 8, 8]))
    """
    rows, columns = grid.shape[-2:]
    factor = max(1.0, math.sqrt(rows * columns) / GRID)
    return F.adaptive_avg_pool2d(grid, (max(1, round(rows / factor)), max(1, round(columns / factor))))


def rule_as_evidence(rule: MaskRule) -> Mapping[str, Any]:
    """A rule as plain data, without what is not known."""
    return {**{name: value for name, value in vars(rule).items() if value is not None}, "sites": list(rule.sites)}
