"""Whether a picture shows what a concept is to do, as told by the built-in judge, a CLIP, a classifier or a function.

`judge_from` makes one from plain data, such as a prompt file holds under `judge`. Judges look at finished pictures
only; they never take part in learning or steering.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from dsas_core.errors import DSASError
from dsas_core.pretrained import reason_of

from .builtin.judge import Judge, Verdict
from .builtin.scenes import CATEGORIES, COLOURS, NAMES, STYLES, THINGS
from .vision import BATCH, Clip, Unavailable, array_of, load_pretrained

#: what data can ask for: judge -> (keys that it must have, keys that it may have)
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "builtin": ((), ("things", "style", "background", "gone")),
    "clip": (("model", "wanted", "other"), ()),
    "classifier": (("model", "label"), ()),
}
#: labels that an error lists
LISTED = 20

#: pictures, prompts -> numbers in [0, 1], one each
Shown = Callable[[Sequence[Image.Image], Sequence[str]], Any]


class PictureJudge(Protocol):
    """Says of each picture how far it shows what is wanted."""

    name: str

    def shown(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """Float [n] in [0, 1]; `prompts` are the source prompts, also of pictures whose prompt was rewritten."""
        ...


def judge_from(spec: Mapping[str, Any], *, device: str = "auto") -> PictureJudge:
    """A judge from plain data, as a YAML file holds it.

    ```yaml
    {builtin: {things: [banana], style: blurred}}            # fields of `Wish`
    {clip: {model: user/name, wanted: a photo of a pear, other: a photo of a fruit}}
    {classifier: {model: user/name, label: banana}}
    ```

    A function of yours is a `CallableJudge`; a file, which may come from anybody, cannot name code to run.

    Args:
        device: of the models; "auto" takes a GPU when there is one.

    Raises:
        DSASError: other data, or a judge that cannot be loaded.
    """
    if not isinstance(spec, Mapping) or len(spec) != 1 or next(iter(spec)) not in KINDS:
        found = ", ".join(map(str, spec)) or "nothing" if isinstance(spec, Mapping) else repr(spec)
        raise DSASError(f"judge: expected one of {', '.join(KINDS)}, found {found}")
    ((kind, given),) = spec.items()
    needed, more = KINDS[kind]
    if not isinstance(given, Mapping):
        raise DSASError(f"judge {kind}: expected {', '.join([*needed, *more])}, found {given!r}")
    if unknown := [str(key) for key in given if key not in (*needed, *more)]:
        raise DSASError(f"judge {kind}: unknown {', '.join(unknown)}; there is {', '.join([*needed, *more])}")
    if absent := [key for key in needed if key not in given]:
        raise DSASError(f"judge {kind}: {', '.join(absent)} missing")
    for key in needed:
        if not isinstance(given[key], str | int if key == "label" else str):
            raise DSASError(f"judge {kind}: {key} is to be text, found {given[key]!r}")
    if kind == "clip":
        return ClipJudge(**given, device=device)
    if kind == "classifier":
        return ClassifierJudge(**given, device=device)
    names = {key: _names(key, given[key]) for key in ("things", "gone") if key in given}
    return BuiltinJudge(Wish(**{**given, **names}))


# ---- the built-in judge -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wish:
    """What a picture is to show, in words of the built-in model.

    Args:
        things: any one of these is to be there; "fruit", "animal" and "vehicle" stand for all of theirs.
        style: how it is to look: "sharp", "blurred", "pixelated" or "grey"; without `things`, how any thing is to.
        background: its colour.
        gone: none of these is to be there. A thing that is named counts more than its category: things=("pear",),
            gone=("fruit",) is a pear and no other fruit.

    Raises:
        DSASError: unknown names, the same name wanted and gone, or nothing wished.
    """

    things: tuple[str, ...] = ()
    style: str | None = None
    background: str | None = None
    gone: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not any(getattr(self, field.name) for field in fields(self)):
            raise DSASError("a wish needs things, a style, a background, or what is to be gone")
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
        """Any of these is to be there, categories spelled out."""
        return _spelled_out(self.things) - set(self.gone)

    @property
    def gone_things(self) -> frozenset[str]:
        """None of these is to be there, categories spelled out."""
        return _spelled_out(self.gone) - set(self.things)

    def holds(self, verdict: Verdict, pixels: np.ndarray) -> bool:
        """Whether a picture, uint8 [height, width, 3], of which the judge says `verdict` shows what is wished."""
        wanted = self.wanted_things if self.things else frozenset(NAMES)
        styles = [style for thing, style in verdict.styles.items() if thing in wanted]
        if (self.things or self.style) and not any(style == (self.style or style) for style in styles):
            return False
        if verdict.things & self.gone_things:
            return False
        return self.background is None or _background(verdict, pixels) == self.background


class BuiltinJudge:
    """1 for a picture that shows what is wished, as the built-in judge sees it, 0 for others.

    Made for the pictures of `builtin:emoji`; of others it knows nothing.

    Args:
        wanted: what a picture is to show.
        judge: None takes the one that ships.

    Raises:
        DSASError: the judge's weights are missing.
    """

    def __init__(self, wanted: Wish, judge: Judge | None = None) -> None:
        self.name = "builtin"
        self.wanted = wanted
        try:
            self.judge = judge or Judge.load()
        except FileNotFoundError as error:
            raise DSASError(str(error)) from error

    def shown(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        _check_prompts(pictures, prompts)
        array = self._pixels(pictures)
        verdicts = self.judge.look(array)
        return np.array([float(self.wanted.holds(v, a)) for v, a in zip(verdicts, array, strict=True)])

    def masks(self, pictures: Sequence[Image.Image]) -> list[np.ndarray | None]:
        """Where each picture shows what the wish is about, bool [height, width], or None where it shows none of it.

        That is the things that are wanted and those that are to be gone, whatever their style; all things where the
        wish is about a style alone; none where it is about the background alone.
        """
        about = self._about()
        verdicts = self.judge.look(self._pixels(pictures))
        found = [[mask for thing, mask in verdict.masks.items() if thing in about] for verdict in verdicts]
        return [np.logical_or.reduce(masks) if masks else None for masks in found]

    def _about(self) -> frozenset[str]:
        """The things that the wish is about."""
        about = self.wanted.wanted_things | self.wanted.gone_things
        return frozenset(NAMES) if not about and self.wanted.style else about

    def neighbours_kept(
        self, base: Sequence[Image.Image], made: Sequence[Image.Image], shapes: Sequence[np.ndarray | None]
    ) -> list[float]:
        """Of each picture that shows other things beside, the share that is still there and looks as before.

        Args:
            base, made: pictures before and after.
            shapes: where the base pictures show what the wish is about (`masks`); pictures without are left out.
        """
        about = self._about()
        before, after = (self.judge.look(self._pixels(pictures)) for pictures in (base, made))
        found = []
        for a, b, shape in zip(before, after, shapes, strict=True):
            others = {thing: style for thing, style in a.styles.items() if thing not in about}
            if shape is not None and others:
                found.append(sum(b.styles.get(thing) == style for thing, style in others.items()) / len(others))
        return found

    def _pixels(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        array = array_of(pictures)
        height, width = array.shape[1:3]
        if height % 2 or width % 2:
            raise DSASError(f"the built-in judge sees blocks of 2 x 2 pixels, found a picture of {width} x {height}")
        return array


def _background(verdict: Verdict, pixels: np.ndarray) -> str | None:
    """The colour that is nearest to the median of what belongs to no thing; None where things cover all."""
    free = ~np.logical_or.reduce([np.zeros(pixels.shape[:2], bool), *verdict.masks.values()])
    if not free.any():
        return None
    median = np.median(pixels[free].astype(np.float64), axis=0)
    return min(COLOURS, key=lambda name: float(((median - COLOURS[name]) ** 2).sum()))


def _spelled_out(names: Collection[str]) -> frozenset[str]:
    return frozenset(thing for thing, (_, category) in THINGS.items() if thing in names or category in names)


def _names(what: str, given: Any) -> tuple[str, ...]:
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise DSASError(f"{what}: expected a list of names, found {given!r}")
    return tuple(given)


def _check(what: str, names: Sequence[Any], known: Collection[str]) -> None:
    if unknown := [name for name in names if name not in known]:
        raise DSASError(f"{what}: unknown {unknown[0]!r}; there is {', '.join(known)}")


# ---- models of transformers -------------------------------------------------------------------------------------


class ClipJudge:
    """The probability that a CLIP gives to one text against another: softmax over its two logits (zero-shot).

    Args:
        model: a folder or Hub name.
        wanted, other: what a picture is to show, and what else it could, as captions: "a photo of a blurred banana"
            against "a photo of a sharp banana".
        device: "auto" takes a GPU when there is one.
        options: further arguments of `from_pretrained` (revision, token, …).

    Raises:
        DSASError: no text, or twice the same; Unavailable: no such model, or no CLIP.
    """

    def __init__(
        self, model: str | Path | Clip, wanted: str, other: str, *, device: str = "auto", **options: Any
    ) -> None:
        if not wanted.strip() or not other.strip() or wanted.strip() == other.strip():
            raise DSASError(f"wanted and other are to be two different texts, found {wanted!r} and {other!r}")
        self.clip = model if isinstance(model, Clip) else Clip(model, device=device, **options)
        if not hasattr(self.clip.model, "logit_scale"):
            raise Unavailable(f"{self.clip.name} is no CLIP: it has no scale for its logits")
        self.name = f"clip {self.clip.name}"
        self._texts = self.clip.of_texts([wanted, other])

    def shown(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        _check_prompts(pictures, prompts)
        if not len(pictures):
            return np.zeros(0)
        scale = float(self.clip.model.logit_scale.detach().exp())
        logits = scale * self.clip.of_pictures(pictures) @ self._texts.T
        return _checked(logits.softmax(-1)[:, 0].double().numpy(), len(pictures), self.name)


class ClassifierJudge:
    """The probability that an image classifier of transformers gives to one label.

    Softmax over its labels; sigmoid where its config says that several may be true at once, or where it has just one.

    Args:
        model: a folder or Hub name.
        label: its name, letter case ignored, or its number.
        device: "auto" takes a GPU when there is one.
        options: further arguments of `from_pretrained` (revision, token, …).

    Raises:
        DSASError: no such label; Unavailable: no such model, or no image classifier.
    """

    def __init__(self, model: str | Path, label: str | int, *, device: str = "auto", **options: Any) -> None:
        self.name = f"classifier {model}"
        self.model, self.processor, missing = load_pretrained(
            model, "AutoModelForImageClassification", "AutoImageProcessor", device, **options
        )
        if missing:
            raise Unavailable(f"{model} is no image classifier: it lacks {missing[0]}, which would be random")
        config = self.model.config
        self.labels = {int(number): str(name) for number, name in config.id2label.items()}
        self.label = _number_of(self.labels, label, str(model))
        several = getattr(config, "problem_type", None) == "multi_label_classification"
        self.function = "sigmoid" if several or len(self.labels) == 1 else "softmax"

    @torch.inference_mode()
    def shown(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        _check_prompts(pictures, prompts)
        found = np.zeros(len(pictures))
        for start in range(0, len(pictures), BATCH):
            chunk = [picture.convert("RGB") for picture in pictures[start : start + BATCH]]
            inputs = self.processor(images=chunk, return_tensors="pt").to(self.model.device)
            logits = self.model(pixel_values=inputs["pixel_values"]).logits.double()
            shares = logits.softmax(-1) if self.function == "softmax" else logits.sigmoid()
            found[start : start + BATCH] = shares[:, self.label].cpu().numpy()
        return _checked(found, len(pictures), self.name)


def _number_of(labels: Mapping[int, str], wanted: str | int, model: str) -> int:
    """The number of a label."""
    numbers = [number for number, name in labels.items() if name.strip().lower() == str(wanted).strip().lower()]
    if not numbers and str(wanted).isdecimal() and int(wanted) in labels:
        return int(wanted)
    if len(numbers) > 1:
        raise DSASError(
            f"{model} has several labels {wanted!r}: give the number, one of {', '.join(map(str, numbers))}"
        )
    if not numbers:
        known = ", ".join(f"{number}: {name}" for number, name in list(labels.items())[:LISTED])
        more = f", … ({len(labels)} in all)" if len(labels) > LISTED else ""
        raise DSASError(f"{model} has no label {wanted!r}; it has {known}{more}")
    return numbers[0]


# ---- a function of one's own ------------------------------------------------------------------------------------


class CallableJudge:
    """What a function of one's own says: pictures, prompts -> numbers in [0, 1], one each.

    Args:
        function: itself, or "package.module:function", which is imported. What it raises comes through as it is.

    Raises:
        DSASError: no such function.
    """

    def __init__(self, function: str | Shown) -> None:
        self.function = imported(function, "judge") if isinstance(function, str) else function
        named = function if isinstance(function, str) else getattr(function, "__qualname__", type(function).__name__)
        self.name = f"callable {named}"

    def shown(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        _check_prompts(pictures, prompts)
        return _checked(self.function(list(pictures), list(prompts)), len(pictures), self.name)


def imported(path: str, what: str) -> Any:
    """The function that "package.module:function" names; `what` it is for, in errors.

    Raises:
        DSASError: no such function.
    """
    module, _, name = path.partition(":")
    if not module or not name:
        raise DSASError(f"{what} {path!r}: expected 'package.module:function'")
    try:
        found = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise DSASError(f"{what} {path!r}: {reason_of(error)}; is its folder in PYTHONPATH?") from error
    except AttributeError as error:
        raise DSASError(f"{what} {path!r}: {module} has no {name}") from error
    if not callable(found):
        raise DSASError(f"{what} {path!r} is no function: {type(found).__name__}")
    return found


# ---- what all of them check -------------------------------------------------------------------------------------


def _check_prompts(pictures: Sequence[Image.Image], prompts: Sequence[str]) -> None:
    if len(pictures) != len(prompts):
        raise DSASError(f"{len(pictures)} pictures, but {len(prompts)} prompts: expected one each")


def _checked(found: Any, count: int, name: str) -> np.ndarray:
    """Scores as float [n] in [0, 1]."""
    try:
        scores = np.asarray(found, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DSASError(f"{name}: expected numbers in [0, 1], found {type(found).__name__}") from error
    if scores.shape != (count,):
        raise DSASError(f"{name}: expected {count} numbers, one per picture, found shape {list(scores.shape)}")
    strange = scores[~((scores >= 0) & (scores <= 1))]
    if len(strange):
        raise DSASError(f"{name}: expected numbers in [0, 1], found {strange[0]:g}")
    return scores
