"""The probe that reads no activation: h = value everywhere. 1 is the vanilla method, 0 the base model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from ..utils.tensorclass import Holds, compute_dtype
from .base import Probe


@dataclass(frozen=True, eq=False)
class ConstantProbe(Probe, kind="constant"):
    """h = `value` at every position.

    Args:
        value: h, in [0, 1].

    Example:
        >>> ConstantProbe(1.0).score(torch.zeros(2, 8))
        tensor([[1.],
                [1.]])
    """

    value: Annotated[float, Holds(high=1, low=0)] = 1.0

    def score(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return torch.full((*x.shape[:-1], 1), self.value, dtype=compute_dtype(x), device=x.device)

    @property
    def locator(self) -> None:
        return None
