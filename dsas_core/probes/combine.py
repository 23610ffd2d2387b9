"""Probes made of probes: a decision on the mean over positions, products (a fuzzy AND), and the logic of CAST."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch

from . import Probe
from .linear import LinearProbe


@dataclass(frozen=True, eq=False)
class PooledProbe(Probe, kind="pooled"):
    """One h for all positions: a linear probe of their masked mean, as it was fitted on pooled activations."""

    inner: LinearProbe

    def logit(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.inner.logit(pool(x, mask))

    def lowered(self, shift: float) -> Self:
        return replace(self, inner=self.inner.lowered(shift))


@dataclass(frozen=True, eq=False)
class ProductProbe(Probe, kind="product"):
    """h = the product of the factors: all must agree. Its threshold is that of the first."""

    factors: tuple[Probe, ...]

    def score(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        h = self.factors[0].score(x, mask)
        for factor in self.factors[1:]:
            h = h * factor.score(x, mask)
        return h

    def lowered(self, shift: float) -> Self:
        return replace(self, factors=(self.factors[0].lowered(shift), *self.factors[1:]))


@dataclass(frozen=True, eq=False)
class ComplementProbe(Probe, kind="complement"):
    """h = 1 - the inner probe's h: everything but the concept. It has no threshold of its own to move."""

    inner: Probe

    def score(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return 1 - self.inner.score(x, mask)


@dataclass(frozen=True, eq=False)
class AnyProbe(Probe, kind="any"):
    """h = the highest of the parts' (OR). Lowering it lowers every part."""

    parts: tuple[Probe, ...]

    def score(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        h = self.parts[0].score(x, mask)
        for part in self.parts[1:]:
            h = torch.maximum(h, part.score(x, mask))
        return h

    def lowered(self, shift: float) -> Self:
        return replace(self, parts=tuple(part.lowered(shift) for part in self.parts))


@dataclass(frozen=True, eq=False)
class AllProbe(Probe, kind="all"):
    """h = the lowest of the parts' (AND). Lowering it lowers every part."""

    parts: tuple[Probe, ...]

    def score(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        h = self.parts[0].score(x, mask)
        for part in self.parts[1:]:
            h = torch.minimum(h, part.score(x, mask))
        return h

    def lowered(self, shift: float) -> Self:
        return replace(self, parts=tuple(part.lowered(shift) for part in self.parts))


def pool(x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean of x [..., positions, width] over the positions that `mask` [..., positions] counts: [..., 1, width]."""
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    if mask is None:
        return x.mean(-2, keepdim=True)
    share = mask.to(x.dtype)
    share = share / share.sum(-1, keepdim=True).clamp_min(1)
    return share.unsqueeze(-2) @ x
