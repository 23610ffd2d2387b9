"""Neutral descriptions of places, by which fluency is measured.

A hash of place, time and look, which every description has, decides whether it is held out. Some mention a clown or a
useless key, so that a word of the lexicon alone does not make a text rude.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .sampling import choose, draw_distinct, draw_until, fill, is_held_out, read_corpus
from .tones import INSULTS

DESCRIPTIONS = read_corpus("descriptions")
PLACES = DESCRIPTIONS["places"]


@dataclass(frozen=True)
class Description:
    """A question about a place and its answer.

    Args:
        question: the message.
        text: the answer, two to four sentences.
        key: place, time and look.
    """

    question: str
    text: str
    key: str

    @property
    def held_out(self) -> bool:
        """Whether the combination of place, time and look is held out from training, in any wording."""
        return is_held_out(self.key)


def draw_description(rng: np.random.Generator, *, held_out: bool = False) -> Description:
    """Draw a description of the held-out part, or of the other part."""
    return draw_until(lambda: _compose(rng), held_out)


def draw_descriptions(count: int, seed: int = 0, *, held_out: bool = True) -> list[Description]:
    """Draw `count` different descriptions.

    Example:
        >>> draw_descriptions(1)[0].question
        'write a few words about the museum at night.'
    """
    rng = np.random.default_rng((seed, int(held_out)))
    return draw_distinct(count, lambda: draw_description(rng, held_out=held_out))


def _compose(rng: np.random.Generator) -> Description:
    def any_of(name: str) -> str:
        return choose(rng, DESCRIPTIONS[name])

    place, time, look = choose(rng, tuple(PLACES)), any_of("times"), any_of("looks")
    words = {"place": place, "time": time, "look": look, **PLACES[place], **DESCRIPTIONS["words"], **INSULTS}
    rest = [any_of("sentences"), any_of("doings")]
    if rng.random() < 0.3:
        rest.append(any_of("weather"))
    if rng.random() < 0.2:
        rest.append(any_of("oddities"))
    order = rng.permutation(len(rest))[: 3 if rng.random() < 0.8 else 1]
    text = " ".join([any_of("first"), *(rest[i] for i in order)])
    return Description(fill(rng, any_of("questions"), words), fill(rng, text, words), f"{place}|{time}|{look}")
