"""The judge of the pictures of the built-in model: whether they show an expected scene."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from PIL import Image

from dsas_core.errors import DSASError

from ..builtin.judge import Judge, Verdict
from ..builtin.scenes import CATEGORIES, COLOURS, NAMES, STYLES, THINGS
from .image_models import array_of
from .picture_judge import CheckedJudge


@dataclass(frozen=True)
class ExpectedScene:
    """What a picture should show, in words of the built-in model.

    Args:
        things: any one of these must be there; "fruit", "animal" and "vehicle" stand for all things of a category.
        style: of the thing, or of any thing without `things`: "sharp", "blurred", "pixelated" or "grey".
        background: its colour.
        gone: none of these may be there. A named thing takes precedence over its category: things=("pear",),
            gone=("fruit",) is a pear and no other fruit.

    Raises:
        DSASError: unknown names, a name both wanted and gone, or no expectation at all.

    Example:
        >>> sorted(ExpectedScene(things=("pear",), gone=("fruit",)).gone_things)[:2]
        ['apple', 'banana']
    """

    things: tuple[str, ...] = ()
    style: str | None = None
    background: str | None = None
    gone: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not any(getattr(self, field.name) for field in fields(self)):
            raise DSASError("an expected scene needs things, a style, a background, or what is to be gone")
        for what in ("things", "gone"):
            names = _names(what, getattr(self, what))
            object.__setattr__(self, what, names)
            _check(what, names, (*NAMES, *CATEGORIES))
        _check("style", [self.style] if self.style is not None else [], STYLES)
        _check("background", [self.background] if self.background is not None else [], (*COLOURS,))
        if both := sorted(set(self.things) & set(self.gone)):
            raise DSASError(f"{', '.join(both)}: cannot be wanted and gone at once")

    @property
    def wanted_things(self) -> frozenset[str]:
        """`things` with categories expanded: one of these must be there."""
        return _expand(self.things) - set(self.gone)

    @property
    def gone_things(self) -> frozenset[str]:
        """`gone` with categories expanded: none of these may be there."""
        return _expand(self.gone) - set(self.things)

    def holds(self, verdict: Verdict, pixels: np.ndarray) -> bool:
        """Whether a picture shows the scene.

        Args:
            verdict: of the judge on the picture.
            pixels: the picture, uint8 [height, width, 3].
        """
        wanted = self.wanted_things if self.things else frozenset(NAMES)
        styles = [style for thing, style in verdict.styles.items() if thing in wanted]
        if (self.things or self.style) and not any(style == (self.style or style) for style in styles):
            return False
        if verdict.things & self.gone_things:
            return False
        return self.background is None or _background(verdict, pixels) == self.background


class BuiltinJudge(CheckedJudge):
    """1 for a picture that shows the expected scene, by the built-in judge, 0 for others.

    It was trained on pictures of `builtin:emoji` and suits no others.

    Args:
        wanted: what a picture should show.
        judge: None takes the built-in one.

    Raises:
        UnavailableError: the judge's weights are missing.

    Example:
        >>> judge = BuiltinJudge(ExpectedScene(background="white"))
        >>> judge.target_scores([Image.new("RGB", (128, 128), "white")], ["a dog"]).tolist()
        [1.0]
    """

    def __init__(self, wanted: ExpectedScene, judge: Judge | None = None) -> None:
        self.name = "builtin"
        self.wanted = wanted
        self.judge = judge or Judge.load()

    def _score(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        array = self._pixels(pictures)
        verdicts = self.judge.look(array)
        return np.array([float(self.wanted.holds(v, a)) for v, a in zip(verdicts, array, strict=True)])

    def masks(self, pictures: Sequence[Image.Image]) -> list[np.ndarray | None]:
        """The mask of the expected scene's things in each picture, bool [height, width], or None if it shows none.

        These are the wanted things and those that should be gone, whatever their style; all things if only a style is
        expected; none if only a background is.
        """
        about = self._subjects()
        verdicts = self.judge.look(self._pixels(pictures))
        by_picture = [[mask for thing, mask in verdict.masks.items() if thing in about] for verdict in verdicts]
        return [np.logical_or.reduce(masks) if masks else None for masks in by_picture]

    def _subjects(self) -> frozenset[str]:
        """The things that the expected scene is about."""
        about = self.wanted.wanted_things | self.wanted.gone_things
        return frozenset(NAMES) if not about and self.wanted.style else about

    def neighbours_kept(
        self, base: Sequence[Image.Image], steered: Sequence[Image.Image], masks: Sequence[np.ndarray | None]
    ) -> list[float]:
        """The share of other things that are still there in the same style.

        Args:
            base: pictures before.
            steered: pictures after.
            masks: of the expected scene's things in the pictures before (`masks`).

        Returns:
            A number for each picture with a mask and other things.
        """
        about = self._subjects()
        before, after = (self.judge.look(self._pixels(pictures)) for pictures in (base, steered))
        shares = []
        for a, b, mask in zip(before, after, masks, strict=True):
            others = {thing: style for thing, style in a.styles.items() if thing not in about}
            if mask is not None and others:
                shares.append(sum(b.styles.get(thing) == style for thing, style in others.items()) / len(others))
        return shares

    def _pixels(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        array = array_of(pictures)
        height, width = array.shape[1:3]
        if height % 2 or width % 2:
            raise DSASError(f"the built-in judge sees blocks of 2 x 2 pixels, found a picture of {width} x {height}")
        return array


def _background(verdict: Verdict, pixels: np.ndarray) -> str | None:
    """The colour nearest to the median of the pixels of no thing; None if things cover all."""
    free = ~np.logical_or.reduce([np.zeros(pixels.shape[:2], bool), *verdict.masks.values()])
    if not free.any():
        return None
    median = np.median(pixels[free].astype(np.float64), axis=0)
    return min(COLOURS, key=lambda name: float(((median - COLOURS[name]) ** 2).sum()))


def _expand(names: Collection[str]) -> frozenset[str]:
    return frozenset(thing for thing, (_, category) in THINGS.items() if thing in names or category in names)


def _names(what: str, given: Any) -> tuple[str, ...]:
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise DSASError(f"{what}: expected a list of names, found {given!r}")
    return tuple(given)


def _check(what: str, names: Sequence[Any], known: Collection[str]) -> None:
    if unknown := [name for name in names if name not in known]:
        raise DSASError(f"{what}: unknown {unknown[0]!r}; there is {', '.join(known)}")
