"""The quantile probe: the threshold is a quantile of each picture's own logits, after SEGA (arXiv 2301.12247)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from ..utils.tensorclass import Holds
from .base import Probe


@dataclass(frozen=True, eq=False)
class QuantileProbe(Probe, kind="quantile"):
    """h = 1 where the inner probe's logit is at or above its own quantile `q` over the positions that count, else 0.

    A row of one position is always at its own quantile: not for texts, which are generated token by token.

    Args:
        inner: the probe whose logit orders the positions.
        q: in (0, 1).

    Example:
        >>> from dsas_core.probes import LinearProbe
        >>> probe = QuantileProbe(LinearProbe(torch.tensor([1.0]), torch.tensor(0.0)), q=0.5)
        >>> probe.score(torch.tensor([[1.0], [2.0], [3.0]]))[:, 0]
        tensor([0., 1., 1.])
    """

    inner: Probe
    q: Annotated[float, Holds(high=1 - 1e-6, low=1e-6)] = 0.9

    def score(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        z = self.inner.logit(x)
        if mask is not None:  # a comparison with NaN, where nothing counts, is false
            z = torch.where(mask[..., None] > 0, z, torch.nan)
        return (z >= torch.nanquantile(z, self.q, dim=-2, keepdim=True)).to(z.dtype)
