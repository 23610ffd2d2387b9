"""Maps: HOW an activation is moved. `apply(x, strength) -> x'`, same shape; strength 0 gives x itself."""

from __future__ import annotations

from typing import ClassVar

import torch

from ..parts import Part


class Map(Part):
    """Base of every map.

    `displaces` says that the map is linear in its strength, T(x; s) = x + s * D(x), and publishes D.
    """

    displaces: ClassVar[bool] = False

    def displacement(self, x: torch.Tensor) -> torch.Tensor:
        """D(x) for maps with `displaces`; broadcastable to x."""
        raise NotImplementedError(f"{type(self).__name__} is not linear in its strength")

    def apply(self, x: torch.Tensor, strength: torch.Tensor | float) -> torch.Tensor:
        """Move x [..., positions, width] by `strength`, a number or a tensor broadcastable to x."""
        return x + strength * self.displacement(x)


from .affine import AffineMap  # noqa: E402
from .identity import IdentityMap  # noqa: E402
from .projection import ProjectionMap, TurnMap  # noqa: E402
from .support import MeanShiftMap, SupportMap  # noqa: E402

__all__ = ["AffineMap", "IdentityMap", "Map", "MeanShiftMap", "ProjectionMap", "SupportMap", "TurnMap"]
