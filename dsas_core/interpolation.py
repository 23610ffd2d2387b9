"""The one equation: x' = lerp(x, T(x; strength), h)  (DSAS, arXiv 2512.03661, equation 3.4).

Exact at both ends: h = 0 or strength 0 give x itself, bit for bit; h = 1 gives the map alone. A map that publishes its
displacement, T(x; s) = x + s * D(x), takes the one-pass form x + (h * s) * D(x). Nobody else interpolates.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from .maps import Map
from .parts import compute_dtype


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
            out = torch.addcmul(out, h * strength, transform.displacement(wide))
        else:
            moved = torch.lerp(wide, transform.apply(wide, strength), h.expand_as(wide))
            out = moved if out is wide else out + (moved - wide)
    return out.to(x.dtype)
