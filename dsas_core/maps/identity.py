"""The map that changes nothing: its site is watched, so that the trace can show where the concept is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from . import Map


@dataclass(frozen=True, eq=False)
class IdentityMap(Map, kind="identity"):
    """T(x; s) = x."""

    displaces: ClassVar[bool] = True

    def displacement(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros(())
