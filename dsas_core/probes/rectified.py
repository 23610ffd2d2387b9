"""The rectified probe h = max(w . x + b, 0), also cut at 1: the gate of E2E-DSAS without an exponential."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Self

import torch

from ..utils.tensorclass import LARGEST_SLOPE, WIDTH, Holds, cast, compute_dtype
from .base import Probe


@dataclass(frozen=True, eq=False)
class RectifiedProbe(Probe, kind="rectified"):
    """h = max(weight . x + bias, 0) at each position, at most 1 where it is clipped.

    Not clipped, h may exceed 1: the map is then extrapolated. Below 0 it is closed for good, and no gradient opens it.

    Args:
        weight: [width].
        bias: [].
        clipped: whether h is at most 1.

    Example:
        >>> probe = RectifiedProbe(weight=torch.tensor([1.0]), bias=torch.tensor(-2.0))
        >>> probe.score(torch.tensor([[1.0], [2.5], [9.0]]))[:, 0]
        tensor([0.0000, 0.5000, 1.0000])
    """

    weight: Annotated[torch.Tensor, Holds(WIDTH, high=LARGEST_SLOPE)]
    bias: Annotated[torch.Tensor, Holds(high=LARGEST_SLOPE)]
    clipped: bool = True

    def logit(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        dtype = compute_dtype(x)
        return (cast(x, dtype) @ cast(self.weight, dtype) + cast(self.bias, dtype))[..., None]

    def link(self, z: torch.Tensor) -> torch.Tensor:
        return z.clamp(0, 1) if self.clipped else z.relu()

    def with_lower_bias(self, shift: float) -> Self:
        return replace(self, bias=self.bias - shift)
