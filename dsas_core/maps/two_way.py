"""An affine map whose inverse serves negative strengths: what it takes out, they bring in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from ..utils.tensorclass import cast
from .affine import AffineMap
from .base import Map

#: a dimension whose slope is lower has no inverse worth the name: it is extrapolated
LEAST_SLOPE = 0.1


@dataclass(frozen=True, eq=False)
class TwoWayMap(Map, kind="two-way"):
    """T(x; s) = x + s * D(x) for s > 0, and x + |s| * B(x) for s < 0, both affine. Linear on each side, not across.

    Args:
        forward: the map of positive strengths.
        backward: that of negative ones.

    Example:
        >>> two_way = TwoWayMap.of(AffineMap(shift=torch.tensor([2.0]), slope=torch.tensor([4.0])))
        >>> two_way.apply(two_way.apply(torch.tensor([[3.0]]), 1.0), -1.0)
        tensor([[3.]])
    """

    forward: AffineMap
    backward: AffineMap

    @classmethod
    def of(cls, forward: AffineMap) -> Self:
        """A map with its inverse, (x - shift) / slope, dimension by dimension."""
        if forward.slope is None:
            return cls(forward, AffineMap(-forward.shift))
        slope, shift = forward.slope, forward.shift
        invertible = slope >= LEAST_SLOPE
        inverse = torch.where(invertible, slope, 1.0)
        return cls(
            forward,
            AffineMap(
                torch.where(invertible, -shift / inverse, -shift), torch.where(invertible, 1 / inverse, 2 - slope)
            ),
        )

    def apply(self, x: torch.Tensor, strength: torch.Tensor | float) -> torch.Tensor:
        s = torch.as_tensor(strength, dtype=x.dtype, device=x.device)
        ahead, back = s.clamp_min(0), (-s).clamp_min(0)
        shift = ahead * cast(self.forward.shift, x.dtype) + back * cast(self.backward.shift, x.dtype)
        return x + torch.addcmul(shift, ahead * _growth(self.forward, x) + back * _growth(self.backward, x), x)


def _growth(part: AffineMap, x: torch.Tensor) -> torch.Tensor:
    """What the slope adds to each dimension, as a share of it, [width] or []."""
    return x.new_zeros(()) if part.slope is None else cast(part.slope, x.dtype) - 1
