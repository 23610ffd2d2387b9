"""Pareto fronts of (cost, gain): the cost is to be low and the gain high."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class EqualGain:
    """The costs of two curves at one gain, which is `lowered` to the most that both reach if that is less."""

    gain: float
    cost: float
    other_cost: float
    ratio: float
    lowered: bool


def pareto_front(points: Points) -> list[int]:
    """Indices of the points that no other point dominates, by ascending cost; of equal points the first.

    Example:
        >>> pareto_front([(0.5, 0.9), (0.1, 0.4), (0.3, 0.4)])
        [1, 0]
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    indices: list[int] = []
    for i in order:
        if not indices or points[i][1] > points[indices[-1]][1]:
            indices.append(i)
    return indices


def hypervolume(points: Points, reference: tuple[float, float] = (1.0, 0.0)) -> float:
    """The area that points dominate, up to a reference (cost, gain); 1 is the whole unit square.

    Points that cost more than the reference, or gain less, add nothing (Zitzler & Thiele 1999).

    Example:
        >>> hypervolume([(0.5, 1.0)])
        0.5
    """
    limit, floor = reference
    inside = [point for point in points if point[0] < limit and point[1] > floor]
    best = [inside[i] for i in pareto_front(inside)]
    ends = [*(cost for cost, _ in best), limit][1:]
    return float(sum((end - cost) * (gain - floor) for (cost, gain), end in zip(best, ends, strict=True)))


def cost_at(points: Points, gain: float) -> float | None:
    """The cost at which a curve first reaches a gain, linear between its points; None if it never does.

    Args:
        points: by ascending strength; the curve begins at (0, 0), without steering.
    """
    if gain <= 0:
        return 0.0
    for before, point in pairwise([(0.0, 0.0), *points]):
        if point[1] >= gain:
            share = (gain - before[1]) / (point[1] - before[1])
            return float(before[0] + share * (point[0] - before[0]))
    return None


def gain_at(points: Points, cost: float) -> float:
    """The gain of the Pareto front at a cost, linear from (0, 0) between its points; constant after the last."""
    best = [points[i] for i in pareto_front(points)]
    before = (0.0, 0.0)
    for point in best:
        if point[0] > cost:
            share = (cost - before[0]) / (point[0] - before[0])
            return float(before[1] + share * max(0.0, point[1] - before[1]))
        before = point if point[1] > before[1] else before
    return float(before[1])


def at_equal_gain(ours: Points, others: Points, gain: float) -> EqualGain:
    """Compare the costs of two curves at a gain that both reach.

    Args:
        ours: by ascending strength.
        others: by ascending strength.
        gain: lowered to the most that both reach.
    """
    reached = min(max((point[1] for point in points), default=0.0) for points in (ours, others))
    level = max(0.0, min(gain, reached))
    cost, other = (cost_at(points, level) or 0.0 for points in (ours, others))
    return EqualGain(level, cost, other, cost / max(other, 1e-9), lowered=level < gain)
