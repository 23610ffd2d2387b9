"""Probes that see where a picture shows the concept, whatever the prompt calls it, and the rule of its masks.

They read outputs of the denoiser's blocks, means over the late steps, in which the picture is seen. Nobody has to mark
where pictures show the concept: source prompts say that it is there, control prompts that it is not.

1. At each candidate site a probe is fitted in multiple-instance rounds: on the source patches that the probe of the
   round before scores highest, against the patches of control pictures.
2. The site whose highest logits tell held-out source from control pictures by the largest margin labels the patches of
   source pictures: those of the regions around the highest logit. Given masks take the place of these labels.
3. With labels a probe learns from patches beside the concept, too. The best site is fitted anew; where candidates of a
   finer grid exist, the best of them is added, for a sharper outline.
4. The threshold above which the concept is seen is placed between what held-out controls and sources reach, and made 0,
   so that h is above 0.5 there; the edge of a region is where the logits that were fitted are 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from dsas_core import methods
from dsas_core.concept.intervention import Intervention
from dsas_core.maps import IdentityMap
from dsas_core.model.sites import Site, patch_grid
from dsas_core.probes import LinearProbe

from ..steering.concept_masks import GRID, SIDE, MaskRule, on_picture, pool_grid

#: rounds, and share of a source picture's patches that each takes as showing the concept
ROUNDS, TOP_SHARE = 3, 0.1
#: share of a picture's highest logit above which a patch counts as showing the concept while labels are made
NEAR_PEAK = 0.3
#: share of a patch that a mask covers from which on it shows the concept, and up to which it is beside it
INSIDE, BESIDE = 0.5, 0.05
#: patches of control pictures that a fit takes, at most
CONTROL_ROWS = 8000
#: folds of cross-validation, by picture
FOLDS = 4
#: share of controls that the threshold may let through, by the tail of held-out ones, and what counts as the tail
TOUCHED, TAIL = 0.005, 0.05
#: low quantile of held-out sources, and how far from the controls' tail to it the threshold is placed: near the
#: tail, as things that no prompt named reach less
USUAL, TOWARDS = 0.05, 0.25

#: site -> means over the late steps, [pictures, patches, width]
Grids = Mapping[Site, torch.Tensor]


class _Sides(NamedTuple):
    """Patches of one site, [pictures, patches, width] each, and the folds of both."""

    source: torch.Tensor
    control: torch.Tensor

    def joined(self, more: torch.Tensor, shows: torch.Tensor) -> _Sides:
        """With more pictures, of which those count as source that show the concept."""
        return _Sides(torch.cat([self.source, more[shows]]), torch.cat([self.control, more[~shows]]))

    def logits(self, fit: Callable[[torch.Tensor, torch.Tensor], LinearProbe]) -> tuple[np.ndarray, np.ndarray]:
        """Logits [pictures, side, side] of both, of each picture by a probe that was fitted without it.

        Args:
            fit: fits a probe on the pictures that two masks, bool [pictures], choose of either side.
        """
        logits = [torch.empty(part.shape[:2], dtype=torch.float64) for part in self]
        folds = [torch.arange(len(part)) % FOLDS for part in self]
        for fold in range(FOLDS):
            probe = fit(*(own != fold for own in folds))
            for part, out, own in zip(self, logits, folds, strict=True):
                out[own == fold] = probe.logit(part[own == fold])[..., 0].double()
        source, control = (_as_grid(part).numpy() for part in logits)
        return source, control


class MaskFit(NamedTuple):
    """What a fit of mask probes found.

    Args:
        interventions: that only read, at the rule's sites.
        rule: how masks are made of their logits.
    """

    interventions: list[Intervention]
    rule: MaskRule


class Unnamed(NamedTuple):
    """Pictures of prompts that do not name the concept: their activations, and where each shows it, or None."""

    grids: Grids
    masks: Sequence[np.ndarray | None]


def fit_mask(
    source: Grids,
    control: Grids,
    weights: tuple[float, ...],
    masks: Sequence[np.ndarray | None] | None = None,
    unnamed: Unnamed | None = None,
) -> MaskFit:
    """Fit the probes that see where pictures show the concept.

    Args:
        source: of pictures of source prompts, at every candidate site.
        control: of pictures of control prompts.
        weights: of the concept's timestep bins: 1 where it is read, else 0.
        masks: where each source picture shows the concept, bool [height, width] or None; None for finding out.
        unnamed: pictures of prompts that do not name it, where masks are known; those that show it count as source
            pictures, the others as controls.

    Example:
        >>> grids = {kind: torch.randn(12, 16, 4, generator=torch.Generator().manual_seed(0)) for kind in "sc"}
        >>> grids["s"][:, :4, 0] += 9
        >>> fitted = fit_mask({Site("unet.up"): grids["s"]}, {Site("unet.up"): grids["c"]}, weights=(1.0,))
        >>> fitted.rule.sites, fitted.rule.missed, round(fitted.rule.covered, 1)
        (('unet.up',), 0.0, 0.2)
    """
    sides = {site: _Sides(source[site].float(), control[site].float()) for site in source}
    shows: list[bool] = []
    if unnamed is not None and masks is not None:
        shows = [mask is not None for mask in unnamed.masks]
        sides = {site: own.joined(unnamed.grids[site].float(), torch.tensor(shows)) for site, own in sides.items()}
        masks = [*masks, *(mask for mask in unnamed.masks if mask is not None)]
    if masks is None:
        found = {site: sides[site].logits(_by_rounds(sides[site])) for site in sides}
        best = max(found, key=lambda site: _margin(*found[site]))
        labels = torch.stack([_label(logits) for logits in found[best][0]])[:, None]
    else:
        labels = torch.stack([_cover(mask) for mask in masks])
    fits = {site: _by_labels(sides[site], labels) for site in sides}
    found = {site: sides[site].logits(fits[site]) for site in sides}
    best = max(found, key=lambda site: _margin(*found[site]))
    finer = [site for site in found if sides[site].source.shape[1] > sides[best].source.shape[1]]
    chosen = [best, *([max(finer, key=lambda site: _margin(*found[site]))] if finer else [])]
    source_logits, control_logits = (_join([found[site][i] for site in chosen]) for i in range(2))
    n, m = len(source[best]), len(control[best])  # pictures of prompts that do not name it come behind these
    threshold = _place(source_logits[:n], control_logits[:m])
    if shows:
        threshold = _place_unnamed(threshold, source_logits[n:], control_logits[m:])
    everything = [torch.ones(len(part), dtype=torch.bool) for part in sides[best]]
    interventions = []
    for site in chosen:
        probe = fits[site](*everything).with_lower_bias(threshold)
        interventions.append(Intervention(site, (probe,) * len(weights), (IdentityMap(),) * len(weights), weights))
    rule = MaskRule(tuple(map(str, chosen)), margin=threshold)
    rule = _judge(rule, source_logits[:n] - threshold, control_logits[:m] - threshold)
    if shows:
        rule = _judge_unnamed(rule, source_logits[n:] - threshold, control_logits[m:] - threshold)
    return MaskFit(interventions, rule)


def _by_rounds(sides: _Sides) -> Callable[[torch.Tensor, torch.Tensor], LinearProbe]:
    def fit(in_source: torch.Tensor, in_control: torch.Tensor) -> LinearProbe:
        source, control = sides.source[in_source], sides.control[in_control]
        probe, patches = _fit(source.mean(1), control.mean(1)), _thinned(control)
        for _ in range(ROUNDS):
            logits = probe.logit(source)[..., 0]
            highest = logits.topk(max(1, round(TOP_SHARE * logits.shape[1]))).values[:, -1:]
            probe = _fit(source[logits >= highest], patches)
        return probe

    return fit


def _by_labels(sides: _Sides, labels: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], LinearProbe]:
    """Fits on labelled patches, `labels` [pictures, 1, height, width] in [0, 1]."""
    covered = F.adaptive_avg_pool2d(labels, _grid_of(sides.source)).flatten(1)

    def fit(in_source: torch.Tensor, in_control: torch.Tensor) -> LinearProbe:
        source, cover = sides.source[in_source], covered[in_source]
        most = cover.amax(1, keepdim=True).clamp(BESIDE, INSIDE)  # a thing may be smaller than a patch
        inside, beside = source[(cover >= most) & (cover > BESIDE)], source[cover <= BESIDE]
        return _fit(inside, torch.cat([beside, _thinned(sides.control[in_control])]))

    return fit


def _fit(positive: torch.Tensor, negative: torch.Tensor) -> LinearProbe:
    if not len(positive):  # nothing is labelled: a probe that sees nothing
        return LinearProbe(torch.zeros(negative.shape[-1]).double(), torch.tensor(-1.0).double())
    gate = methods.get("dsas", "gate")
    return gate.fit(positive.double(), negative.double(), rank="ridge", scaler="std")


def _thinned(control: torch.Tensor) -> torch.Tensor:
    """Patches of control pictures, evenly chosen where they are many."""
    patches = control.flatten(0, 1)
    return patches[:: -(-len(patches) // CONTROL_ROWS)]


def _margin(source: np.ndarray, control: np.ndarray) -> float:
    """How far apart the highest logits of source and control pictures are, in standard deviations."""
    high, low = map(_highest, (source, control))
    spread = np.sqrt((high.var() * len(high) + low.var() * len(low)) / (len(high) + len(low)))
    return float((np.quantile(high, USUAL) - np.quantile(low, 1 - TOUCHED)) / max(spread, 1e-9))


def _label(logits: np.ndarray) -> torch.Tensor:
    """Which patches show the concept, float [side, side]: the region around the highest logit of a picture."""
    from scipy import ndimage

    regions, _ = ndimage.label(logits >= max(0.0, NEAR_PEAK * logits.max()))
    highest = regions.flat[logits.argmax()]
    return torch.from_numpy((regions == highest) & (highest > 0)).float()


def _cover(mask: np.ndarray | None) -> torch.Tensor:
    """A mask as [1, GRID, GRID], the share of each cell that it covers."""
    if mask is None:
        return torch.zeros(1, GRID, GRID)
    return F.adaptive_avg_pool2d(torch.from_numpy(np.asarray(mask))[None].float(), (GRID, GRID))


def _join(logits: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of logits of several sites, on the maps on which regions are found, [pictures, SIDE, SIDE]."""
    maps = [on_picture(torch.from_numpy(part).flatten(1), (SIDE, SIDE)) for part in logits]
    return torch.stack(maps).mean(0).numpy()


def _place(source: np.ndarray, control: np.ndarray) -> float:
    """The threshold above which the concept is seen, by held-out logits [pictures, rows, columns] of both sides."""
    high, low = map(_highest, (source, control))
    top = np.sort(low)[-max(3, round(TAIL * len(low))) :]
    tail = top[0] + (top - top[0]).mean() * math.log(len(top) / len(low) / TOUCHED)  # an exponential tail
    usual = float(np.quantile(high, USUAL))
    return float(max(tail, tail + TOWARDS * (usual - tail), 0.0))


def _place_unnamed(threshold: float, source: np.ndarray, control: np.ndarray) -> float:
    """The threshold, no higher than before, that tells pictures of unnamed prompts apart best.

    Args:
        threshold: as it was placed on pictures of prompts that name the concept.
        source: held-out logits [pictures, rows, columns] of pictures that show it although no prompt named it.
        control: of the others.
    """
    high, low = _highest(source), _highest(control)
    if not (len(high) and len(low)):
        return threshold
    ordered = np.unique(np.concatenate([high, low]))
    between = np.append((ordered[1:] + ordered[:-1]) / 2, threshold).clip(0.0, threshold)
    told_apart = [(high > at).mean() - (low > at).mean() for at in between]
    return float(between[int(np.argmax(told_apart))])


def _judge(rule: MaskRule, source: np.ndarray, control: np.ndarray) -> MaskRule:
    """A rule with what it finds in held-out pictures."""
    seen = [rule.apply(logits) for logits in source]
    shown = [mask.mean() for mask in seen if mask.any()]
    return replace(
        rule,
        covered=float(np.mean(shown)) if shown else 0.0,
        missed=1 - len(shown) / len(seen),
        touched=float((_highest(control) > 0).mean()),
    )


def _judge_unnamed(rule: MaskRule, source: np.ndarray, control: np.ndarray) -> MaskRule:
    """A rule with what it finds in held-out pictures of prompts that do not name the concept."""
    found, touched = (float((_highest(part) > 0).mean()) if len(part) else 0.0 for part in (source, control))
    counts = {"pictures": len(source) + len(control), "showing": len(source)}
    return replace(rule, unnamed={**counts, "found": found, "touched": touched})


def _highest(logits: np.ndarray) -> np.ndarray:
    """The highest logit of each picture, of logits [pictures, rows, columns]."""
    return logits.max((1, 2)) if len(logits) else np.zeros(0)


def _as_grid(patches: torch.Tensor) -> torch.Tensor:
    """Values [pictures, patches] as [pictures, rows, columns]."""
    return patches.unflatten(1, _grid_of(patches))


def _grid_of(patches: torch.Tensor) -> tuple[int, int]:
    """Rows and columns of patches [pictures, patches, …] of pictures that are as good as square."""
    return patch_grid(patches.shape[1], 1, 1)


def pool_patches(x: torch.Tensor) -> torch.Tensor:
    """Patches [pictures, patches, width] of square pictures, fine grids averaged (`pool_grid`), on the CPU.

    Example:
        >>> pool_patches(torch.zeros(2, 32 * 32, 5)).shape
        torch.Size([2, 256, 5])
    """
    grid = x.transpose(1, 2).unflatten(2, _grid_of(x))
    return pool_grid(grid).flatten(2).transpose(1, 2).cpu()


def compact(x: torch.Tensor) -> torch.Tensor:
    """In float16, if that holds it."""
    half = x.half()
    return half if half.isfinite().all() else x
