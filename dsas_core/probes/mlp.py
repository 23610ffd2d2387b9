"""The probe with one hidden layer: h = sigmoid(v . relu(W x + c) + b)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Self

import torch

from ..utils.tensorclass import Holds, Scalar, compute_dtype
from .base import Probe
from .linear import LOGIT_LIMIT


@dataclass(frozen=True, eq=False)
class MLPProbe(Probe, kind="mlp"):
    """h = sigmoid(outer . relu(inner x + inner_bias) + bias) at each position.

    Args:
        inner: W, [hidden, width].
        inner_bias: c, [hidden].
        outer: v, [hidden].
        bias: b, [].

    Example:
        >>> probe = MLPProbe(torch.tensor([[1.0], [-1.0]]), torch.zeros(2), torch.ones(2), torch.tensor(-3.0))
        >>> probe.logit(torch.tensor([[-3.0], [1.0]]))[:, 0]  # |x| - 3
        tensor([ 0., -2.])
    """

    inner: Annotated[torch.Tensor, Holds("hidden width")]
    inner_bias: Annotated[torch.Tensor, Holds("hidden")]
    outer: Annotated[torch.Tensor, Holds("hidden")]
    bias: Scalar

    def logit(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        dtype = compute_dtype(x)
        hidden = torch.nn.functional.linear(x.to(dtype), self.inner.to(dtype), self.inner_bias.to(dtype)).relu()
        z = torch.nn.functional.linear(hidden, self.outer.to(dtype)[None], self.bias.to(dtype)[None])
        return z.clamp(-LOGIT_LIMIT, LOGIT_LIMIT)

    def with_lower_bias(self, shift: float) -> Self:
        return replace(self, bias=self.bias - shift)
