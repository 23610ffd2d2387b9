"""Diagonal affine map: T(x; s) = x + s * ((slope - 1) * x + shift). With slope 1 (None) it adds a vector."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..utils.tensorclass import Vector, cast
from .base import Map


@dataclass(frozen=True, eq=False)
class AffineMap(Map, kind="affine"):
    """T(x; s) = x + s * ((slope - 1) * x + shift), channel by channel.

    Args:
        shift: [width].
        slope: [width], or None for 1 everywhere (CAA and other additive methods).

    Example:
        >>> AffineMap(shift=torch.tensor([1.0, 0.0]), slope=torch.tensor([1.0, 3.0])).apply(torch.ones(1, 2), 0.5)
        tensor([[1.5000, 2.0000]])
    """

    linear_in_strength = True

    shift: Vector
    slope: Vector | None = None

    def displacement(self, x: torch.Tensor) -> torch.Tensor:
        shift = cast(self.shift, x.dtype)
        return shift if self.slope is None else torch.addcmul(shift, cast(self.slope, x.dtype) - 1, x)
