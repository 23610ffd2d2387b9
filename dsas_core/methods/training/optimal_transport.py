"""Optimal transport in one dimension: distances between samples, each dimension by itself, and sparse steps to them.

The Wasserstein distance of two samples of numbers is the distance of their quantile functions, which sorting gives. Of
samples of different sizes both functions are staircases, compared piece by piece: nothing is drawn or interpolated.
"""

from __future__ import annotations

import torch


def match_quantiles(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two sorted samples [n, width] and [m, width] side by side: both [k, width], and the share [k] of each row.

    Each sample's quantile function is a staircase; k counts the pieces where neither has a step. At n = m they are the
    rows themselves, in shares of 1 / n.

    Example:
        >>> a, b = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0]])
        >>> [part.flatten().tolist() for part in match_quantiles(a, b)]
        [[1.0, 3.0], [2.0, 2.0], [0.5, 0.5]]
    """
    n, m = len(a), len(b)
    if n == m:
        return a, b, torch.full((n,), 1 / n, dtype=torch.float64, device=a.device)
    steps = torch.cat([torch.arange(n + 1, device=a.device) * m, torch.arange(m + 1, device=a.device) * n])
    edges = steps.unique()  # in steps of 1 / (n m)
    begin = edges[:-1]
    return a[begin // m], b[begin // n], edges.diff().double() / (n * m)


def wasserstein(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The squared 2-Wasserstein distance of two samples, dimension by dimension.

    Args:
        a: [n, width], in any order; it may require a gradient.
        b: [m, width].

    Returns:
        [width], of the dtype of a.

    Example:
        >>> a, b = torch.tensor([[3.0], [1.0], [2.0], [6.0]]), torch.tensor([[0.0], [4.0], [8.0], [2.0]])
        >>> wasserstein(a, b)
        tensor([1.5000])
    """
    first, second, share = match_quantiles(a.sort(0).values, b.sort(0).values)
    return share.to(first.dtype) @ (first - second).square()


def shrink(u: torch.Tensor, rate: torch.Tensor | float, l1: float = 0.0, group: float = 0.0) -> torch.Tensor:
    """The proximal step of the sparse group lasso: small numbers become 0, and all of them where few are left.

        y = sign(u) max(|u| - rate l1, 0),   max(0, 1 - rate group sqrt(width) / |y|) y

    Args:
        u: one group, [width].
        rate: step size, or that of each number, [width], of optimisers that scale them; the group has their harmonic
            mean, which a number without a gradient does not take over.
        l1: penalty of each number.
        group: penalty of the group, whose length is compared with the square root of its size.

    Example:
        >>> shrink(torch.tensor([3.0, -0.05, 0.4]), rate=0.1, l1=1.0, group=1.0)
        tensor([2.7277, -0.0000, 0.2822])
    """
    rates = torch.as_tensor(rate, dtype=u.dtype, device=u.device)
    y = u.sign() * (u.abs() - rates * l1).clamp_min(0)
    length = y.norm()
    if not bool(length > 0):
        return torch.zeros_like(y)
    return (1 - group * len(u) ** 0.5 / ((1 / rates).mean() * length)).clamp_min(0) * y
