"""The hard probe: h = 1 where a linear probe's logit is above a threshold, 0 elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch

from . import Probe
from .linear import LinearProbe


@dataclass(frozen=True, eq=False)
class StepProbe(Probe, kind="step"):
    """h = 1 where inner.logit(x) > threshold, at each position; on the threshold it is 0.

    Args:
        threshold: [], a logit.
    """

    inner: LinearProbe
    threshold: torch.Tensor

    def logit(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        z = self.inner.logit(x, mask)
        return z - self.threshold.to(z.dtype)

    def link(self, z: torch.Tensor) -> torch.Tensor:
        return (z > 0).to(z.dtype)

    def lowered(self, shift: float) -> Self:
        return replace(self, threshold=self.threshold + shift)
