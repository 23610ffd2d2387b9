"""What the values of options are read as: numbers, schedules, names with values, concepts with strengths."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dsas_core.errors import DSASError
from dsas_core.steering.strengths import AUTO, Auto

from ..steering.schedule import Schedule


def _read(parse: Callable[[str], Any], text: str, fits: Callable[[Any], bool], expected: str) -> Any:
    try:
        value = parse(text)
    except ValueError:
        value = None
    if value is None or not fits(value):
        raise argparse.ArgumentTypeError(f"expected {expected}, found {text!r}")
    return value


def natural(text: str) -> int:
    """0, 1, 2, …"""
    return _read(int, text, lambda value: 0 <= value < 2**63, "a whole number from 0 up")


def positive(text: str) -> int:
    """1, 2, 3, …"""
    return _read(int, text, lambda value: text.isdecimal() and 1 <= value < 2**31, "a whole number from 1 up")


def number(text: str) -> float:
    """A finite number."""
    return _read(float, text, math.isfinite, "a number")


def not_negative(text: str) -> float:
    """A finite number from 0 up."""
    return _read(number, text, lambda value: value >= 0, "a number from 0 up")


def name_and_value(text: str) -> tuple[str, Any]:
    """`NAME=VALUE`, the value as YAML reads it: a number, true, null, or a text."""
    import yaml

    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, found {text!r}")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, the value as in YAML, found {text!r}") from None


def schedule(text: str) -> Schedule:
    """`linear:0:1`, `cosine:0:1`, `window:800:200`, `constant:0.5` or `table:1000=0,500=1`."""
    kind, _, rest = text.partition(":")
    makers: Mapping[str, tuple[int, Callable[..., Schedule]]] = {
        "constant": (1, Schedule.constant),
        "linear": (2, Schedule.linear),
        "cosine": (2, Schedule.cosine),
        "window": (2, Schedule.between),
    }
    try:
        if kind == "table":
            points = [point.partition("=") for point in rest.split(",")]
            return Schedule([(number(t), number(factor)) for t, _, factor in points])
        count, make = makers[kind]
        given = [number(part) for part in rest.split(":")]
        if len(given) == count:
            return make(*given)
    except KeyError:
        pass
    except DSASError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    raise argparse.ArgumentTypeError(
        f"expected constant:F, linear:FIRST:LAST, cosine:FIRST:LAST, window:START:STOP or table:T=F,…; found {text!r}"
    )


def edges(text: str) -> tuple[float, ...]:
    """`500`, `300,700`, or `none`."""
    return () if text == "none" else tuple(number(part) for part in text.split(","))


def name_and_word(text: str) -> tuple[str, str]:
    """`NAME=WORD`."""
    name, equals, word = text.partition("=")
    if not (equals and name and word.strip()):
        raise argparse.ArgumentTypeError(f"expected NAME=WORD, found {text!r}")
    return name, word


def concept_alone(text: str) -> str:
    """`FOLDER`, of commands that choose strengths by themselves."""
    folder, strength = concept_and_strength(text)
    if folder != text:
        raise argparse.ArgumentTypeError(f"found {text!r}: strengths are not given here; did you mean {folder}?")
    return folder


def concept_and_strength(text: str) -> tuple[str, float | Auto]:
    """`FOLDER`, which means a strength of 1, or `FOLDER=STRENGTH`; a folder may have a `=` in its name."""
    folder, equals, strength = text.rpartition("=")
    if Path(text).is_dir():
        return text, 1.0
    if not equals:
        meant = re.fullmatch(rf"(.+?):({AUTO}(?::.*)?|[-+]?[\d.]+(?:e[-+]?\d+)?)", text)
        if meant:
            raise argparse.ArgumentTypeError(f"found {text!r}: did you mean {meant[1]}={meant[2]}?")
        return text, 1.0
    kind, colon, target = strength.partition(":")
    if kind != AUTO:
        return folder, number(strength)
    try:
        return folder, Auto(number(target)) if colon else Auto()
    except DSASError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
