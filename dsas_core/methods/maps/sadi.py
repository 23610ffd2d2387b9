"""SADI: T(x; s) = x * (1 + s * M), M a mask of the K dimensions whose mean grows most from source to target.

Wang et al., "Semantics-Adaptive Activation Intervention for LLMs via Dynamic Steering Vectors", arXiv 2410.12299;
released code. What is added is the input's own activation at these dimensions, so it differs from input to input. The
highest differences are taken, not the largest in size, as released. The released code multiplies by its strength, so
its 5 is a strength of 4 here.

`top` is K at each site, a number or a share (0.05); the paper chooses 1 to 500 among all layers together. Only the
mean difference counts, so prompts need not be pairs. Traps: a dimension that is negative is pushed down, though its
difference says up; one near 0 stays; K and the strength are sensitive.
"""

from __future__ import annotations

import torch

from ...maps import AffineMap
from ..base.map_method import MapMethod
from ..base.top_dimensions import TOP, top_mask
from ..base.traits import MapTraits


class SADI(MapMethod):
    """Scaling of the dimensions that differ most. Option `top`: how many, or which share of them.

    Example:
        >>> SADI().fit(torch.zeros(2, 3), torch.tensor([[1.0, 5.0, -9.0], [1.0, 5.0, -9.0]]), top=1).slope
        tensor([1., 2., 1.])
    """

    traits = MapTraits("amplify the dimensions whose mean grows most from source to target (arXiv 2410.12299)")
    options = {"top": TOP}

    def _fit(self, source: torch.Tensor, target: torch.Tensor, *, top: int | float) -> AffineMap:
        mask = top_mask(target.mean(0) - source.mean(0), top)
        return AffineMap(torch.zeros_like(mask), 1 + mask)
