"""Strengths that are solved for at each position: what reaches a logit, or leaves an activation where others are."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..maps import Map
from ..maps.envelope import EllipticEnvelope
from ..probes import LinearProbe, PooledProbe
from ..probes.combine import pool
from ..utils.tensorclass import compute_dtype


class SolvedStrength(NamedTuple):
    """The solution of `strength_to` at each position, [..., positions or 1, 1].

    Args:
        strength: 0 where nothing is to be done or nothing helps; float32 at least.
        above: bool, whether the logit is above the target.
        unreachable: bool, whether it is, and the map does not lower it.
    """

    strength: torch.Tensor
    above: torch.Tensor
    unreachable: torch.Tensor


def solve_strength(
    x: torch.Tensor,
    transform: Map,
    probe: LinearProbe | PooledProbe,
    target: torch.Tensor | float,
    cap: torch.Tensor | float,
    mask: torch.Tensor | None = None,
) -> SolvedStrength:
    """The smallest strength at which a probe's logit is no more than a target.

    With z = w . x + b and T(x; s) = x + s * D(x),

        s*(x) = min((target - z) / (w . D(x)), cap)   where z > target and w . D(x) < 0;   0 elsewhere.

    With D = -w that is MERA (arXiv 2510.13290), here for any map that is linear in its strength.

    Args:
        x: activations [..., positions, width].
        transform: a map with `linear_in_strength`.
        probe: one s* for each position, or pooled, one for all: that which moves their mean to the target.
        target: the logit.
        cap: the highest strength.
        mask: [..., positions], 1 for positions that count in the mean.

    Example:
        >>> from dsas_core.maps import AffineMap
        >>> away, probe = AffineMap(torch.tensor([-1.0])), LinearProbe(torch.tensor([1.0]), torch.tensor(0.0))
        >>> strength_to(torch.tensor([[3.0], [-1.0]]), away, probe, target=0.0, cap=9.0).strength[:, 0]
        tensor([3., 0.])
    """
    wide = x.to(compute_dtype(x))
    moved = transform.displacement(wide)
    linear = probe.inner if isinstance(probe, PooledProbe) else probe
    if isinstance(probe, PooledProbe):
        wide, moved = pool(wide, mask), pool(moved.expand_as(wide), mask)
    weight = linear.weight.to(wide.dtype)
    z = F.linear(wide, weight[None], linear.bias.to(wide.dtype)[None])  # not cut off, as the probe's own logit is
    slope = F.linear(moved.expand(*moved.shape[:-1], len(weight)), weight[None])
    above, lowers = z > target, slope < 0
    strength = (target - z) / torch.where(lowers, slope, -1)
    strength = torch.where(above & lowers, strength.clamp(max=cap), 0)
    return SolvedStrength(strength, above, above & ~lowers)


def strength_within(
    x: torch.Tensor, transform: Map, strength: torch.Tensor, h: torch.Tensor, cloud: EllipticEnvelope
) -> torch.Tensor:
    """The strength, or as much of it as leaves x' in an ellipse.

    With y = x - mean, D = h * D(x) and inner products of whitened vectors, the distance of x' = x + s * D is

        d(s)^2 = |y|^2 + 2 s (y . D) + s^2 |D|^2,

    and s goes no further than where that is max(radius, |y|)^2: what is outside already is moved no farther out. The
    two roots have opposite signs, or one is 0, so either bounds one sign of s. Where none is reached, s is returned as
    it is, bit for bit.

    Args:
        x: activations [..., positions, width].
        transform: a map with `linear_in_strength`.
        strength: broadcastable to x.
        h: broadcastable to x.
        cloud: the ellipse.

    Returns:
        [..., positions, 1], or broadcastable to it.

    Example:
        >>> from dsas_core.maps import AffineMap
        >>> one = torch.tensor(1.0)
        >>> ellipse = Cloud(torch.zeros(1), axes=torch.tensor([[1.0]]), spread=torch.ones(1), rest=one, radius=2 * one)
        >>> strength_within(torch.zeros(1, 1), AffineMap(torch.tensor([1.0])), torch.tensor([[5.0]]), one, ellipse)
        tensor([[2.]])
    """
    wide = x.to(compute_dtype(x))
    y = cloud.whiten(wide - cloud.mean.to(wide.dtype))
    moved = cloud.whiten(h * transform.displacement(wide))
    a, b = moved.square().sum(-1, keepdim=True), (y * moved).sum(-1, keepdim=True)
    room = (cloud.radius.to(wide.dtype).square() - y.square().sum(-1, keepdim=True)).clamp_min(0)
    root = (b * b + a * room).sqrt()
    up = torch.where(b > 0, room / (b + root), (root - b) / a)  # of either form of the root, the one without
    down = torch.where(b < 0, -room / (root - b), -(root + b) / a)  # cancellation
    # a is 0 where nothing moves, and the bounds are NaN: fmin and fmax pass these over
    return strength.fmin(up.to(strength.dtype)).fmax(down.to(strength.dtype))
