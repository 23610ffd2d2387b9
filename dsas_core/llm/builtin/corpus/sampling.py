"""Reading the corpus and drawing from it: phrases, placeholders, distinct texts, the held-out part."""

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
    """A text that may be held out from training."""

    @property
    def text(self) -> str: ...

    @property
    def held_out(self) -> bool: ...


DrawT = TypeVar("DrawT", bound=Draw)


@cache
def read_corpus(name: str) -> Mapping[str, Any]:
    """The content of a YAML file of this folder, with tuples in place of lists.

    Args:
        name: the file's name without ".yaml".
    """
    return _freeze(yaml.safe_load((Path(__file__).parent / f"{name}.yaml").read_text(encoding="utf-8")))


def _freeze(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _freeze(item) for key, item in value.items()}
    return tuple(map(_freeze, value)) if isinstance(value, list) else value


def is_held_out(key: str) -> bool:
    """Whether the content that a key stands for is held out from training: one in ten keys is, by its hash."""
    return zlib.crc32(key.encode()) % HELD_OUT_BUCKETS == 0


def choose(rng: np.random.Generator, choices: Sequence[str]) -> str:
    """Draw one of several phrases."""
    return choices[int(rng.integers(len(choices)))]


def fill(rng: np.random.Generator, template: str, words: Mapping[str, str | Sequence[str]]) -> str:
    """Fill the placeholders of a template, and those in the words that are filled in.

    Args:
        rng: generator of the choices.
        template: text with {placeholders}.
        words: placeholder -> its text, or several texts, of which each occurrence draws one.

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
    """Draw until an item is held out, or is not, as `held_out` says."""
    while True:
        item = draw()
        if item.held_out == held_out:
            return item


def draw_distinct(count: int, draw: Callable[[], DrawT]) -> list[DrawT]:
    """Draw `count` items with different texts."""
    by_text: dict[str, DrawT] = {}
    while len(by_text) < count:
        item = draw()
        by_text.setdefault(item.text, item)
    return list(by_text.values())
