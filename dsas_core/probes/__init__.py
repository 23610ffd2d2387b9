"""Probes: WHEN an activation is moved. `score(x) -> h` in [0, 1], broadcastable to x."""

from __future__ import annotations

import torch

from ..parts import Part


class Probe(Part):
    """Base of every probe. Pure tensor code on [..., positions, width]; see `running` for those that remember."""

    def logit(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The evidence before the link; same shape as `score`."""
        return self.score(x, mask).logit()

    def score(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """How much each position of x [..., positions, width] shows the concept.

        Args:
            mask: [..., positions], 1 for positions that count; None counts all. Only probes that pool look at it.

        Returns:
            h in [0, 1], [..., positions, 1] or broadcastable to it, float32 at least.
        """
        return self.logit(x, mask).sigmoid()


from .combine import ComplementProbe, PooledProbe, ProductProbe  # noqa: E402
from .constant import ConstantProbe  # noqa: E402
from .linear import LinearProbe, fold  # noqa: E402
from .running import LatchProbe, PrefixProbe, RunningProbe  # noqa: E402

__all__ = [
    "ComplementProbe",
    "ConstantProbe",
    "LatchProbe",
    "LinearProbe",
    "PooledProbe",
    "PrefixProbe",
    "Probe",
    "ProductProbe",
    "RunningProbe",
    "fold",
]
