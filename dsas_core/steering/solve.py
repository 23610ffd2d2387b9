"""Strengths that are solved for at each position: to reach a logit, or to stay within an ellipse of activations."""

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
    """The solution of `solve_strength` at each position, [..., positions or 1, 1].

    Args:
        strength: the strength, at least float32; 0 where the logit is low enough, or the map does not lower it.
        above: bool, whether the logit is above the target.
        unreachable: bool, whether it is above the target and the map does not lower it.
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
    """The smallest strength at which a probe's logit is at most a target.

    With z = w . x + b and T(x; s) = x + s * D(x),

        s*(x) = min((target - z) / (w . D(x)), cap)   where z > target and w . D(x) < 0;   0 elsewhere.

    With D = -w this is MERA (arXiv 2510.13290), here for any map that is linear in its strength.

    Args:
        x: activations [..., positions, width].
        transform: a map with `linear_in_strength`.
        probe: a linear probe gives one s* for each position, a pooled one gives one for all, which moves their mean to
            the target.
        target: the target logit.
        cap: the highest strength.
        mask: [..., positions], 1 for positions that count in the mean; None for all.

    Returns:
        The strength, and where the logit is above the target.

    Example:
        >>> from dsas_core.maps import AffineMap
        >>> away, probe = AffineMap(torch.tensor([-1.0])), LinearProbe(torch.tensor([1.0]), torch.tensor(0.0))
        >>> solve_strength(torch.tensor([[3.0], [-1.0]]), away, probe, target=0.0, cap=9.0).strength[:, 0]
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
    x: torch.Tensor, transform: Map, strength: torch.Tensor, h: torch.Tensor, envelope: EllipticEnvelope
) -> torch.Tensor:
    """The strength, shortened where it would move x' out of an ellipse.

    With y = x - mean, D = h * D(x) and inner products of whitened vectors, the distance of x' = x + s * D is

        d(s)^2 = |y|^2 + 2 s (y . D) + s^2 |D|^2,

    and s ends where that is max(radius, |y|)^2: an activation that is outside already is moved no farther out. The two
    roots have opposite signs, or one is 0, so each bounds one sign of s. Where s reaches no root, it is returned
    unchanged, bit for bit.

    Args:
        x: activations [..., positions, width].
        transform: a map with `linear_in_strength`.
        strength: broadcastable to x.
        h: broadcastable to x.
        envelope: the ellipse.

    Returns:
        The strength [..., positions, 1], or broadcastable to it.

    Example:
        >>> from dsas_core.maps import AffineMap
        >>> h = torch.tensor(1.0)
        >>> ellipse = EllipticEnvelope(torch.zeros(1), torch.eye(1), spread=torch.ones(1), rest=h, radius=2 * h)
        >>> strength_within(torch.zeros(1, 1), AffineMap(torch.ones(1)), torch.tensor([[5.0]]), h, ellipse)
        tensor([[2.]])
    """
    wide = x.to(compute_dtype(x))
    y = envelope.whiten(wide - envelope.mean.to(wide.dtype))
    displacement, factor = transform.displacement(wide), h
    if h.shape[-1:] not in ((), (1,)):  # no factor of the whole of it
        displacement, factor = h * displacement, torch.ones_like(h[..., :1])
    moved = envelope.whiten(displacement)
    along, beside = (torch.linalg.vecdot(*pair)[..., None] for pair in zip(y, moved, strict=True))
    a, b = factor * factor * _square(moved), factor * (along + beside)
    slack = (envelope.radius.to(wide.dtype).square() - _square(y)).clamp_min(0)
    root = (b * b + a * slack).sqrt()
    up = torch.where(b > 0, slack / (b + root), (root - b) / a)  # of the two forms of a root,
    down = torch.where(b < 0, -slack / (root - b), -(root + b) / a)  # the one without cancellation
    # a is 0 where nothing moves, and the bounds are NaN: fmin and fmax pass these over
    return strength.fmin(up.to(strength.dtype)).fmax(down.to(strength.dtype))


def _square(vector: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The squared length of a whitened vector, [..., 1]; a norm makes no tensor on the way, as a product does."""
    along, beside = (part.norm(dim=-1, keepdim=True) for part in vector)
    return along * along + beside * beside
