"""How the corpus is read and drawn from: a phrase of several, placeholders filled, distinct texts, what is held out."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import yaml

HELD_OUT_BUCKETS = 10


class Draw(Protocol):
    """What is drawn: a text that may be held out from training."""

    @property
    def text(self) -> str: ...

    @property
    def held_out(self) -> bool: ...


DrawT = TypeVar("DrawT", bound=Draw)


@cache
def read_corpus(name: str) -> Mapping[str, Any]:
    """What a YAML file of this folder holds, by its name without ".yaml"; tuples in place of lists."""
    return _freeze(yaml.safe_load((Path(__file__).parent / f"{name}.yaml").read_text(encoding="utf-8")))


def _freeze(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _freeze(item) for key, item in value.items()}
    return tuple(map(_freeze, value)) if isinstance(value, list) else value


def is_held_out(key: str) -> bool:
    """Whether training must not see what this key stands for: one in ten."""
    return zlib.crc32(key.encode()) % HELD_OUT_BUCKETS == 0


def choose(rng: np.random.Generator, choices: Sequence[str]) -> str:
    """A phrase from several."""
    return choices[int(rng.integers(len(choices)))]


def fill(rng: np.random.Generator, template: str, words: Mapping[str, str | Sequence[str]]) -> str:
    """Words into the placeholders of a template; where there is a choice, each occurrence is drawn anew.

    Example:
        >>> fill(np.random.default_rng(0), "the {animal} is {look}", {"animal": "owl", "look": ["old"]})
        'the owl is old'
    """

    def word(match: re.Match[str]) -> str:
        choices = words[match[1]]
        return choices if isinstance(choices, str) else choose(rng, choices)

    while "{" in template:
        template = re.sub(r"\{(\w+)\}", word, template)
    return " ".join(re.sub(r"\ba (?=[aeio])", "an ", template).split())


def draw_until(draw: Callable[[], DrawT], held_out: bool) -> DrawT:
    """The first draw that is held out, or not, as wanted."""
    while True:
        drawn = draw()
        if drawn.held_out == held_out:
            return drawn


def draw_distinct(count: int, draw: Callable[[], DrawT]) -> list[DrawT]:
    """As many draws with different texts."""
    by_text: dict[str, DrawT] = {}
    while len(by_text) < count:
        drawn = draw()
        by_text.setdefault(drawn.text, drawn)
    return list(by_text.values())
