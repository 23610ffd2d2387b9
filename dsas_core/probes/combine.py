"""Probes of other probes: one decision on the mean over positions, products (a fuzzy AND), and AND and OR (CAST)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from typing import ClassVar, Self

import torch

from ..model.eager import at_hand
from ..utils.tensorclass import cast, compute_dtype
from .base import Probe, ProbeOfMeans
from .linear import LinearProbe


@dataclass(frozen=True, eq=False)
class OneScoreProbe(ProbeOfMeans):
    """Base of the probes with one h for all positions of a row: the inner probe's h of their mean.

    Args:
        inner: the probe of means.
    """

    one_score_per_row = True

    def logit(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.inner.logit(pool(x, mask))

    def link(self, z: torch.Tensor) -> torch.Tensor:
        return self.inner.link(z)


@dataclass(frozen=True, eq=False)
class PooledProbe(OneScoreProbe, kind="pooled"):
    """h = sigmoid(w . mean of x over positions + b), one for all positions of a row, as the form "pooled" fits it.

    Args:
        inner: the probe of means.

    Example:
        >>> probe = PooledProbe(LinearProbe(torch.tensor([1.0]), torch.tensor(0.0)))
        >>> probe.score(torch.tensor([[-1.0], [1.0], [5.0]]), mask=torch.tensor([1, 1, 0]))
        tensor([[0.5000]])
    """

    inner: LinearProbe


@dataclass(frozen=True, eq=False)
class ProductProbe(Probe, kind="product"):
    """h = h1 * h2 * …, a fuzzy AND. Its threshold is that of the first factor.

    Args:
        factors: probes of one activation.

    Example:
        >>> from dsas_core.probes import ConstantProbe
        >>> ProductProbe((ConstantProbe(0.5), ConstantProbe(0.5))).score(torch.zeros(1, 3))
        tensor([[0.2500]])
    """

    factors: tuple[Probe, ...]

    def score(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return reduce(_multiply, [factor.score(x, mask) for factor in self.factors])

    def with_lower_bias(self, shift: float) -> Self:
        return replace(self, factors=(self.factors[0].with_lower_bias(shift), *self.factors[1:]))

    @property
    def locator(self) -> Probe:
        return self.factors[0].locator or self.factors[0]


def _multiply(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Their product, written over the second where that is as large: scores are tensors of their own."""
    whole = second.dtype == first.dtype and second.shape == torch.broadcast_shapes(first.shape, second.shape)
    if whole and at_hand(first, second):
        return second.mul_(first)
    return first * second


@dataclass(frozen=True, eq=False)
class _PartsProbe(Probe):
    """Base of the probes whose h is one of their parts' h at each position. A lower bias lowers every part's."""

    choose: ClassVar[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]

    parts: tuple[Probe, ...]

    def score(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return reduce(type(self).choose, [part.score(x, mask) for part in self.parts])

    def with_lower_bias(self, shift: float) -> Self:
        return replace(self, parts=tuple(part.with_lower_bias(shift) for part in self.parts))


@dataclass(frozen=True, eq=False)
class AnyProbe(_PartsProbe, kind="any"):
    """h = max(h1, h2, …), the OR of CAST's conditions (arXiv 2409.05907).

    Args:
        parts: probes of one activation.

    Example:
        >>> from dsas_core.probes import ConstantProbe
        >>> AnyProbe((ConstantProbe(0.2), ConstantProbe(0.5))).score(torch.zeros(1, 3))
        tensor([[0.5000]])
    """

    choose = torch.maximum


@dataclass(frozen=True, eq=False)
class AllProbe(_PartsProbe, kind="all"):
    """h = min(h1, h2, …), the AND of CAST's conditions (arXiv 2409.05907).

    Args:
        parts: probes of one activation.

    Example:
        >>> from dsas_core.probes import ConstantProbe
        >>> AllProbe((ConstantProbe(0.2), ConstantProbe(0.5))).score(torch.zeros(1, 3))
        tensor([[0.2000]])
    """

    choose = torch.minimum


def pool(x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean over positions.

    Args:
        x: [..., positions, width].
        mask: [..., positions], 1 for positions that count; None counts all.

    Returns:
        [..., 1, width], float32 at least. Zeros where no position counts.

    Example:
        >>> pool(torch.tensor([[1.0], [3.0], [9.0]]), mask=torch.tensor([1, 1, 0]))
        tensor([[2.]])
    """
    x = cast(x, compute_dtype(x))
    if mask is None:
        return x.mean(-2, keepdim=True)
    share = mask.to(x.dtype)
    share = share / share.sum(-1, keepdim=True).clamp_min(1)
    return share.unsqueeze(-2) @ x
