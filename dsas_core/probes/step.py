"""The hard probe: h = 1 where a linear probe's logit is above a threshold, 0 elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Self

import torch

from ..utils.tensorclass import LARGEST_SLOPE, Holds
from .base import Probe
from .linear import LinearProbe


@dataclass(frozen=True, eq=False)
class StepProbe(Probe, kind="step"):
    """h = 1 where inner.logit(x) > threshold, at each position; on the threshold it is 0.

    Args:
        inner: the linear probe.
        threshold: [], a logit.

    Example:
        >>> probe = StepProbe(LinearProbe(torch.tensor([1.0]), torch.tensor(0.0)), torch.tensor(2.0))
        >>> probe.score(torch.tensor([[2.0], [2.5]]))[:, 0]
        tensor([0., 1.])
    """

    inner: LinearProbe
    threshold: Annotated[torch.Tensor, Holds(high=LARGEST_SLOPE)]

    def logit(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        z = self.inner.logit(x, mask)
        return z - self.threshold.to(z.dtype)

    def link(self, z: torch.Tensor) -> torch.Tensor:
        return (z > 0).to(z.dtype)

    def with_lower_bias(self, shift: float) -> Self:
        return replace(self, threshold=self.threshold + shift)
