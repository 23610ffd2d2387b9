"""The condition of CAST (arXiv 2409.05907): sim(x) = cos(x, tanh(c c^T x / c^T c)), above or below a threshold.

CAST reads it once per prompt: on the mean over all positions of a call (`PooledConditionProbe`), or over the prompt's
tokens of a text that is generated token by token (`ConditionLatch`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Self

import torch
import torch.nn.functional as F

from ..model.eager import in_chunks
from ..utils.tensorclass import Holds, Scalar, Vector, cast, compute_dtype
from .base import Probe
from .combine import OneScoreProbe
from .running import PromptLatch


@dataclass(frozen=True, eq=False)
class ConditionProbe(Probe, kind="condition"):
    """h = 1 where side * (sim(x) - threshold) > 0, else 0, at each position by itself.

    Args:
        direction: c, [width], of any length; c and -c are the same condition.
        threshold: [], a cosine.
        side: [], 1 to fire above the threshold, -1 below.

    Example:
        >>> probe = ConditionProbe(torch.tensor([1.0, 0.0]), torch.tensor(0.5), torch.tensor(1.0))
        >>> probe.score(torch.tensor([[3.0, 1.0], [1.0, 3.0]]))[:, 0]
        tensor([1., 0.])
    """

    direction: Vector
    threshold: Scalar
    side: Annotated[torch.Tensor, Holds(high=1, zero=False)]

    def similarity(self, x: torch.Tensor) -> torch.Tensor:
        """The cosine between x [..., width] and tanh of its projection on c: [..., 1], 0 where x is zeros."""
        dtype = compute_dtype(x)
        unit = F.normalize(self.direction.to(dtype), dim=0, eps=1e-12)

        def similarity(x: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
            x = cast(x, dtype)
            projected = (F.linear(x, unit[None]) * unit).tanh()
            lengths = [vector.norm(dim=-1, keepdim=True).clamp_min(1e-12) for vector in (x, projected)]
            product = (x * projected).sum(-1, keepdim=True)
            return torch.div(product / lengths[0], lengths[1], out=out)  # the product of lengths may overflow

        return in_chunks(similarity, x, 1, (unit,))

    def logit(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        cosine = self.similarity(x)
        return self.side.to(cosine.dtype) * (cosine - self.threshold.to(cosine.dtype))

    def link(self, z: torch.Tensor) -> torch.Tensor:
        return (z > 0).to(z.dtype)

    def with_lower_bias(self, shift: float) -> Self:
        return replace(self, threshold=self.threshold + self.side * shift)


@dataclass(frozen=True, eq=False)
class PooledConditionProbe(OneScoreProbe, kind="pooled-condition"):
    """One decision for all positions of a row: the condition of their mean.

    Args:
        inner: the condition.

    Example:
        >>> inner = ConditionProbe(torch.tensor([1.0, 0.0]), torch.tensor(0.5), torch.tensor(1.0))
        >>> PooledConditionProbe(inner).score(torch.tensor([[3.0, 1.0], [0.0, 1.0]]))
        tensor([[1.]])
    """

    inner: ConditionProbe


@dataclass(frozen=True, eq=False)
class ConditionLatch(PromptLatch, kind="condition-latch"):
    """One decision per row, of the mean over its prompt: h from the prompt's last token on, 0 before.

    Its state is the sum over the prompt so far, the number of its positions, and the decision: [batch, width + 2].

    Args:
        inner: the condition.

    Example:
        >>> inner = ConditionProbe(torch.tensor([1.0, 0.0]), torch.tensor(0.5), torch.tensor(1.0))
        >>> ConditionLatch(inner).score(torch.tensor([[[3.0, 1.0], [0.0, 1.0]]]))[0, :, 0]  # one row, two positions
        tensor([0., 1.])
    """

    inner: ConditionProbe

    def complement(self) -> Self:
        return replace(self, inner=replace(self.inner, side=-self.inner.side))

    @property
    def state_size(self) -> int:
        return len(self.inner.direction) + 2

    def _sum(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (mask[:, None] @ x.float())[:, 0]

    def _decide(self, mean: torch.Tensor) -> torch.Tensor:
        return self.inner.score(mean)
