"""Types of options: what turns the text of an argument into numbers, schedules, or concepts with strengths.

Each function takes the text and returns its value; a text that does not fit raises `argparse.ArgumentTypeError`.
"""

from __future__ import annotations

import math
import re
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from dsas_core.errors import DSASError
from dsas_core.steering.strengths import AUTO, Auto

from ..steering.schedule import Schedule

_SCHEDULES: Mapping[str, tuple[int, Callable[..., Schedule]]] = {
    "constant": (1, Schedule.constant),
    "linear": (2, Schedule.linear),
    "cosine": (2, Schedule.cosine),
    "window": (2, Schedule.between),
}


def _parse(parse: Callable[[str], Any], text: str, accept: Callable[[Any], bool], expected: str) -> Any:
    try:
        value = parse(text)
    except ValueError:
        value = None
    if value is None or not accept(value):
        raise ArgumentTypeError(f"expected {expected}, found {text!r}")
    return value


def natural(text: str) -> int:
    """0, 1, 2, …"""
    return _parse(int, text, lambda value: 0 <= value < 2**63, "a whole number from 0 up")


def positive(text: str) -> int:
    """1, 2, 3, …"""
    return _parse(int, text, lambda value: text.isdecimal() and 1 <= value < 2**31, "a whole number from 1 up")


def number(text: str) -> float:
    """A finite number."""
    return _parse(float, text, math.isfinite, "a number")


def not_negative(text: str) -> float:
    """A finite number from 0 up."""
    return _parse(number, text, lambda value: value >= 0, "a number from 0 up")


def name_and_value(text: str) -> tuple[str, Any]:
    """`NAME=VALUE`, the value as YAML reads it: a number, true, null, or a text."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ArgumentTypeError(f"expected NAME=VALUE, found {text!r}")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError:
        raise ArgumentTypeError(f"expected NAME=VALUE, the value as in YAML, found {text!r}") from None


def name_and_word(text: str) -> tuple[str, str]:
    """`NAME=WORD`."""
    name, _, word = text.partition("=")
    if not (name and word.strip()):
        raise ArgumentTypeError(f"expected NAME=WORD, found {text!r}")
    return name, word


def schedule(text: str) -> Schedule:
    """`linear:0:1`, `cosine:0:1`, `window:800:200`, `constant:0.5` or `table:1000=0,500=1`."""
    kind, _, rest = text.partition(":")
    try:
        if kind == "table":
            points = [point.partition("=") for point in rest.split(",")]
            return Schedule([(number(t), number(factor)) for t, _, factor in points])
        if kind in _SCHEDULES:
            count, make = _SCHEDULES[kind]
            values = [number(part) for part in rest.split(":")]
            if len(values) == count:
                return make(*values)
    except DSASError as error:
        raise ArgumentTypeError(str(error)) from None
    raise ArgumentTypeError(
        f"expected constant:F, linear:FIRST:LAST, cosine:FIRST:LAST, window:START:STOP or table:T=F,…; found {text!r}"
    )


def edges(text: str) -> tuple[float, ...]:
    """`500`, `300,700`, or `none`."""
    return () if text == "none" else tuple(number(part) for part in text.split(","))


def concept_alone(text: str) -> str:
    """`FOLDER`, of commands that choose strengths by themselves."""
    folder, _ = concept_and_strength(text)
    if folder != text:
        raise ArgumentTypeError(f"found {text!r}: strengths are not given here; did you mean {folder}?")
    return folder


def concept_and_strength(text: str) -> tuple[str, float | Auto]:
    """`FOLDER`, which means a strength of 1, or `FOLDER=STRENGTH`; a folder may have a `=` in its name.

    Example:
        >>> concept_and_strength("builtin:dog-grey=-0.5")
        ('builtin:dog-grey', -0.5)
    """
    folder, equals, strength = text.rpartition("=")
    if Path(text).is_dir():
        return text, 1.0
    if not equals:
        meant = re.fullmatch(rf"(.+?):({AUTO}(?::.*)?|[-+]?[\d.]+(?:e[-+]?\d+)?)", text)
        if meant:
            raise ArgumentTypeError(f"found {text!r}: did you mean {meant[1]}={meant[2]}?")
        return text, 1.0
    kind, colon, target = strength.partition(":")
    if kind != AUTO:
        return folder, number(strength)
    try:
        return folder, Auto(number(target)) if colon else Auto()
    except DSASError as error:
        raise ArgumentTypeError(str(error)) from None
