"""Maps along one direction: back to a plane, where x is beyond it, or towards the direction at x's own length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F

from ..utils.tensorclass import Direction, Holds, Scalar, Vector
from .base import Map


@dataclass(frozen=True, eq=False)
class ProjectionMap(Map, kind="projection"):
    """T(x; s) = x - s * factor * max(u . x + offset, 0) * u: to the plane u . x + offset = 0 at s * factor = 1.

    x itself where it is not beyond the plane; a reflection in it at s * factor = 2. This is the map of MERA (arXiv
    2510.13290) and of the erasure of CASteer (arXiv 2503.09630).

    Args:
        direction: u, [width], of length 1, or zeros: nothing moves.
        offset: [].
        factor: 1 to move to the plane at strength 1, 2 to reflect in it.

    Example:
        >>> plane = ProjectionMap(direction=torch.tensor([1.0, 0.0]), offset=torch.tensor(-2.0))
        >>> plane.apply(torch.tensor([[5.0, 1.0], [1.0, 1.0]]), 1.0)
        tensor([[2., 1.],
                [1., 1.]])
    """

    linear_in_strength = True

    direction: Direction
    offset: Scalar
    factor: Annotated[float, Holds(high=1000)] = 1.0

    def displacement(self, x: torch.Tensor) -> torch.Tensor:
        u = self.direction.to(x.dtype)
        beyond = F.linear(x, u[None], self.offset.to(x.dtype)[None]).clamp_min(0)
        return -self.factor * beyond * u


@dataclass(frozen=True, eq=False)
class TurnMap(Map, kind="turn"):
    """T(x; s) = (x + s * v) * |x| / |x + s * v|: a vector is added and the length kept. Not linear in its strength.

    This is the addition of CASteer (arXiv 2503.09630).

    Args:
        shift: v, [width].

    Example:
        >>> TurnMap(torch.tensor([0.0, 3.0])).apply(torch.tensor([[3.0, 0.0]]), 1.0)
        tensor([[2.1213, 2.1213]])
    """

    shift: Vector

    def apply(self, x: torch.Tensor, strength: torch.Tensor | float) -> torch.Tensor:
        moved = x + (strength * self.shift).to(x.dtype)
        before, after = x.norm(dim=-1, keepdim=True), moved.norm(dim=-1, keepdim=True)
        return moved * torch.where(after > 0, before / after, 1)
