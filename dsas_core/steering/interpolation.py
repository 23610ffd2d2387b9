"""The one equation: x' = lerp(x, T(x; strength), h)  (DSAS, arXiv 2512.03661, equation 3.4).

Exact at both ends: h = 0 or strength 0 give x itself, bit for bit, even where the map overflows; h = 1 gives the map
alone. A map that is linear in its strength, T(x; s) = x + s * D(x), is computed as x + (h * s) * D(x). Nothing else
interpolates. A map may ask for h as a factor on its strength instead, T(x; h * strength), with the same two ends.

`normalise_gates` divides h among several gates that are open at one position; strengths that are not given are solved
for in `solve`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from ..maps import Map
from ..model.eager import at_hand
from ..utils.tensorclass import cast, compute_dtype


def interpolate(
    x: torch.Tensor,
    steps: Iterable[tuple[Map, torch.Tensor | float, torch.Tensor]],
    more: Iterable[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = (),
) -> torch.Tensor:
    """Apply gated maps to one activation.

    Args:
        x: activations [..., positions, width], any floating dtype; computed in float32 at least.
        steps: triples (map, strength, h); strength and h broadcast against x. Several maps all read the incoming x, and
            their changes add up.
        more: what else changes it: given what was made of x so far, and x, in the dtype that is computed in, what it
            makes of the former (`stack.Layer`).

    Returns:
        The steered activation, shape and dtype of x.

    Example:
        >>> from dsas_core.maps import AffineMap
        >>> x, h = torch.zeros(2, 2), torch.tensor([[0.5], [0.0]])
        >>> interpolate(x, [(AffineMap(torch.tensor([1.0, 0.0])), 2.0, h)])
        tensor([[1., 0.],
                [0., 0.]])
    """
    wide = cast(x, compute_dtype(x))
    out = wide
    for transform, strength, h in steps:
        if transform.linear_in_strength:
            moved = displace(out, transform.displacement(wide), h, strength)
        else:
            if transform.scales_strength:
                strength, h = h * strength, torch.ones_like(h)
            moved = torch.lerp(wide, transform.apply(wide, strength), cast(h, wide.dtype).expand_as(wide))
            moved = moved if out is wide else out + (moved - wide)
        out = _keep_still(out, moved, h, strength, transform.linear_in_strength)
    for move in more:
        out = move(out, wide)
    return cast(out, x.dtype)


def displace(
    x: torch.Tensor, displacement: torch.Tensor, h: torch.Tensor, strength: torch.Tensor | float = 1.0
) -> torch.Tensor:
    """x + h * strength * displacement, the equation of a map that is linear in its strength.

    Args:
        x: [..., positions, width].
        displacement: broadcastable to x, of its dtype.
        h: broadcastable to x.
        strength: broadcastable to x.

    Example:
        >>> displace(torch.zeros(1, 2), torch.tensor([1.0, 2.0]), h=torch.tensor([[0.5]]))
        tensor([[0.5000, 1.0000]])
    """
    if displacement.ndim == 1 and h.shape[-1] > 1:  # the strength goes to the smaller factor
        return torch.addcmul(x, h, strength * displacement)
    return torch.addcmul(x, h * strength, displacement)


def _keep_still(
    x: torch.Tensor, moved: torch.Tensor, h: torch.Tensor, strength: torch.Tensor | float, linear: bool
) -> torch.Tensor:
    """What moved, and x where none of it counts: 0 times infinity is not 0."""
    if at_hand(x, moved, h) and _is_still(x, moved, h, torch.as_tensor(strength), linear):
        return moved
    counts = (h * strength).abs() > 0  # not so for NaN, as 0 times an h of NaN is
    if moved.requires_grad:  # the derivative by a strength of 0 is not 0
        counts = counts | moved.isfinite()
    return torch.where(counts, moved, x)


def _is_still(x: torch.Tensor, moved: torch.Tensor, h: torch.Tensor, strength: torch.Tensor, linear: bool) -> bool:
    """Whether `moved` is x, bit for bit, wherever h times the strength is 0. A CPU sees that sooner than it chooses."""
    if h.shape[-1] == 1 and strength.shape[-1:] in ((), (1,)) and bool(((h * strength).abs() > 0).all()):
        return True  # it is 0 nowhere
    if not linear and bool((strength == 0).any()):
        return False
    # where 0 times what is finite is added, nothing changes but -0, whose bits are the lowest of all integers
    bits = x.view(torch.int64 if x.dtype == torch.float64 else torch.int32)
    return bool(moved.sum().isfinite()) and int(bits.amin()) > torch.iinfo(bits.dtype).min


def normalise_gates(gates: Sequence[torch.Tensor]) -> torch.Tensor:
    """The factor on the h of several gates that brings their sum down to the highest of them, so to at most 1.

    It is max h / sum h at each position, and exactly 1 where no more than one gate is open.

    Args:
        gates: h of each gate, broadcastable to one another.

    Example:
        >>> normalise_gates([torch.tensor([0.5, 1.0]), torch.tensor([0.0, 1.0])])
        tensor([1.0000, 0.5000])
    """
    total = highest = gates[0]
    for h in gates[1:]:
        total, highest = total + h, torch.maximum(highest, h)
    several = total > highest
    return torch.where(several, highest / torch.where(several, total, 1.0), 1.0)  # nor a gradient of 0/0
