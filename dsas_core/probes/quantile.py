"""The quantile probe: a threshold that every picture or text sets for itself (SEGA's idea)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from . import Probe


@dataclass(frozen=True, eq=False)
class QuantileProbe(Probe, kind="quantile"):
    """h = 1 where the inner probe's logit is at or above its own quantile `q` over the positions that count, else 0.

    A row of one position is above its own quantile: not for tokens that are written one by one.
    """

    inner: Probe
    q: float = 0.9

    def score(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        z = self.inner.logit(x)
        if mask is not None:  # a comparison with NaN, where nothing counts, is false
            z = torch.where(mask[..., None] > 0, z, torch.nan)
        return (z >= torch.nanquantile(z, self.q, dim=-2, keepdim=True)).to(z.dtype)
