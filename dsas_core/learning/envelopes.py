"""Fitting the ellipses of target activations (`maps.envelope`), which steering can be kept within."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import DSASError
from ..maps.envelope import RANK, EllipticEnvelope
from .capture import is_timeless

if TYPE_CHECKING:
    from ..concept.intervention import Intervention
    from .capture_store import Captured

#: share of the variance that the components of an ellipse explain
EXPLAINED_VARIANCE = 0.9
#: the radius is this quantile of the activations' own Mahalanobis distances
RADIUS_QUANTILE = 0.95
#: least variance of a direction, as a share of the mean variance: constant directions may still move a little
MIN_VARIANCE = 1e-6


def fit_envelope(rows: torch.Tensor, max_rank: int = RANK) -> EllipticEnvelope:
    """Fit the ellipse of activations, float64.

    Args:
        rows: activations [n, width].
        max_rank: number of components at most; fewer where these explain 90 % of the variance.

    Raises:
        DSASError: fewer than two activations.

    Example:
        >>> ellipse = fit_envelope(torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 0.0]]))
        >>> ellipse.mean, ellipse.spread
        (tensor([2., 0.], dtype=torch.float64), tensor([2.], dtype=torch.float64))
    """
    return fit_envelopes([rows], max_rank)[0]


def fit_envelopes(bins: Sequence[torch.Tensor], max_rank: int = RANK) -> list[EllipticEnvelope]:
    """Fit the ellipse of each timestep bin, all with as many components as the bin that needs most.

    Args:
        bins: activations [n, width] of each bin.
        max_rank: number of components at most.

    Raises:
        DSASError: fewer than two activations.

    Example:
        >>> bins = [torch.eye(3), torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [4.0, 0.0, 0.0]])]
        >>> [ellipse.axes.shape[0] for ellipse in fit_envelopes(bins)]
        [2, 2]
    """
    from sklearn.decomposition import PCA

    least = min(min(rows.shape) for rows in bins)
    if min(map(len, bins)) < 2:
        raise DSASError("a cloud needs two activations at least: capture more prompts, or fewer timestep bins")
    components = []
    for rows in bins:
        with np.errstate(invalid="ignore"):  # where nothing varies, no share of it is explained
            pca = PCA(max(1, min(max_rank, least - 1)), random_state=0).fit(rows.double().numpy())
        components.append((rows.double(), pca.components_, torch.from_numpy(pca.explained_variance_)))
    rank = max(_rank(rows, variances) for rows, _, variances in components)
    return [
        _envelope(rows, torch.from_numpy(axes[:rank].copy()), variances[:rank]) for rows, axes, variances in components
    ]


def _rank(rows: torch.Tensor, variances: torch.Tensor) -> int:
    """How many components explain enough of the variance; all where these don't."""
    short = variances.cumsum(0) < EXPLAINED_VARIANCE * rows.var(0).sum()
    return min(len(variances), int(short.sum()) + 1)


def _envelope(rows: torch.Tensor, axes: torch.Tensor, variances: torch.Tensor) -> EllipticEnvelope:
    total, width = rows.var(0).sum(), rows.shape[1]
    least = (MIN_VARIANCE * total / width).clamp_min(torch.finfo(torch.float32).tiny)
    rest = (total - variances.sum()) / max(1, width - len(variances))
    spread, rest = (variance.maximum(least).sqrt() for variance in (variances, rest))
    envelope = EllipticEnvelope(rows.mean(0), axes, spread, rest, radius=torch.ones(()))
    return replace(envelope, radius=envelope.distance(rows).quantile(RADIUS_QUANTILE))


def with_envelopes(interventions: Sequence[Intervention], capture: Captured, max_rank: int) -> list[Intervention]:
    """Interventions with the ellipses of the activations captured where they write.

    Ellipses are of single positions, as these are what is moved. Read-only interventions get none.

    Args:
        interventions: of all sites.
        capture: activations of kind "cloud", or, where there are none, of "target".
        max_rank: number of components at most.
    """
    from threadpoolctl import threadpool_limits

    def envelopes(item: Intervention) -> tuple[EllipticEnvelope, ...]:
        bins = 1 if is_timeless(item.site, capture.timeless) else len(capture.edges) + 1
        kinds = ["cloud" if (item.site, i, "cloud") in capture.rows else "target" for i in range(bins)]
        rows = [capture.rows[item.site, i, kind].gathered("positions") for i, kind in enumerate(kinds)]
        return tuple(fit_envelopes(rows, max_rank) * (len(item.maps) // bins))

    with threadpool_limits(1):
        return [item if item.read_only else replace(item, clouds=envelopes(item)) for item in interventions]
