"""Fronts: what is gained for what it costs. A point is (cost, gain); cost is to be small and gain large."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Equal:
    """What two curves cost at one gain; `lowered` where that is less than was asked for, the most that both reach."""

    gain: float
    cost: float
    other_cost: float
    ratio: float
    lowered: bool


def front(points: Points) -> list[int]:
    """Indices of the points that no other one beats, by ascending cost; of equal points the first."""
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    indices: list[int] = []
    for i in order:
        if not indices or points[i][1] > points[indices[-1]][1]:
            indices.append(i)
    return indices


def hypervolume(points: Points, reference: tuple[float, float] = (1.0, 0.0)) -> float:
    """The area that points dominate, up to a reference (cost, gain): 0 is nothing; 1 all of the unit square.

    Points that cost more than the reference, or gain less, add nothing.
    """
    limit, floor = reference
    inside = [point for point in points if point[0] < limit and point[1] > floor]
    best = [inside[i] for i in front(inside)]
    ends = [*(cost for cost, _ in best), limit][1:]
    return float(sum((end - cost) * (gain - floor) for (cost, gain), end in zip(best, ends, strict=True)))


def cost_at(points: Points, gain: float) -> float | None:
    """What a curve costs where it first reaches a gain, linear between its points; None where it never does.

    Args:
        points: by ascending strength; the curve begins at (0, 0), without steering.
    """
    before = (0.0, 0.0)
    if gain <= 0:
        return 0.0
    for point in points:
        if point[1] >= gain:
            share = (gain - before[1]) / (point[1] - before[1])
            return float(before[0] + share * (point[0] - before[0]))
        before = point
    return None


def gain_at(points: Points, cost: float) -> float:
    """What the front of points gains for a cost, linear between its points and from (0, 0) on; flat behind the last."""
    best = [points[i] for i in front(points)]
    before = (0.0, 0.0)
    for point in best:
        if point[0] > cost:
            share = (cost - before[0]) / (point[0] - before[0])
            return float(before[1] + share * max(0.0, point[1] - before[1]))
        before = point if point[1] > before[1] else before
    return float(before[1])


def at_equal_gain(ours: Points, others: Points, gain: float) -> Equal:
    """What two curves cost at a gain that both reach.

    Args:
        ours, others: by ascending strength. gain: the one wanted, lowered to the most that both reach.
    """
    reached = min(max((point[1] for point in points), default=0.0) for points in (ours, others))
    level = max(0.0, min(gain, reached))
    cost, other = (cost_at(points, level) or 0.0 for points in (ours, others))
    return Equal(level, cost, other, cost / max(other, 1e-9), lowered=level < gain)
