"""The linear probe h = sigmoid(w . x + b), and folding a whole fitting recipe into one (w, b).

Folding (methods: standardise, project, logistic regression): with mean m, scale s, projection mean q, components V
[rank, width], coefficients u [rank] and intercept c,

    logit(x) = u . (V ((x - m) / s - q)) + c = w . x + b,   w = (V^T u) / s,   b = c - u . V (m / s + q).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Self

import torch

from ..utils.tensorclass import LARGEST_SLOPE, WIDTH, Holds, cast, compute_dtype
from .base import Probe

#: logits are clamped here; a sigmoid beyond it is 0 or 1 in float32
LOGIT_LIMIT = 30.0


def fold(
    mean: torch.Tensor,
    scale: torch.Tensor,
    pca_mean: torch.Tensor,
    components: torch.Tensor,
    coef: torch.Tensor,
    intercept: torch.Tensor | float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fold standardise -> project -> linear into one weight and bias, exactly.

    Args:
        mean: m, [width], subtracted first.
        scale: s, [width], the divisor; must not be 0.
        pca_mean: q, [width], subtracted before the projection.
        components: V, [rank, width].
        coef: u, [rank], of the regression.
        intercept: c, of the regression.

    Returns:
        weight [width] and bias [], in the dtype of the inputs (fit in float64).

    Example:
        >>> one, zero = torch.ones(2), torch.zeros(2)
        >>> fold(one, 2 * one, zero, torch.eye(2), torch.tensor([4.0, 6.0]), 1.0)
        (tensor([2., 3.]), tensor(-4.))
    """
    projected = components.T @ coef
    return projected / scale, intercept - projected @ (mean / scale + pca_mean)


@dataclass(frozen=True, eq=False)
class LinearProbe(Probe, kind="linear"):
    """h = sigmoid(weight . x + bias) at each position.

    Args:
        weight: [width].
        bias: [].

    Example:
        >>> probe = LinearProbe(weight=torch.tensor([1.0, 0.0]), bias=torch.tensor(-2.0))
        >>> probe.logit(torch.tensor([[2.0, 5.0], [9.0, 5.0]]))[:, 0]
        tensor([0., 7.])
        >>> probe.with_lower_bias(7.0).score(torch.tensor([[9.0, 5.0]]))
        tensor([[0.5000]])
    """

    weight: Annotated[torch.Tensor, Holds(WIDTH, high=LARGEST_SLOPE)]
    bias: Annotated[torch.Tensor, Holds(high=LARGEST_SLOPE)]

    def logit(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        dtype = compute_dtype(x)
        z = cast(x, dtype) @ cast(self.weight, dtype) + cast(self.bias, dtype)
        return z.clamp(-LOGIT_LIMIT, LOGIT_LIMIT)[..., None]

    def with_lower_bias(self, shift: float) -> Self:
        return replace(self, bias=self.bias - shift)
