"""What steering did to pictures of the built-in model, told by its judge: effect, neighbours, what changed around.

The judge (builtin/judge.py) looks at finished pictures only. Nothing here takes part in learning or steering.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..builtin.judge import Judge
from ..builtin.scenes import NAMES


@dataclass(frozen=True)
class StyleEdit:
    """What a concept is to do: `thing` is to look `style`, as in "a banana" -> "a blurred banana"."""

    thing: str
    style: str

    def in_words(self, prompt: str) -> str:
        """The prompt that asks for it."""
        words = prompt.split()
        at = words.index(self.thing)
        article = "an" if self.style[0] in "aeiou" else "a"
        before = [*words[: at - 1], article] if at and words[at - 1] in ("a", "an") else words[:at]
        return " ".join([*before, self.style, *words[at:]])


def shown(judge: Judge, pictures: Sequence[Image.Image], wanted: StyleEdit) -> np.ndarray:
    """Which pictures show the wanted thing in the wanted style, bool [n]."""
    return np.array([verdict.styles.get(wanted.thing) == wanted.style for verdict in judge.look(list(pictures))])


def neighbours(prompts: Sequence[str], wanted: StyleEdit) -> list[str | None]:
    """The other thing that each prompt names, if it names one."""
    return [next((w for w in prompt.split() if w in NAMES and w != wanted.thing), None) for prompt in prompts]


def neighbour_intact(judge: Judge, pictures: Sequence[Image.Image], names: Sequence[str | None]) -> np.ndarray:
    """Whether each picture shows its neighbour, sharp; False where it has none, bool [n]."""
    verdicts = judge.look(list(pictures))
    return np.array([v.styles.get(name or "") == "sharp" for v, name in zip(verdicts, names, strict=True)])


def masks(judge: Judge, pictures: Sequence[Image.Image], thing: str) -> list[np.ndarray | None]:
    """The thing's mask in each picture, bool [height, width], or None where it is not shown."""
    return [verdict.masks.get(thing) for verdict in judge.look(list(pictures))]


def change_outside(
    base: Sequence[Image.Image], steered: Sequence[Image.Image], masks: Sequence[np.ndarray | None]
) -> list[float]:
    """Mean absolute pixel difference, of 255, outside a thing's mask, for each picture that has one.

    The mask is grown by a tenth of the picture's width: a softer edge of the thing is not a change of its surroundings.
    """
    changes = []
    for before, after, mask in zip(base, steered, masks, strict=True):
        if mask is not None:
            grown = _grow(mask, before.width // 10)
            difference = np.abs(np.asarray(before, np.float32) - np.asarray(after, np.float32)).mean(-1)
            if not grown.all():
                changes.append(float(difference[~grown].mean()))
    return changes


def _grow(mask: np.ndarray, margin: int) -> np.ndarray:
    """A mask grown by `reach` pixels to every side, corners too."""
    pixels = torch.from_numpy(mask).float()[None, None]
    rows = F.max_pool2d(pixels, (2 * margin + 1, 1), 1, (margin, 0))
    return F.max_pool2d(rows, (1, 2 * margin + 1), 1, (0, margin))[0, 0].numpy() > 0
