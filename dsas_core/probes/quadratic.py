"""The quadratic probe: h of every dimension by itself, the posterior of two Gaussians (GAPS, arXiv 2609.01878).

With source N(m1, s1^2) and control N(m0, s0^2) in one dimension, equal priors, and u = x - m0,

    logit p(x) = A u^2 + B u + C,   A = (1/s0^2 - 1/s1^2) / 2,   B = (m1 - m0) / s1^2,
    C = log(s0/s1) - (m1 - m0)^2 / (2 s1^2).

About m0 rather than 0, where A x^2 and B x would be large and cancel in dimensions whose mean is far from 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Self

import torch

from ..model.eager import in_chunks
from ..utils.tensorclass import LARGEST_SLOPE, WIDTH, Holds, Vector, cast, compute_dtype
from .base import Probe
from .linear import LOGIT_LIMIT


def quadratic(
    source_mean: torch.Tensor, source_std: torch.Tensor, control_mean: torch.Tensor, control_std: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A, B and C [width] of the formula above.

    Args:
        source_mean: m1, [width].
        source_std: s1, [width], not 0.
        control_mean: m0, [width].
        control_std: s0, [width], not 0.

    Example:
        >>> one = torch.ones(1)
        >>> quadratic(one, one, 0 * one, one)
        (tensor([0.]), tensor([1.]), tensor([-0.5000]))
    """
    difference = source_mean - control_mean
    curve = (control_std**-2 - source_std**-2) / 2
    return curve, difference / source_std**2, (control_std / source_std).log() - (difference / source_std) ** 2 / 2


@dataclass(frozen=True, eq=False)
class QuadraticProbe(Probe, kind="quadratic"):
    """h of each dimension: 1 where the posterior is above 1/2, on the source's side of the controls' mean.

    Where the source has the larger variance, the posterior is above 1/2 in both tails, also in the one on the other
    side of the controls' mean: h is 0 there, and in every dimension that is left out.

    Args:
        curve: A of the formula above, [width].
        slope: B, [width].
        offset: C, [width].
        center: the controls' mean m0, [width].
        side: sign of m1 - m0, or 0 for a dimension that is left out, [width].
        soft: h is the posterior itself, on that side.

    Example:
        >>> means = torch.tensor([1.0]), torch.tensor([0.0])  # source, control
        >>> one = torch.ones(1)
        >>> probe = QuadraticProbe(*quadratic(means[0], one, means[1], one), center=means[1], side=one)
        >>> probe.score(torch.tensor([[0.4], [0.6]]))[:, 0]
        tensor([0., 1.])
    """

    curve: Annotated[torch.Tensor, Holds(WIDTH, high=LARGEST_SLOPE)]
    slope: Annotated[torch.Tensor, Holds(WIDTH, high=LARGEST_SLOPE)]
    offset: Annotated[torch.Tensor, Holds(WIDTH, high=LARGEST_SLOPE)]
    center: Vector
    side: Annotated[torch.Tensor, Holds(WIDTH, high=1)]
    soft: bool = False

    def logit(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        z, beyond = _read(x, *self._parameters(compute_dtype(x)))
        return torch.where(beyond > 0, z.clamp(-LOGIT_LIMIT, LOGIT_LIMIT), -torch.inf)

    def link(self, z: torch.Tensor) -> torch.Tensor:
        return z.sigmoid() if self.soft else (z > 0).to(z.dtype)

    def score(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """link(logit(x)) without tensors of bool, on which a CPU works number by number."""
        parameters = self._parameters(compute_dtype(x))

        def score(x: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
            z, beyond = _read(x, *parameters)
            if self.soft:
                h = z.clamp(-LOGIT_LIMIT, LOGIT_LIMIT).sigmoid()
                return torch.mul(h, beyond.detach().sign().clamp_min(0), out=out)
            return torch.minimum(z.detach(), beyond.detach(), out=out).gt_(0)

        return in_chunks(score, x, x.shape[-1], parameters)

    def _parameters(self, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """Those of `_read`, with u towards the source in the place of u: A, B, C, the origin, and the side."""
        side = cast(self.side, dtype).sign()
        slope, origin = side * cast(self.slope, dtype), -side * cast(self.center, dtype)
        return cast(self.curve, dtype), slope, cast(self.offset, dtype), origin, side

    def with_lower_bias(self, shift: float) -> Self:
        return replace(self, offset=self.offset - shift)


def _read(
    x: torch.Tensor,
    curve: torch.Tensor,
    slope: torch.Tensor,
    offset: torch.Tensor,
    origin: torch.Tensor,
    side: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The logit on either side of the controls' mean, and u towards the source, above 0 on its side."""
    u = torch.addcmul(origin, side, cast(x, side.dtype))
    return torch.addcmul(offset, torch.addcmul(slope, curve, u), u), u
