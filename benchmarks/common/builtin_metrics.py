"""Metrics of steered pictures of the built-in model, by its judge: the edit itself, and the things beside it.

The judge (dsas_diffusion/builtin/judge.py) sees finished pictures only. Learning and steering use none of this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dsas_diffusion.builtin.judge import MIN_SHARE, Judge
from dsas_diffusion.builtin.scenes import NAMES


@dataclass(frozen=True)
class StyleEdit:
    """The effect that a concept should have: `thing` in a `style`, as in "a banana" -> "a blurred banana".

    Example:
        >>> StyleEdit("banana", "blurred").in_words("a banana and an apple")
        'a blurred banana and an apple'
    """

    thing: str
    style: str

    def in_words(self, prompt: str) -> str:
        """The prompt rewritten to ask for the edit."""
        words = prompt.split()
        index = words.index(self.thing)
        article = "an" if self.style[0] in "aeiou" else "a"
        before = [*words[: index - 1], article] if index and words[index - 1] in ("a", "an") else words[:index]
        return " ".join([*before, self.style, *words[index:]])


def detect_edit(judge: Judge, pictures: Sequence[Image.Image], edit: StyleEdit) -> np.ndarray:
    """Whether each picture shows the thing in the style of the edit, bool [n]."""
    return np.array([verdict.styles.get(edit.thing) == edit.style for verdict in judge.look(list(pictures))])


def find_neighbours(prompts: Sequence[str], edit: StyleEdit) -> list[str | None]:
    """The other thing that each prompt names, or None.

    Example:
        >>> find_neighbours(["a banana and a dog", "a banana"], StyleEdit("banana", "blurred"))
        ['dog', None]
    """
    return [next((w for w in prompt.split() if w in NAMES and w != edit.thing), None) for prompt in prompts]


def detect_neighbours(judge: Judge, pictures: Sequence[Image.Image], names: Sequence[str | None]) -> np.ndarray:
    """Whether each picture shows its neighbour, sharp; False if it has none, bool [n]."""
    verdicts = judge.look(list(pictures))
    return np.array([v.styles.get(name or "") == "sharp" for v, name in zip(verdicts, names, strict=True)])


def find_masks(judge: Judge, pictures: Sequence[Image.Image], thing: str) -> list[np.ndarray | None]:
    """The thing's mask in each picture, bool [height, width], or None if it is not shown."""
    return [verdict.masks.get(thing) for verdict in judge.look(list(pictures))]


def count_regions(judge: Judge, pictures: Sequence[Image.Image]) -> list[int]:
    """In each picture, how many connected regions things cover: a second banana beside the first counts.

    Args:
        judge: the judge; regions smaller than those that it takes for things do not count.
        pictures: of one size.
    """
    from scipy.ndimage import label

    counts = []
    for verdict in judge.look(list(pictures)):
        sizes = [np.bincount(label(mask)[0].ravel())[1:] / mask.size for mask in verdict.masks.values()]
        counts.append(sum(int((shares >= MIN_SHARE).sum()) for shares in sizes))
    return counts
