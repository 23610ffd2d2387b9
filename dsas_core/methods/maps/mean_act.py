"""Mean-AcT: T(x) = x + mean(target) - mean(source), where the dimension varies on both sides.

The options, the source and the traps are those of `base.transport`. Without support it is CAA, except for dimensions
that hardly vary (standard deviation at most 1e-4), which stay. Best strengths go up to about 2.5 in the paper.
"""

from __future__ import annotations

import torch

from ...maps import AffineMap
from ..base.traits import MapTraits
from ..base.transport import Transport, varying_dimensions


class MeanAcT(Transport):
    """Transport of means. Options `support` and `spatial`, see `base.transport`.

    Example:
        >>> source, target = torch.tensor([[0.0], [2.0]]), torch.tensor([[5.0], [9.0]])
        >>> MeanAcT().fit(source, target).shift
        tensor([6.])
    """

    traits = MapTraits("move the mean of each dimension to the target's (arXiv 2410.23054)", min_rows=2)

    def _affine(self, source: torch.Tensor, target: torch.Tensor) -> AffineMap:
        return AffineMap((target.mean(0) - source.mean(0)) * varying_dimensions(source, target))
