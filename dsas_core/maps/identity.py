"""The map that changes nothing: its site is read only, for the trace to show where the concept is."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .base import Map


@dataclass(frozen=True, eq=False)
class IdentityMap(Map, kind="identity"):
    """T(x; s) = x.

    Example:
        >>> IdentityMap().apply(torch.ones(1, 2), 5.0)
        tensor([[1., 1.]])
    """

    linear_in_strength = True

    def displacement(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros(())
