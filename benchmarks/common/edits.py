"""What a concept of the built-in model does, from its prompt file, and fresh prompts to measure it on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from benchmarks.builtin_models.picture_scenes import OPENINGS, noun_phrase
from benchmarks.common.builtin_metrics import StyleEdit
from dsas_core.learning.prompts.prompt_set import PromptSet
from dsas_diffusion.builtin.judge import Judge
from dsas_diffusion.builtin.scenes import BACKGROUNDS, NAMES, RELATIONS, THINGS
from dsas_diffusion.vision.builtin_judge import ExpectedScene


class Case(NamedTuple):
    """A prompt, the same asking in words for the edit ("" where it names no such thing), and the other thing in it."""

    prompt: str
    rewritten: str = ""
    neighbour: str | None = None


@dataclass(frozen=True)
class Edit:
    """Some things that take on a style, or become another thing.

    Args:
        things: those that are changed.
        style: that they take on; None where they become another thing.
        becomes: that other thing.

    Example:
        >>> edit = Edit(("dog",), style="grey")
        >>> edit.in_words("a dog and a cat", "dog"), edit.category, "cat" in edit.look_alikes
        ('a grey dog and a cat', 'animal', True)
        >>> Edit(("apple", "lemon"), becomes="pear").in_words("an apple and a cat", "apple")
        'a pear and a cat'
    """

    things: tuple[str, ...]
    style: str | None = None
    becomes: str | None = None

    @classmethod
    def of(cls, prompts: PromptSet) -> Edit:
        """The edit that the judge of a prompt file expects.

        Args:
            prompts: with a built-in judge that names things.
        """
        wanted = ExpectedScene(**prompts.judges[0]["builtin"])
        things = wanted.gone_things or wanted.wanted_things
        becomes = next(iter(wanted.wanted_things)) if wanted.gone_things else None
        return cls(tuple(name for name in NAMES if name in things), wanted.style, becomes)

    @property
    def category(self) -> str:
        """The word for these things and others like them."""
        return str(THINGS[self.things[0]][1])

    @property
    def others(self) -> tuple[str, ...]:
        """Things that are to stay as they are; where a whole category is to become one of its things, outside it."""
        outside = [name for name in NAMES if self.becomes is None or THINGS[name][1] != self.category]
        return tuple(name for name in outside if name not in self.things)

    @property
    def look_alikes(self) -> tuple[str, ...]:
        """Those of the others that are of the same category."""
        return tuple(name for name in self.others if THINGS[name][1] == self.category)

    def in_words(self, prompt: str, thing: str) -> str:
        """The prompt rewritten to ask for the edit of a thing that it names."""
        if self.style is not None:
            return StyleEdit(thing, self.style).in_words(prompt)
        return prompt.replace(noun_phrase(thing), noun_phrase(str(self.becomes)))


def draw_cases(edit: Edit, used: Collection[str], seed: int, size: int) -> dict[str, list[Case]]:
    """Fresh prompts of three parts: "beside" something else, "without" any of the things, and "unnamed" ("a fruit …").

    Half of those without the things show a look-alike, where there are any. Unnamed prompts are so few that they come
    again, to be drawn from other noise.

    Args:
        edit: the edit.
        used: prompts not to draw.
        seed: of the choice.
        size: prompts of each part.
    """
    rng = np.random.default_rng(seed)
    parts: dict[str, list[Case]] = {"beside": [], "without": []}
    seen = set(used)

    def choose(texts: Sequence[str]) -> str:
        return str(rng.choice(texts))

    while min(map(len, parts.values())) < size:
        opening, background, relation = choose(OPENINGS), choose(BACKGROUNDS), choose(["and", *RELATIONS])
        thing, other = choose(edit.things), choose(edit.others)
        pair = [noun_phrase(thing), noun_phrase(other)]
        if rng.random() < 0.5:
            pair.reverse()
        prompt = f"{opening}{pair[0]} {relation} {pair[1]} {background}"
        cases = {"beside": Case(prompt, edit.in_words(prompt, thing), other)}
        first = choose(edit.look_alikes or edit.others) if len(parts["without"]) % 2 else other
        second = choose([name for name in edit.others if name != first])
        named = choose([noun_phrase(first), f"{noun_phrase(first)} {relation} {noun_phrase(second)}"])
        cases["without"] = Case(f"{opening}{named} {background}")
        for part, case in cases.items():
            if len(parts[part]) < size and case.prompt not in seen:
                seen.add(case.prompt)
                parts[part].append(case)
    unnamed = [f"{opening}{noun_phrase(edit.category)} {place}" for opening in OPENINGS for place in BACKGROUNDS]
    unnamed = [str(text) for text in rng.permutation([text for text in unnamed if text not in seen])]
    return {**parts, "unnamed": [Case(unnamed[i % len(unnamed)]) for i in range(size)]}


def find_masks_of(judge: Judge, pictures: Sequence[Image.Image], things: Collection[str]) -> list[np.ndarray | None]:
    """The mask of any of the things in each picture, bool [height, width], or None if it shows none of them."""
    by_picture = [[m for name, m in verdict.masks.items() if name in things] for verdict in judge.look(list(pictures))]
    return [np.logical_or.reduce(masks) if masks else None for masks in by_picture]
