"""Bootstrap intervals over crossed seeds and prompts: both are resampled (Owen, 2007, "The pigeonhole bootstrap")."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import DSASError

#: the seed and the prompt of an item
Label = tuple[Hashable, Hashable]


@dataclass(frozen=True)
class Interval:
    """A value, and the ends of its percentile interval."""

    value: float
    low: float
    high: float


def bootstrap_indices(labels: Sequence[Label], rounds: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Indices of resampled items.

    Seeds are drawn with replacement, and so are prompts; an item is taken as often as its seed times its prompt.

    Args:
        labels: seed and prompt of each item.
        rounds: resamples to draw.
        seed: of the random numbers.

    Yields:
        Indices of a resample, int [n]; empty resamples are left out.
    """
    sides = [np.unique([str(label[i]) for label in labels], return_inverse=True)[1] for i in (0, 1)]
    counts = [int(side.max()) + 1 for side in sides]
    random = np.random.default_rng(seed)
    for _ in range(rounds):
        drawn = [np.bincount(random.integers(count, size=count), minlength=count) for count in counts]
        taken = drawn[0][sides[0]] * drawn[1][sides[1]]
        if taken.any():
            yield np.repeat(np.arange(len(labels)), taken)


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    labels: Sequence[Label],
    *,
    rounds: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """A statistic of all items with its percentile bootstrap interval.

    Args:
        statistic: of an array of indices of items.
        labels: seed and prompt of each item, see `bootstrap_indices`.
        rounds: resamples to draw.
        level: share of the resampled values within the interval.
        seed: of the random numbers.

    Raises:
        DSASError: no items, no rounds, or a level outside (0, 1).

    Example:
        >>> scores = np.array([0.0, 0.5, 0.5, 1.0])
        >>> labels = [(0, "a dog"), (0, "a cat"), (1, "a dog"), (1, "a cat")]
        >>> mean = bootstrap_interval(lambda at: scores[at].mean(), labels, rounds=100)
        >>> mean.value, mean.low < 0.5 < mean.high
        (0.5, True)
    """
    if not len(labels) or rounds < 1 or not 0 < level < 1:
        raise DSASError(
            f"{len(labels)} items, {rounds} rounds, level {level}: expected at least one, and a level in (0, 1)"
        )
    values = [statistic(at) for at in bootstrap_indices(labels, rounds, seed)]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(statistic(np.arange(len(labels)))), float(low), float(high))
