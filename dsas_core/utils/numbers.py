"""Numbers that users give: within the bounds of their kind, or one line that says which are expected.

The bounds stand here once, for options of commands and arguments of functions alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

from ..errors import DSASError, quote


@dataclass(frozen=True)
class Bounds:
    """The numbers that one kind takes.

    Args:
        low: the lowest.
        high: the highest; far beyond what is of use, but short of what overflows, or never ends.
        whole: whether only whole numbers are taken.

    Example:
        >>> print(Bounds(1, 1000, whole=True))
        a whole number from 1 to 1000
    """

    low: float
    high: float
    whole: bool = False

    def __str__(self) -> str:
        low, high = (str(end) if self.whole else f"{end:g}" for end in (self.low, self.high))
        return f"a {'whole ' * self.whole}number from {low} to {high}"


#: kind of number -> its bounds
KINDS: Mapping[str, Bounds] = {
    # a strength of 1 is the full effect; far beyond, squares of activations no longer fit in float32
    "strength": Bounds(-1e6, 1e6),
    "factor": Bounds(-1e6, 1e6),
    "cap": Bounds(0, 1e6),
    "guidance": Bounds(-1000, 1000),
    "timestep": Bounds(0, 1000),
    "share": Bounds(0, 1),
    "drift": Bounds(0, 1e6),
    "temperature": Bounds(0, 1000),
    "steps": Bounds(1, 1000, whole=True),
    "size": Bounds(8, 8192, whole=True),
    "seed": Bounds(0, 2**63 - 1, whole=True),
    "batch": Bounds(1, 65536, whole=True),
    "count": Bounds(1, 1_000_000, whole=True),
    "frames": Bounds(2, 1000, whole=True),
    "seeds": Bounds(1, 10_000, whole=True),
    "rounds": Bounds(1, 1000, whole=True),
    "dimensions": Bounds(0, 1_000_000, whole=True),
    "tokens": Bounds(1, 1_000_000, whole=True),
    "port": Bounds(1, 65535, whole=True),
}


def python_number(value: Any) -> int | float | None:
    """A number as Python's own, be it of numpy, torch, `fractions` or `decimal`; None for anything else.

    Truth values are none, and what no float can hold is none.

    Example:
        >>> from fractions import Fraction
        >>> python_number(Fraction(1, 2)), python_number(Fraction(10**400)), python_number(True)
        (0.5, None, None)
    """
    try:
        if getattr(value, "ndim", None) == 0:  # a number of numpy, or an array or tensor that holds one
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, Real | Decimal):
            return None
        return int(value) if isinstance(value, Integral) else float(value)
    except (ArithmeticError, RuntimeError, TypeError, ValueError):  # too large, or a tensor without data
        return None


def accepts(kind: str, value: Any) -> bool:
    """Whether a value is a number within the bounds of a kind.

    Example:
        >>> accepts("strength", 1e39), accepts("steps", 2.0), accepts("steps", 2)
        (False, False, True)
    """
    found, bounds = python_number(value), KINDS[kind]
    if found is None or (bounds.whole and not isinstance(found, int)):
        return False
    return bounds.low <= found <= bounds.high  # NaN is not


def number(kind: str, value: Any, name: str | None = None) -> Any:
    """A number of a kind: an int where it takes whole numbers only, else a float.

    Args:
        kind: of `KINDS`.
        value: as the user gave it.
        name: what messages call it; by default the kind.

    Raises:
        DSASError: no number, one out of bounds, NaN, or a fraction where whole numbers are taken.

    Example:
        >>> number("strength", 2)
        2.0
        >>> number("steps", 0)
        Traceback (most recent call last):
        dsas_core.errors.DSASError: steps: expected a whole number from 1 to 1000, found 0
    """
    if not accepts(kind, value):
        raise DSASError(f"{name or kind}: expected {KINDS[kind]}, found {quote(value)}")
    found = python_number(value)
    assert found is not None
    return found if KINDS[kind].whole else float(found)


def read_number(kind: str, text: str, name: str | None = None) -> Any:
    """The number of a kind that a text spells, in plain digits.

    Args:
        kind: of `KINDS`.
        text: as the user wrote it.
        name: what messages call it; by default the kind.

    Raises:
        DSASError: no number, or one out of bounds.

    Example:
        >>> read_number("steps", "12"), read_number("strength", "-0.5")
        (12, -0.5)
    """
    try:
        value: object = (int if KINDS[kind].whole else float)(text)
    except ValueError:
        value = None
    if not accepts(kind, value) or not text.isascii() or "_" in text:
        raise DSASError(f"{name or kind}: expected {KINDS[kind]}, found {quote(text)}")
    return value


def optional(kind: str, value: Any, name: str | None = None) -> Any:
    """As `number`, or None where None is given.

    Example:
        >>> optional("size", None)
    """
    return None if value is None else number(kind, value, name)
