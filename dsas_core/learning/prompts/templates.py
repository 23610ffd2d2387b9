"""Templates of prompts: texts with placeholders in braces, and their expansion."""

from __future__ import annotations

import itertools
import math
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...errors import PromptError

#: characters that a prompt costs beside its own, where the size of an expansion is estimated
OVERHEAD = 64


def placeholder_names(template: str) -> set[str]:
    """The placeholders of a template.

    Raises:
        PromptError: braces that are no placeholder.

    Example:
        >>> sorted(placeholder_names("a {other} {place}"))
        ['other', 'place']
    """
    try:
        fields = [field for field in string.Formatter().parse(template) if field[1] is not None]
    except ValueError as error:
        raise PromptError(f"template {template!r}: {error}") from None
    if any(form or conversion for _, _, form, conversion in fields):
        raise PromptError(f"template {template!r}: a placeholder is a name in braces, without ':' and '!'")
    return {str(name) for _, name, _, _ in fields}


def expansion_size(template: str, placeholders: Mapping[str, Sequence[str]]) -> tuple[int, int]:
    """How many prompts a template gives at most, and their characters, without expanding it.

    Example:
        >>> expansion_size("a {other}", {"other": ["dog", "cat"]})
        (2, 152)
    """
    count = math.prod(len(placeholders[name]) for name in placeholder_names(template))
    used = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    return count, count * (OVERHEAD + len(template) + sum(max(map(len, placeholders[name])) for name in used))


def expand(template: str, placeholders: Mapping[str, Sequence[str]], names: Sequence[str] | None = None) -> list[str]:
    """Expand a template: one text for each choice of different values of its placeholders.

    Args:
        template: the text with placeholders in braces.
        placeholders: values by name.
        names: placeholders to choose values for; None for those of the template.

    Returns:
        Texts with single spaces, and with "an" before vowels.

    Raises:
        PromptError: braces that are no placeholder.

    Example:
        >>> expand("a {fruit} {place}", {"fruit": ["apple", "pear"], "place": ["at night"]})
        ['an apple at night', 'a pear at night']
    """
    names = sorted(placeholder_names(template)) if names is None else names
    return [
        _fix_articles(_tidy(template.format(**dict(zip(names, values, strict=True)))))
        for values in itertools.product(*(placeholders[name] for name in names))
        if len(set(values)) == len(values)  # no "a dog and a dog"
    ]


def _tidy(text: str) -> str:
    """One space between words; the lines of a conversation stay lines."""
    return "\n".join(" ".join(line.split()) for line in text.strip().splitlines())


def _fix_articles(text: str) -> str:
    """`a apple` -> `an apple`: a template does not know which value follows."""
    return re.sub(r"\b([Aa]) (?=[aeio])", r"\1n ", text)


def draw_evenly(pools: Sequence[Sequence[Any]], count: int, seed: int | tuple[int, int]) -> list[Any]:
    """Up to `count` different items, the same number from each pool as long as it lasts, shuffled.

    Of more pools than items, which pools are drawn from is chosen at random.

    Example:
        >>> sorted(draw_evenly([["a", "b", "c"], ["d"]], 3, seed=0))[-1]
        'd'
    """
    rng = np.random.default_rng(seed)
    mixed = [[pool[i] for i in rng.permutation(len(pool))] for pool in pools]
    if len(mixed) > count:
        mixed = [mixed[i] for i in rng.permutation(len(mixed))]
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*mixed))
    chosen = list(dict.fromkeys(item for item in rounds if item is not None))[:count]
    return [chosen[i] for i in rng.permutation(len(chosen))]
