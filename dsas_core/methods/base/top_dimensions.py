"""The option `top` of methods that scale a few dimensions, and the choice of these."""

from __future__ import annotations

from typing import Any

import torch

from .map_method import Option


def _fits(value: Any) -> bool:
    if isinstance(value, int):
        return value >= 1 and not isinstance(value, bool)
    return isinstance(value, float) and 0 < value <= 1


#: how many dimensions of a site: published numbers are a few dozen of all layers together, so few at each site
TOP = Option(0.05, "a number from 1 up, or a share above 0 and up to 1.0", _fits)


def top_mask(score: torch.Tensor, top: int | float) -> torch.Tensor:
    """1 at the highest scores, 0 elsewhere; of equal scores, the first.

    Args:
        score: [width].
        top: a number of dimensions (more than there are takes all), or, as a float, a share of them (at least one).

    Example:
        >>> top_mask(torch.tensor([1.0, 3.0, 2.0]), top=2)
        tensor([0., 1., 1.])
    """
    count = top if isinstance(top, int) else max(1, round(top * len(score)))
    chosen = score.sort(descending=True, stable=True).indices[:count]
    return torch.zeros_like(score).index_fill(0, chosen, 1.0)
