"""Bootstrap intervals over seeds and prompts (Efron and Tibshirani, 1993; clusters first, then items within)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import DSASError


@dataclass(frozen=True)
class Interval:
    """A value, and the ends of its percentile interval."""

    value: float
    low: float
    high: float


def resamples(outer: Sequence[Hashable], rounds: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Index arrays of resampled items.

    Args:
        outer: the cluster of each item (a seed). Clusters are drawn with replacement, then items within each; items of
            one cluster alone are drawn from all.
    """
    names = {name: i for i, name in enumerate(dict.fromkeys(outer))}
    labels = np.array([names[name] for name in outer])
    members = [np.flatnonzero(labels == i) for i in range(len(names))]
    random = np.random.default_rng(seed)
    for _ in range(rounds):
        drawn = random.integers(len(members), size=len(members))
        yield np.concatenate([random.choice(members[i], len(members[i])) for i in drawn])


def interval(
    statistic: Callable[[np.ndarray], float],
    outer: Sequence[Hashable],
    *,
    rounds: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """A statistic of all items with its bootstrap interval.

    Args:
        statistic: of an array of indices of items. outer: the cluster of each item, see `resamples`.
        level: what share of resampled values lies within.

    Raises:
        DSASError: no items, or a level outside (0, 1).
    """
    if not len(outer) or not 0 < level < 1:
        raise DSASError(f"{len(outer)} items, level {level}: expected at least one, and a level in (0, 1)")
    values = [statistic(at) for at in resamples(outer, rounds, seed)]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(statistic(np.arange(len(outer)))), float(low), float(high))
