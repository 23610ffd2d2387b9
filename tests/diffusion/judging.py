"""What evaluation is given in tests: prompts, a concept, judges of brightness and redness, masks, features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from dsas_core import Concept
from dsas_diffusion.sites import find_sites
from tests.helpers import bases, random_concept, seen_at

PROMPTS: dict[str, Any] = {
    "name": "banana",
    "placeholders": {
        "place": ["on the grass", "on a table", "at night", "in the snow"],
        "other": ["dog", "cat", "car"],
        "second": ["hat", "star", "tree"],
    },
    "source": ["a banana {place}", "a banana and a {other} {place}"],
    "target": ["a blurred banana {place}", "a blurred banana and a {other} {place}"],
    "control": ["a {other} {place}", "a {other} and a {second} {place}"],
    "evaluation": {"negative": ["a banana"], "unnamed": ["a fruit at night"]},
    "judge": {"builtin": {"things": ["banana"], "style": "blurred"}},
}


def random_banana(pipe: Any) -> Concept:
    """A random concept at all sites of texts and of what looks at them."""
    seen = seen_at(pipe, find_sites(pipe, ["text", "cross"]))
    return random_concept(seen, base=bases(pipe), unit=0.2, name="banana")


class Brightness:
    """A judge of brightness that finds the thing in the left half."""

    name = "brightness"

    def target_scores(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        return np.array([np.asarray(picture).mean() / 255 for picture in pictures])

    def masks(self, pictures: Sequence[Image.Image]) -> list[np.ndarray | None]:
        mask = np.zeros(pictures[0].size[::-1], bool)
        mask[:, : mask.shape[1] // 2] = True
        return [mask for _ in pictures]


class Redness(Brightness):
    """Another one, which knows no masks."""

    name = "redness"
    masks = None  # type: ignore[assignment]

    def target_scores(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        return np.array([np.asarray(picture)[..., 0].mean() / 255 for picture in pictures])


def brightness(pictures: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
    """For --judge."""
    return Brightness().target_scores(pictures, prompts)


def halves(pictures: Sequence[Image.Image]) -> list[Any]:
    """For --masks: the right half of every other picture."""
    mask = np.zeros(pictures[0].size[::-1], bool)
    mask[:, mask.shape[1] // 2 :] = True
    return [mask if i % 2 else None for i in range(len(pictures))]


def colours(pictures: Sequence[Image.Image]) -> np.ndarray:
    """For --features."""
    return np.stack([np.asarray(picture).reshape(-1, 3).mean(0) for picture in pictures])
