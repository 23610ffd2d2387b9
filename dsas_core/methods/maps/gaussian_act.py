"""Gaussian-AcT: T(x) = (σ_target / σ_source) (x - mean(source)) + mean(target), by dimension.

The options, the source and the traps are those of `base.transport`. Standard deviations are unbiased (n - 1);
dimensions where one is at most 1e-4 stay as they are.
"""

from __future__ import annotations

import torch

from ...maps import AffineMap
from ..base.traits import MapTraits
from ..base.transport import Transport, varying_dimensions


class GaussianAcT(Transport):
    """Optimal transport between Gaussians. Options `support` and `spatial`, see `base.transport`.

    Example:
        >>> source, target = torch.tensor([[0.0], [2.0]]), torch.tensor([[5.0], [9.0]])
        >>> GaussianAcT().fit(source, target).apply(source, 1.0)[:, 0]
        tensor([5., 9.])
    """

    traits = MapTraits("move mean and spread of each dimension to the target's (arXiv 2410.23054)", min_rows=2)

    def _affine(self, source: torch.Tensor, target: torch.Tensor) -> AffineMap:
        varying = varying_dimensions(source, target)
        slope = torch.where(varying, target.std(0) / source.std(0), 1.0)
        shift = torch.where(varying, target.mean(0) - slope * source.mean(0), 0.0)
        return AffineMap(shift, slope)
