"""The cloud of target activations at a site, and how far a map may go without leaving it.

In-Distribution Steering (IDS, arXiv 2510.13285) holds its strength where the Mahalanobis distance to activations of the
wanted behaviour, in principal components, is at most their own 95th percentile. What moves outside of the components
IDS does not see. Here it counts as well: the directions that they leave out share their mean variance, which is the
covariance of probabilistic PCA (Tipping and Bishop, 1999).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from .errors import DSASError
from .maps import Map
from .parts import Part, compute_dtype

if TYPE_CHECKING:
    from .capture import Captured
    from .concept_data import ConceptData
    from .intervention import Intervention

#: principal components of a cloud, at most, where nobody says how many
RANK = 8
#: a cloud has as many components as explain this much of the variance
EXPLAINED = 0.9
#: the radius is this quantile of the cloud's own distances
INSIDE = 0.95
#: the least variance of a direction, as a part of the mean one: what is constant may still move a little
LEAST = 1e-6


@dataclass(frozen=True, eq=False)
class Cloud(Part, kind="cloud"):
    """Where activations usually are.

    Args:
        mean: [width]. axes: [rank, width], orthonormal.
        spread: [rank], the standard deviation along each axis. rest: [], that in every other direction.
        radius: [], the Mahalanobis distance from the mean within which 95 % of them are.
    """

    mean: torch.Tensor
    axes: torch.Tensor
    spread: torch.Tensor
    rest: torch.Tensor
    radius: torch.Tensor

    def whitened(self, v: torch.Tensor) -> torch.Tensor:
        """A difference of activations [..., width] in standard deviations, [..., rank + width]."""
        axes = self.axes.to(v.dtype)
        along = v @ axes.T
        return torch.cat([along / self.spread.to(v.dtype), (v - along @ axes) / self.rest.to(v.dtype)], -1)

    def distance(self, x: torch.Tensor) -> torch.Tensor:
        """Mahalanobis distance of activations [..., width] from the mean, [..., 1]; float32 at least."""
        wide = x.to(compute_dtype(x))
        return self.whitened(wide - self.mean.to(wide.dtype)).norm(dim=-1, keepdim=True)


def fit_cloud(rows: torch.Tensor, most: int = RANK) -> Cloud:
    """The cloud of activations [n, width], float64: as many components as explain 90 % of the variance, or `most`."""
    return fit_clouds([rows], most)[0]


def fit_clouds(bins: Sequence[torch.Tensor], most: int = RANK) -> list[Cloud]:
    """The cloud of each timestep bin's activations, [n, width]; with as many components as the bin that needs most.

    Raises:
        DSASError: fewer than two activations.
    """
    from sklearn.decomposition import PCA

    least = min(min(rows.shape) for rows in bins)
    if min(map(len, bins)) < 2:
        raise DSASError("a cloud needs two activations at least: capture more prompts, or fewer timestep bins")
    fitted = []
    for rows in bins:
        with np.errstate(invalid="ignore"):  # where nothing varies, no part of it is explained
            found = PCA(max(1, min(most, least - 1)), random_state=0).fit(rows.double().numpy())
        fitted.append((rows.double(), found, torch.from_numpy(found.explained_variance_)))
    rank = max(_needed(rows, variances) for rows, _, variances in fitted)
    return [
        _cloud(rows, torch.from_numpy(found.components_[:rank].copy()), variances[:rank])
        for rows, found, variances in fitted
    ]


def _needed(rows: torch.Tensor, variances: torch.Tensor) -> int:
    """How many components explain enough, or all that there are."""
    short = variances.cumsum(0) < EXPLAINED * rows.var(0).sum()
    return min(len(variances), int(short.sum()) + 1)


def _cloud(rows: torch.Tensor, axes: torch.Tensor, variances: torch.Tensor) -> Cloud:
    total, width = rows.var(0).sum(), rows.shape[1]
    least = (LEAST * total / width).clamp_min(torch.finfo(torch.float32).tiny)
    rest = (total - variances.sum()) / max(1, width - len(variances))
    along, elsewhere = (variance.maximum(least).sqrt() for variance in (variances, rest))
    cloud = Cloud(rows.mean(0), axes, along, elsewhere, radius=torch.ones(()))
    return replace(cloud, radius=cloud.distance(rows).quantile(INSIDE))


def clouded(interventions: Sequence[Intervention], capture: Captured, most: int) -> list[Intervention]:
    """Interventions with the clouds of what was captured where they write: rows of kind "cloud", else of "target".

    Clouds are of single positions, as these are what is moved; sites that are only watched get none.
    """
    from threadpoolctl import threadpool_limits

    found = []
    for item in interventions:
        if item.read_only:
            found.append(item)
            continue
        bins = 1 if item.site.root in capture.timeless else len(capture.edges) + 1
        kinds = ["cloud" if (item.site, i, "cloud") in capture.rows else "target" for i in range(bins)]
        rows = [capture.rows[item.site, i, kind].gathered("positions") for i, kind in enumerate(kinds)]
        with threadpool_limits(1):
            clouds = fit_clouds(rows, most)
        found.append(replace(item, clouds=tuple(clouds * (len(item.maps) // bins))))
    return found


def strength_within(
    x: torch.Tensor, transform: Map, strength: torch.Tensor, h: torch.Tensor, cloud: Cloud
) -> torch.Tensor:
    """The strength, or as much of it as leaves x' in the cloud.

    With y = x - mean, D = h * D(x) and inner products of whitened vectors, the distance of x' = x + s * D is

        d(s)^2 = |y|^2 + 2 s (y . D) + s^2 |D|^2,

    and s goes no further than where that is max(radius, |y|)^2: what is outside already is moved no farther out. The
    two roots have opposite signs, or one is 0, so either bounds one sign of s. Where none is reached, s is returned as
    it is, bit for bit.

    Args:
        x: activations [..., positions, width].
        transform: a map with `displaces`.
        strength, h: broadcastable to x.

    Returns:
        [..., positions, 1], or broadcastable to it.
    """
    wide = x.to(compute_dtype(x))
    y = cloud.whitened(wide - cloud.mean.to(wide.dtype))
    moved = cloud.whitened(h * transform.displacement(wide))
    a, b = moved.square().sum(-1, keepdim=True), (y * moved).sum(-1, keepdim=True)
    room = (cloud.radius.to(wide.dtype).square() - y.square().sum(-1, keepdim=True)).clamp_min(0)
    root = (b * b + a * room).sqrt()
    up = torch.where(b > 0, room / (b + root), (root - b) / a)  # of either form of the root, the one without
    down = torch.where(b < 0, -room / (root - b), -(root + b) / a)  # cancellation
    # a is 0 where nothing moves, and the bounds are NaN: fmin and fmax pass these over
    return strength.fmin(up.to(strength.dtype)).fmax(down.to(strength.dtype))


def obstacle_to_within(concept: ConceptData, gate: str | None = None) -> str | None:
    """Why a concept cannot be kept within its targets' cloud, with the site and the way out; None where it can."""
    if gate == "off":
        return None
    for item in concept.interventions:
        if item.read_only or not any(item.weights):
            continue
        curved = next((transform for transform in item.maps if not transform.displaces), None)
        if curved is not None:
            return f"at {item.site}, {type(curved).__name__} is not linear in its strength, so no root tells how far"
        if not item.clouds:
            return (
                "no cloud of target activations was learned: learn it again with --cloud, in Python "
                f'recipe={{"cloud": {RANK}}}'
            )
    return None
