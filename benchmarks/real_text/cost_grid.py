"""One grid of realised cost: the strengths at which a curve costs so and so much, whatever its unit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

#: the highest cost of the grid: perplexity of the domain, a quarter more
CEILING = 0.25
#: the lowest and the highest strength that is tried, in units
LOWEST, HIGHEST = 1 / 1024, 32.0
#: a cost from this share of its target up to the target counts as reached
REACHED = 0.8
#: measurements for each target
TRIALS = 6
#: how a cost rises with strength where only one is known: by this power
POWER = 1.5


def target_costs(points: int, ceiling: float = CEILING) -> list[float]:
    """Costs between 0 and the highest, closer together where they are low.

    Example:
        >>> [round(cost, 3) for cost in target_costs(5)]
        [0.01, 0.04, 0.09, 0.16, 0.25]
    """
    return [ceiling * ((point + 1) / points) ** 2 for point in range(points)]


def find_strengths(measure: Callable[[float], float], targets: Sequence[float]) -> list[float]:
    """The strengths at which costs come to their targets, never above them.

    Costs that a curve never reaches, as where a gate stays closed, are replaced by strengths at equal ratios up to the
    highest that is tried, so that every curve has the same number of points.

    Args:
        measure: strength -> cost; called once for each strength.
        targets: ascending costs.

    Returns:
        A strength for each target, ascending.

    Example:
        >>> strengths = find_strengths(lambda strength: strength**2 / 10, [0.01, 0.1])
        >>> all(0.8 * target <= s**2 / 10 <= target for s, target in zip(strengths, [0.01, 0.1]))
        True
    """
    curve = _Curve(measure)
    found = {target: curve.reach(target) for target in sorted(targets, reverse=True)}
    strengths = [strength for target in targets if (strength := found[target]) is not None]
    missing = len(targets) - len(strengths)
    start = max(strengths, default=LOWEST * HIGHEST)
    ratio = (HIGHEST / start) ** (1 / max(1, missing))
    return [*strengths, *(_tidy(start * ratio ** (step + 1)) for step in range(missing))]


class _Curve:
    """The costs of a curve as far as they are known: strength -> cost."""

    def __init__(self, measure: Callable[[float], float]) -> None:
        self._measure = measure
        self._known: dict[float, float] = {}

    def reach(self, target: float) -> float | None:
        """The strength whose cost nearly is the target, and not more; None where even the highest costs too little."""
        for _ in range(TRIALS):
            below = max((s for s, cost in self._known.items() if cost <= target), default=0.0)
            above = min((s for s, cost in self._known.items() if s > below and cost > target), default=None)
            if below and self._known[below] >= REACHED * target:
                return below
            if below >= HIGHEST:
                return None
            guess = _tidy(self._guess(below, above, target))
            if guess in self._known:
                return below or guess
            cost = self._measure(guess)
            self._known[guess] = cost if math.isfinite(cost) else math.inf
        return max((s for s, cost in self._known.items() if cost <= target), default=LOWEST)

    def _guess(self, below: float, above: float | None, target: float) -> float:
        """The strength to try next, between those whose costs are known to lie on either side of the target."""
        aim = target * (1 + REACHED) / 2
        if not self._known:
            return 1.0
        if above is None:
            rise = (aim / self._known[below]) ** (1 / POWER) if self._known[below] > 0 else 4.0
            return min(HIGHEST, below * min(4.0, max(1.5, rise)))
        if not below:
            fall = (aim / self._known[above]) ** (1 / POWER)
            return max(LOWEST, above * min(0.8, max(1 / 16, fall)))
        low, high = self._known[below], self._known[above]
        middle = math.sqrt(below * above)
        if low <= 0 or not math.isfinite(high) or high / aim > 10:
            return middle
        power = math.log(high / low) / math.log(above / below)
        return min(above / 1.02, max(below * 1.02, below * (aim / low) ** (1 / power)))


def _tidy(strength: float) -> float:
    """Three digits: enough, and the same in every run."""
    return float(f"{strength:.3g}")
