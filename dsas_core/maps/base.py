"""The base of every map."""

from __future__ import annotations

from typing import ClassVar

import torch

from ..utils.tensorclass import TensorClass


class Map(TensorClass):
    """Base of every map: pure tensor code on activations [..., positions, width].

    A subclass defines `displacement`, or `apply` where it is not linear in its strength.

    Attributes:
        linear_in_strength: whether T(x; s) = x + s * D(x); such a map publishes D as `displacement`, takes the one-pass
            form of `interpolation`, can be stacked, and its strength can be solved for ("auto", within="target").

    Example:
        >>> from dsas_core.maps import AffineMap
        >>> AffineMap(torch.tensor([1.0, 0.0])).apply(torch.zeros(1, 2), strength=0.5)
        tensor([[0.5000, 0.0000]])
    """

    linear_in_strength: ClassVar[bool] = False

    @property
    def scales_strength(self) -> bool:
        """Whether a gate's h is a factor on the strength, T(x; h * s), where others interpolate x and T(x; s)."""
        return False

    def displacement(self, x: torch.Tensor) -> torch.Tensor:
        """D(x) of a map that is linear in its strength.

        Args:
            x: [..., positions, width].

        Returns:
            Broadcastable to x, of its dtype.

        Raises:
            NotImplementedError: the map is not linear in its strength.
        """
        raise NotImplementedError(f"{type(self).__name__} is not linear in its strength")

    def apply(self, x: torch.Tensor, strength: torch.Tensor | float) -> torch.Tensor:
        """The moved activation T(x; strength).

        Args:
            x: [..., positions, width].
            strength: a number, or a tensor that is broadcastable to x; 0 gives x itself.

        Returns:
            Of the shape of x.
        """
        return x + strength * self.displacement(x)
