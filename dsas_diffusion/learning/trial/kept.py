"""What steering leaves as it is: around the concept in pictures that show it, and in pictures that do not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from dsas_core.concept.evidence import list_neighbours

#: as far as this from what shows the concept, in widths of the picture, its change may reach
MARGIN = 0.125
#: side of the window in which a change is averaged, in widths of the picture: a thing, or a good part of it
WINDOW = 0.14
#: mean absolute difference within a window, of 255, from which on what is there counts as changed
CHANGED_BESIDE = 30.0
#: half of an interval that is narrow enough
NARROW = 0.08
#: share of held-out pictures that may change before learning says so
MUCH = 0.1


@dataclass(frozen=True)
class Part:
    """How many pictures of one kind changed where they must stay, of how many."""

    changed: int
    pictures: int

    def __add__(self, other: Part) -> Part:
        return Part(self.changed + other.changed, self.pictures + other.pictures)

    @property
    def share(self) -> float:
        """Of the pictures, those that changed; 0 where there are none."""
        return self.changed / max(1, self.pictures)

    @property
    def is_known(self) -> bool:
        """Whether the share is known within `NARROW`, by Wilson's interval of 95 %."""
        n = max(1, self.pictures)
        p, z = self.changed / n, 1.96
        return z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) <= NARROW


@dataclass(frozen=True)
class Kept:
    """What of held-out pictures stays.

    Args:
        alone: pictures of the concept alone: around it.
        beside: of the concept beside something else: around it.
        without: of something else: anywhere.
        neighbours: the same as `beside`, by the other thing.
    """

    alone: Part
    beside: Part
    without: Part
    neighbours: dict[str, Part]

    @property
    def drift(self) -> float:
        """The larger share of pictures that changed where they must stay: without the concept, or beside it."""
        return max(self.beside.share, self.without.share)

    def __add__(self, other: Kept) -> Kept:
        """Of the pictures of both."""
        named = {**self.neighbours, **other.neighbours}
        none = Part(0, 0)
        sums = {name: self.neighbours.get(name, none) + other.neighbours.get(name, none) for name in named}
        alone, beside, without = self.alone + other.alone, self.beside + other.beside, self.without + other.without
        return Kept(alone, beside, without, dict(sorted(sums.items())))

    def as_evidence(self) -> dict[str, Any]:
        """As plain data."""
        parts = {name: vars(getattr(self, name)) for name in ("alone", "beside", "without")}
        return {**parts, "neighbours": {name: vars(part) for name, part in self.neighbours.items()}}


def change_beside(
    before: Sequence[Image.Image], after: Sequence[Image.Image], masks: Sequence[np.ndarray] | None
) -> np.ndarray:
    """The largest mean change of pixels within a window around the concept, of 255, float [n].

    Where things keep their place and look, a few pixels at edges change; where one moves, or becomes another, most of
    a window does.

    Args:
        before: unsteered pictures.
        after: steered ones.
        masks: where each unsteered picture shows the concept, above 0, [height, width]; None where it has no place,
            so that nothing around it can be told.

    Example:
        >>> black, half = Image.new("RGB", (64, 64)), Image.new("RGB", (64, 64))
        >>> half.paste((90, 90, 90), (32, 0, 64, 64))
        >>> mask = np.zeros((64, 64))
        >>> mask[:, 40:] = 1
        >>> change_beside([black, black], [half, half], [mask, 1 - mask]).round().tolist()
        [0.0, 90.0]
    """
    from scipy import ndimage

    changes = np.zeros(len(before))
    if masks is None:
        return changes
    for i, (a, b, mask) in enumerate(zip(before, after, masks, strict=True)):
        width = mask.shape[1]
        difference = np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)).mean(-1)
        if (mask > 0).any():
            difference = np.where(ndimage.distance_transform_edt(mask == 0) > MARGIN * width, difference, 0)
        changes[i] = ndimage.uniform_filter(difference, max(1, round(WINDOW * width))).max()
    return changes


def count_kept(around: np.ndarray, neighbours: Sequence[str | None], changed: np.ndarray) -> Kept:
    """Count what stays.

    Args:
        around: how far the surroundings of the concept changed (`change_beside`), [n].
        neighbours: what is beside the concept in each, or None.
        changed: whether each picture without the concept changed, bool [m].

    Example:
        >>> kept = count_kept(np.array([0.0, 50.0]), [None, "rabbit"], np.array([False, True, False]))
        >>> kept.beside, kept.without.changed, kept.drift
        (Part(changed=1, pictures=1), 1, 1.0)
    """
    moved = around > CHANGED_BESIDE
    has = np.array([name is not None for name in neighbours])
    named = {str(name): np.array([name == own for own in neighbours]) for name in neighbours if name is not None}
    alone, beside = (Part(int(moved[part].sum()), int(part.sum())) for part in (~has, has))
    return Kept(
        alone,
        beside,
        without=Part(int(changed.sum()), len(changed)),
        neighbours={name: Part(int(moved[own].sum()), int(own.sum())) for name, own in sorted(named.items())},
    )


def describe_changes(kept: Mapping[str, Any]) -> list[str]:
    """What a concept changes that must stay, and what can be done, a line each; [] where it is little.

    Args:
        kept: the concept's `evidence["kept"]`.

    Example:
        >>> part, none = {"changed": 6, "pictures": 8}, {"changed": 0, "pictures": 8}
        >>> describe_changes({"alone": none, "beside": part, "without": none, "neighbours": {"rabbit": part}})[0][:69]
        'things beside it changed in 6 of 8 held-out pictures (rabbit 6 of 8):'
    """
    lines = []
    for part, what, named, way_out in (
        ("beside", "things beside it changed", list_neighbours(kept), "draw with preserve, or learn at other sites"),
        ("without", "pictures without it changed", "", "add control prompts like those that changed"),
    ):
        changed, pictures = kept[part]["changed"], kept[part]["pictures"]
        if changed > MUCH * pictures:
            lines.append(f"{what} in {changed} of {pictures} held-out pictures{named}: {way_out}")
    return lines
