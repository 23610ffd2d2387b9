"""How the corpus is drawn: one of several phrases, placeholders filled, distinct texts, and what is held out."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np

HELD_OUT_BUCKETS = 10


class Drawn(Protocol):
    @property
    def text(self) -> str: ...

    @property
    def held_out(self) -> bool: ...


D = TypeVar("D", bound=Drawn)


def held_out(key: str) -> bool:
    """Whether training must not see what this key stands for: one in ten."""
    return zlib.crc32(key.encode()) % HELD_OUT_BUCKETS == 0


def one(rng: np.random.Generator, choices: Sequence[str]) -> str:
    """A phrase from several."""
    return choices[int(rng.integers(len(choices)))]


def fill(rng: np.random.Generator, template: str, words: Mapping[str, str | Sequence[str]]) -> str:
    """Words into the placeholders of a template; where there is a choice, each occurrence is drawn anew."""

    def word(found: re.Match[str]) -> str:
        choices = words[found[1]]
        return choices if isinstance(choices, str) else one(rng, choices)

    while "{" in template:
        template = re.sub(r"\{(\w+)\}", word, template)
    return " ".join(re.sub(r"\ba (?=[aeio])", "an ", template).split())


def until(draw: Callable[[], D], wanted: bool) -> D:
    """The first draw that is held out, or not, as wanted."""
    while True:
        drawn = draw()
        if drawn.held_out == wanted:
            return drawn


def distinct(count: int, draw: Callable[[], D]) -> list[D]:
    """As many draws with different texts."""
    found: dict[str, D] = {}
    while len(found) < count:
        drawn = draw()
        found.setdefault(drawn.text, drawn)
    return list(found.values())
