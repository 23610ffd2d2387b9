"""The cosine probe: h = max(0, cos(x, direction) - threshold), at each position; after steering-lite and CASteer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch

from ..utils.tensorclass import Direction, Scalar, cast, compute_dtype
from .base import Probe


@dataclass(frozen=True, eq=False)
class CosineProbe(Probe, kind="cosine"):
    """h = max(0, direction . x / |x| - threshold), at each position.

    Args:
        direction: [width], of length 1.
        threshold: [], a cosine.

    Example:
        >>> probe = CosineProbe(torch.tensor([1.0, 0.0]), torch.tensor(0.5))
        >>> probe.score(torch.tensor([[2.0, 0.0], [0.0, 2.0]]))[:, 0]
        tensor([0.5000, 0.0000])
    """

    direction: Direction
    threshold: Scalar

    def logit(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        dtype = compute_dtype(x)
        x = cast(x, dtype)
        along = torch.nn.functional.linear(x, cast(self.direction, dtype)[None])
        return along / x.norm(dim=-1, keepdim=True).clamp_min(1e-12) - cast(self.threshold, dtype)

    def link(self, z: torch.Tensor) -> torch.Tensor:
        return z.clamp(0, 1)

    def with_lower_bias(self, shift: float) -> Self:
        return replace(self, threshold=self.threshold + shift)
