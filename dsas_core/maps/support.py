"""Where a map acts: inside a range of values, by dimension; or on the mean over positions alone.

The maps of AcT need both beside an affine map (arXiv 2410.23054).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..utils.tensorclass import Vector, cast
from .affine import AffineMap
from .base import Map


@dataclass(frozen=True, eq=False)
class SupportMap(Map, kind="support"):
    """The inner map where low < x < high, strictly and dimension by dimension; x itself elsewhere.

    Args:
        inner: the map that acts inside the range.
        low: lower bound, [width].
        high: upper bound, [width].

    Example:
        >>> inside = SupportMap(AffineMap(torch.tensor([1.0])), low=torch.tensor([0.0]), high=torch.tensor([2.0]))
        >>> inside.apply(torch.tensor([[1.0], [5.0]]), 1.0)[:, 0]
        tensor([2., 5.])
    """

    linear_in_strength = True

    inner: AffineMap
    low: Vector
    high: Vector

    def displacement(self, x: torch.Tensor) -> torch.Tensor:
        low, high = cast(self.low, x.dtype), cast(self.high, x.dtype)
        inside = torch.minimum(x - low, high - x).detach().sign().clamp_min(0)  # 1 or 0: a CPU is slow with bool
        return inside * self.inner.displacement(x.clamp(low, high))  # clamped, as 0 times infinity is not 0


@dataclass(frozen=True, eq=False)
class MeanShiftMap(Map, kind="mean-shift"):
    """T(x; s) = x + s * D(mean of x over positions), D the inner map's displacement: the same at all positions.

    All positions of the call count, padding too, and of a text that is generated token by token a call has the newest
    token alone: this is for pictures.

    Args:
        inner: the map of the mean.

    Example:
        >>> double = AffineMap(shift=torch.zeros(1), slope=torch.tensor([2.0]))
        >>> MeanShiftMap(double).apply(torch.tensor([[1.0], [3.0]]), 1.0)[:, 0]  # displacement of the mean: 2
        tensor([3., 5.])
    """

    linear_in_strength = True

    inner: AffineMap | SupportMap

    def displacement(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner.displacement(x.mean(-2, keepdim=True))
