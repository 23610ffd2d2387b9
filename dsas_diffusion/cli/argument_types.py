"""Types of options: what turns the text of an argument into numbers, schedules, or concepts with strengths.

Each function takes the text and returns its value; a text that does not fit raises `argparse.ArgumentTypeError`.
"""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dsas_core.errors import DSASError, PromptError, quote
from dsas_core.steering.strengths import AUTO, Auto, read_strength
from dsas_core.utils.numbers import KINDS, read_number
from dsas_core.utils.reading.plain_yaml import parse_yaml

from ..steering.schedule import Schedule

_SCHEDULES: Mapping[str, tuple[int, Callable[..., Schedule]]] = {
    "constant": (1, Schedule.constant),
    "linear": (2, Schedule.linear),
    "cosine": (2, Schedule.cosine),
    "window": (2, Schedule.between),
}


def number_type(kind: str) -> Callable[[str], Any]:
    """The type of an option that takes a number of a kind of `dsas_core.utils.numbers`.

    Example:
        >>> number_type("steps")("12")
        12
    """

    def parse(text: str) -> Any:
        try:
            return read_number(kind, text)
        except DSASError:
            raise ArgumentTypeError(f"expected {KINDS[kind]}, found {quote(text)}") from None

    return parse


def filled(text: str) -> str:
    """A text that is not empty: a name, a path, a phrase."""
    if not text.strip():
        raise ArgumentTypeError(f"expected something, found {quote(text)}")
    return text


def anything(text: str) -> str:
    """A text, the empty one among them: a prompt, a message."""
    return text


_factor, _timestep, _side = map(number_type, ("factor", "timestep", "size"))


def preserve(text: str) -> str | bool:
    """How to leave the rest as it is; False for "off".

    Example:
        >>> preserve("latents"), preserve("off")
        ('latents', False)
    """
    return text != "off" and text


def name_and_value(text: str) -> tuple[str, Any]:
    """`NAME=VALUE`, the value as YAML reads it: a number, true, null, or a text."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ArgumentTypeError(f"expected NAME=VALUE, found {quote(text)}")
    try:
        return name, parse_yaml(value, f"the value of {quote(name)}")
    except PromptError as error:
        raise ArgumentTypeError(f"expected NAME=VALUE, the value as in YAML, found {quote(text)}: {error}") from None


def name_and_word(text: str) -> tuple[str, str]:
    """`NAME=WORD`."""
    name, _, word = text.partition("=")
    if not (name and word.strip()):
        raise ArgumentTypeError(f"expected NAME=WORD, found {quote(text)}")
    return name, word


def sides(text: str) -> int | tuple[int, int]:
    """`512`, or `768x512` for width and height.

    Example:
        >>> sides("96x64"), sides("64")
        ((96, 64), 64)
    """
    parts = [_side(part.strip()) for part in re.split("[x×]", text.lower())]
    if len(parts) > 2:
        raise ArgumentTypeError(f"expected PIXELS or WIDTHxHEIGHT, found {quote(text)}")
    return parts[0] if len(parts) == 1 else (parts[0], parts[1])


def axis(text: str) -> tuple[str, list[Any]]:
    """`KIND=VALUE,VALUE`: what varies along one side of a grid; `prompt` has the prompts of another option.

    Example:
        >>> axis("strength=-1,auto"), axis("seed=1,2")
        (('strength', [-1.0, Auto(target=0.5, cap=2.0)]), ('seed', [1, 2]))
    """
    key, equals, given = text.partition("=")
    kind = key.partition(":")[0]
    if key == "prompt" and not equals:
        return key, []
    read = _AXES.get(kind)
    if read is None or not given.strip():
        kinds = ", ".join(f"{name}=…" for name in _AXES)
        raise ArgumentTypeError(f"expected {kinds} with values between commas, or prompt; found {quote(text)}")
    try:
        return key, [read(value.strip()) for value in given.split(",")]
    except DSASError as error:
        raise ArgumentTypeError(f"{key}: {error}") from None


#: kind of an axis -> the type of its values
_AXES: Mapping[str, Callable[[str], Any]] = {
    "strength": read_strength,
    "concept": filled,
    **{kind: partial(read_number, kind) for kind in ("seed", "steps", "guidance")},
}


def schedule(text: str) -> Schedule:
    """`linear:0:1`, `cosine:0:1`, `window:800:200`, `constant:0.5` or `table:1000=0,500=1`."""
    kind, _, rest = text.partition(":")
    try:
        if kind == "table":
            points = [point.partition("=") for point in rest.split(",")]
            return Schedule([(_timestep(t), _factor(factor)) for t, _, factor in points])
        if kind in _SCHEDULES:
            count, make = _SCHEDULES[kind]
            values = [_factor(part) for part in rest.split(":")]
            if len(values) == count:
                return make(*values)
    except DSASError as error:
        raise ArgumentTypeError(str(error)) from None
    raise ArgumentTypeError(
        f"expected constant:F, linear:FIRST:LAST, cosine:FIRST:LAST, window:START:STOP or table:T=F,…; found "
        f"{quote(text)}"
    )


def edges(text: str) -> tuple[float, ...]:
    """`500`, `300,700`, or `none`."""
    return () if text == "none" else tuple(_timestep(part) for part in text.split(","))


def count_and_strength(text: str) -> tuple[int, float]:
    """`N`, which means a strength of 1, or `N=STRENGTH`; N from 2 up.

    Example:
        >>> count_and_strength("4=0.5")
        (4, 0.5)
    """
    count, equals, strength = text.partition("=")
    read = number_type("batch")(count)
    if read < 2:
        raise ArgumentTypeError(f"expected 2 or more, which are pushed apart, found {quote(text)}")
    return read, number_type("strength")(strength) if equals else 1.0


def concept_alone(text: str) -> str:
    """`FOLDER`, of commands that choose strengths by themselves."""
    folder, _ = concept_and_strength(text)
    if folder != text:
        raise ArgumentTypeError(f"found {quote(text)}: strengths are not given here; did you mean {folder}?")
    return folder


def concept_and_strength(text: str) -> tuple[str, float | Auto]:
    """`FOLDER`, which means a strength of 1, or `FOLDER=STRENGTH`; a folder may have a `=` in its name.

    Example:
        >>> concept_and_strength("builtin:dog-grey=-0.5")
        ('builtin:dog-grey', -0.5)
    """
    folder, equals, strength = text.rpartition("=")
    filled(text)
    if Path(text).is_dir():
        return text, 1.0
    if not equals:
        meant = re.fullmatch(rf"(.+?):({AUTO}(?::.*)?|[-+]?[\d.]+(?:e[-+]?\d+)?)", text)
        if meant:
            raise ArgumentTypeError(f"found {quote(text)}: did you mean {meant[1]}={meant[2]}?")
        return text, 1.0
    try:
        return folder, read_strength(strength)
    except DSASError as error:
        raise ArgumentTypeError(str(error)) from None
