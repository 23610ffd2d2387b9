"""Probes: WHEN an activation is moved. `score(x) -> h` in [0, 1], broadcastable to x."""

from __future__ import annotations

from typing import Self

import torch

from ..parts import Part


class Probe(Part):
    """Base of every probe. Pure tensor code on [..., positions, width]; see `running` for those that remember."""

    def logit(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The evidence before the link; same shape as `score`."""
        return self.score(x, mask).logit()

    def link(self, z: torch.Tensor) -> torch.Tensor:
        """h of the evidence."""
        return z.sigmoid()

    def score(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """How much each position of x [..., positions, width] shows the concept.

        Args:
            mask: [..., positions], 1 for positions that count; None counts all. Only probes that pool look at it.

        Returns:
            h in [0, 1], [..., positions, 1] or [..., positions, width] (each dimension by itself), or broadcastable to
            one of them; float32 at least.
        """
        return self.link(self.logit(x, mask))

    def lowered(self, shift: float) -> Self:
        """The probe with `shift` taken off its evidence, `link(logit(x) - shift)`; itself where it has no threshold."""
        return self


from .combine import AllProbe, AnyProbe, ComplementProbe, PooledProbe, ProductProbe  # noqa: E402
from .condition import ConditionLatch, ConditionProbe, PooledConditionProbe  # noqa: E402
from .constant import ConstantProbe  # noqa: E402
from .cosine import CosineProbe  # noqa: E402
from .linear import LinearProbe, fold  # noqa: E402
from .mlp import MLPProbe  # noqa: E402
from .quadratic import QuadraticProbe, quadratic  # noqa: E402
from .quantile import QuantileProbe  # noqa: E402
from .running import LastProbe, LatchProbe, PrefixProbe, RunningProbe  # noqa: E402
from .step import StepProbe  # noqa: E402

__all__ = [
    "AllProbe",
    "AnyProbe",
    "ComplementProbe",
    "ConditionLatch",
    "ConditionProbe",
    "ConstantProbe",
    "CosineProbe",
    "LastProbe",
    "LatchProbe",
    "LinearProbe",
    "MLPProbe",
    "PooledConditionProbe",
    "PooledProbe",
    "PrefixProbe",
    "Probe",
    "ProductProbe",
    "QuadraticProbe",
    "QuantileProbe",
    "RunningProbe",
    "StepProbe",
    "fold",
    "quadratic",
]
