"""Fitting the ellipses of target activations (`maps.envelope`), which steering can be kept within."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import DSASError
from ..maps.envelope import RANK, EllipticEnvelope

if TYPE_CHECKING:
    from ..concept.intervention import Intervention
    from .capture import Captured

#: an ellipse has as many components as explain this much of the variance
EXPLAINED = 0.9
#: its radius is this quantile of the activations' own distances
INSIDE = 0.95
#: the least variance of a direction, as a part of the mean one: what is constant may still move a little
MIN_VARIANCE = 1e-6


def fit_envelope(rows: torch.Tensor, most: int = RANK) -> EllipticEnvelope:
    """The ellipse of some activations, float64.

    Args:
        rows: activations [n, width].
        most: components at most; fewer where these explain 90 % of the variance.

    Raises:
        DSASError: fewer than two activations.

    Example:
        >>> ellipse = fit_cloud(torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 0.0]]))
        >>> ellipse.mean, ellipse.spread
        (tensor([2., 0.], dtype=torch.float64), tensor([2.], dtype=torch.float64))
    """
    return fit_envelopes([rows], most)[0]


def fit_envelopes(bins: Sequence[torch.Tensor], most: int = RANK) -> list[EllipticEnvelope]:
    """The ellipse of each timestep bin's activations; with as many components as the bin that needs most.

    Args:
        bins: activations [n, width] of each bin.
        most: components at most.

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
            pca = PCA(max(1, min(most, least - 1)), random_state=0).fit(rows.double().numpy())
        fitted.append((rows.double(), pca.components_, torch.from_numpy(pca.explained_variance_)))
    rank = max(_rank(rows, variances) for rows, _, variances in fitted)
    return [
        _cloud(rows, torch.from_numpy(components[:rank].copy()), variances[:rank])
        for rows, components, variances in fitted
    ]


def _rank(rows: torch.Tensor, variances: torch.Tensor) -> int:
    """How many components explain enough, or all that there are."""
    short = variances.cumsum(0) < EXPLAINED * rows.var(0).sum()
    return min(len(variances), int(short.sum()) + 1)


def _cloud(rows: torch.Tensor, axes: torch.Tensor, variances: torch.Tensor) -> EllipticEnvelope:
    total, width = rows.var(0).sum(), rows.shape[1]
    least = (MIN_VARIANCE * total / width).clamp_min(torch.finfo(torch.float32).tiny)
    rest = (total - variances.sum()) / max(1, width - len(variances))
    along, elsewhere = (variance.maximum(least).sqrt() for variance in (variances, rest))
    cloud = EllipticEnvelope(rows.mean(0), axes, along, elsewhere, radius=torch.ones(()))
    return replace(cloud, radius=cloud.distance(rows).quantile(INSIDE))


def with_envelopes(interventions: Sequence[Intervention], capture: Captured, most: int) -> list[Intervention]:
    """Interventions with the ellipses of what was captured where they write.

    Ellipses are of single positions, as these are what is moved. Interventions that only read get none.

    Args:
        interventions: of all sites.
        capture: rows of kind "cloud", or, where there are none, of "target".
        most: components at most.
    """
    from threadpoolctl import threadpool_limits

    enveloped = []
    for item in interventions:
        if item.read_only:
            enveloped.append(item)
            continue
        bins = 1 if item.site.root in capture.timeless else len(capture.edges) + 1
        kinds = ["cloud" if (item.site, i, "cloud") in capture.rows else "target" for i in range(bins)]
        rows = [capture.rows[item.site, i, kind].gathered("positions") for i, kind in enumerate(kinds)]
        with threadpool_limits(1):
            clouds = fit_envelopes(rows, most)
        enveloped.append(replace(item, clouds=tuple(clouds * (len(item.maps) // bins))))
    return enveloped
