"""Published methods by name: which map or gate, its formula, its source, how it is fitted.

A method is one file here and one line in `_METHODS`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from ..errors import DSASError
from . import (
    aura,
    austeer,
    caa,
    constant,
    cosine,
    dsas,
    gaps,
    gaussian_act,
    iti,
    iti_c,
    linear_act,
    mean_act,
    mlp,
    quantile,
    sadi,
)
from ._expression import parsed
from ._gate import Gate
from ._map import Option, with_defaults
from .combine import KINDS

_METHODS: dict[str, tuple[str, Any]] = {
    "caa": ("map", caa.CAA()),
    "iti": ("map", iti.ITI()),
    "iti-c": ("map", iti_c.ITIc()),
    "mean-act": ("map", mean_act.MeanAcT()),
    "gaussian-act": ("map", gaussian_act.GaussianAcT()),
    "linear-act": ("map", linear_act.LinearAcT()),
    "aura": ("map", aura.AurA()),
    "sadi": ("map", sadi.SADI()),
    "austeer": ("map", austeer.AUSteer()),
    "dsas": ("gate", dsas.DSAS()),
    "on": ("gate", constant.Constant(1.0)),
    "off": ("gate", constant.Constant(0.0)),
    "gaps": ("gate", gaps.GAPS()),
    "cosine": ("gate", cosine.Cosine()),
    "mlp": ("gate", mlp.MLP()),
    "quantile": ("gate", quantile.Quantile()),
}


@dataclass(frozen=True)
class Described:
    """A method's name, its kind ("map", "gate" or "both"), one line about it, and its options: default, values."""

    name: str
    kind: str
    line: str
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def available() -> list[Described]:
    """Every method."""
    return [Described(name, kind, method.line, _options(method)) for name, (kind, method) in _METHODS.items()]


def _options(method: object) -> dict[str, dict[str, Any]]:
    if isinstance(method, Gate):  # a gate's settings are the fields of its dataclass
        settings: list[Any] = [one for one in fields(method) if one.init] if is_dataclass(method) else []
        return {one.name: {"default": one.default, "takes": type(one.default).__name__} for one in settings}
    known: Mapping[str, Option] = getattr(method, "options", {})
    return {name: {"default": option.default, "takes": option.takes} for name, option in known.items()}


def check_options(name: str, given: object) -> None:
    """Raise a DSASError unless the map method of that name takes these options."""
    if not isinstance(given, Mapping):
        raise DSASError(f"options of {name}: expected names with values, found {given!r}")
    with_defaults(get(name, "map"), given)


def get(name: str, kind: str | None = None) -> Any:
    """The method of that name; of gates also with settings, "quantile(q=0.95)", and combined, "product(dsas, gaps)".

    Raises:
        DSASError: there is none, or it is not of the wanted kind; the message lists what exists.
    """
    if "(" in name and kind != "map":
        return parsed(name, gate)
    names = [described.name for described in available() if kind in (None, described.kind, "both")]
    if name not in names:
        close = difflib.get_close_matches(name, names, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        combined = f", and {', '.join(KINDS)} of gates" if kind == "gate" else ""
        raise DSASError(f"no {kind or 'method'} named {name!r}; there is {', '.join(names)}{combined}{hint}")
    return _METHODS[name][1]


def gate(name: str) -> Gate:
    """The gate of that name, see `get`."""
    found: Gate = get(name, "gate")
    return found
