"""Whether a sequence, of words or of tokens, goes in circles."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

#: a sequence goes in circles where fewer of its runs of three items are distinct than this share
DISTINCT = 0.5


def goes_in_circles(items: Sequence[Hashable]) -> bool:
    """Whether most runs of three items have been there before, as in what is said three times or more.

    Args:
        items: words or tokens.

    Example:
        >>> goes_in_circles("so it goes so it goes so it goes".split()), goes_in_circles("it goes as it goes".split())
        (True, False)
    """
    runs = list(zip(items, items[1:], items[2:], strict=False))
    return len(set(runs)) < DISTINCT * len(runs)
