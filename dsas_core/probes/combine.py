"""Probes made of probes: a decision on the mean over positions, and products (a fuzzy AND)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from . import Probe
from .linear import LinearProbe


@dataclass(frozen=True, eq=False)
class PooledProbe(Probe, kind="pooled"):
    """One h for all positions: a linear probe of their masked mean, as it was fitted on pooled activations."""

    inner: LinearProbe

    def logit(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.inner.logit(pool(x, mask))


@dataclass(frozen=True, eq=False)
class ProductProbe(Probe, kind="product"):
    """h = the product of the factors: all must agree."""

    factors: tuple[Probe, ...]

    def score(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        h = self.factors[0].score(x, mask)
        for factor in self.factors[1:]:
            h = h * factor.score(x, mask)
        return h


@dataclass(frozen=True, eq=False)
class ComplementProbe(Probe, kind="complement"):
    """h = 1 - the inner probe's h: everything but the concept."""

    inner: Probe

    def score(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return 1 - self.inner.score(x, mask)


def pool(x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean of x [..., positions, width] over the positions that `mask` [..., positions] counts: [..., 1, width]."""
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    if mask is None:
        return x.mean(-2, keepdim=True)
    share = mask.to(x.dtype)
    share = share / share.sum(-1, keepdim=True).clamp_min(1)
    return share.unsqueeze(-2) @ x
