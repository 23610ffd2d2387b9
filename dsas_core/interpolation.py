"""The one equation: x' = lerp(x, T(x; strength), h)  (DSAS, arXiv 2512.03661, equation 3.4).

Exact at both ends: h = 0 or strength 0 give x itself, bit for bit; h = 1 gives the map alone. A map that publishes its
displacement, T(x; s) = x + s * D(x), takes the one-pass form x + (h * s) * D(x). Nobody else interpolates.

Beside it, where its strength comes from when nobody gives one (`strength_to`), and what several gates that are open at
one position leave each other (`share`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .maps import Map
from .parts import compute_dtype
from .probes import LinearProbe, PooledProbe
from .probes.combine import pool


def interpolate(x: torch.Tensor, steps: Iterable[tuple[Map, torch.Tensor | float, torch.Tensor]]) -> torch.Tensor:
    """Apply gated maps to one activation.

    Args:
        x: activations [..., positions, width], any floating dtype; computed in float32 at least.
        steps: (map, strength, h) triples; strength and h broadcast against x. Several maps all read the incoming x,
            and their changes add up.

    Returns:
        The steered activation, shape and dtype of x.
    """
    wide = x.to(compute_dtype(x))
    out = wide
    for transform, strength, h in steps:
        if transform.displaces:
            add = torch.addcmul if out is wide else torch.Tensor.addcmul_  # in place takes half the time
            out = add(out, h * strength, transform.displacement(wide))
        else:
            moved = torch.lerp(wide, transform.apply(wide, strength), h.expand_as(wide))
            out = moved if out is wide else out + (moved - wide)
    return out.to(x.dtype)


class Solved(NamedTuple):
    """What `strength_to` finds at each position, [..., positions or 1, 1].

    Args:
        strength: 0 where nothing is to be done or nothing helps; float32 at least.
        above: bool, whether the logit is above the target.
        against: bool, whether it is, and the map does not lower it.
    """

    strength: torch.Tensor
    above: torch.Tensor
    against: torch.Tensor


def strength_to(
    x: torch.Tensor,
    transform: Map,
    probe: LinearProbe | PooledProbe,
    target: torch.Tensor | float,
    cap: torch.Tensor | float,
    mask: torch.Tensor | None = None,
) -> Solved:
    """The smallest strength at which a probe's logit is no more than a target.

    With z = w . x + b and T(x; s) = x + s * D(x),

        s*(x) = min((target - z) / (w . D(x)), cap)   where z > target and w . D(x) < 0;   0 elsewhere.

    With D = -w that is MERA (arXiv 2510.13290), here for any map that is linear in its strength.

    Args:
        x: activations [..., positions, width].
        transform: a map with `displaces`.
        probe: one s* for each position, or pooled, one for all: that which moves their mean to the target.
        target: the logit. cap: the highest strength.
        mask: [..., positions], 1 for positions that count in the mean.
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
    return Solved(strength, above, above & ~lowers)


def share(gates: Sequence[torch.Tensor]) -> torch.Tensor:
    """The part of its h that each of several gates keeps, so that the total is the highest of them: at most 1.

    max h / sum h at each position, and 1 exactly where no more than one gate is open: one alone is as it was.

    Args:
        gates: h of each, broadcastable to one another.
    """
    every = torch.broadcast_tensors(*gates)
    total, highest = every[0], every[0]
    for h in every[1:]:
        total, highest = total + h, torch.maximum(highest, h)
    return torch.where(total > highest, highest / total, 1.0)
