"""Published methods by name: which map or gate, its formula, its source, how it is fitted.

A method is one file here and one line in `_METHODS`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, NamedTuple

from ..errors import DSASError
from . import (
    aura,
    austeer,
    caa,
    cast,
    casteer,
    constant,
    cosine,
    dsas,
    fairsteer,
    gaps,
    gaussian_act,
    iti,
    iti_c,
    linear_act,
    mean_act,
    mera,
    mlp,
    quantile,
    sadi,
)
from ._expression import parsed
from ._gate import Gate
from ._map import MapMethod, Option, with_defaults
from .combine import KINDS


class Both(NamedTuple):
    """A published method with a map and a gate of its own; each also goes with others."""

    map: MapMethod
    gate: Gate

    @property
    def line(self) -> str:
        return self.map.line


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
    "cast": ("both", Both(cast.CAST(), cast.Condition())),
    "mera": ("both", Both(mera.MERA(), mera.Calibrated())),
    "fairsteer": ("both", Both(fairsteer.FairSteer(), fairsteer.Hard())),
    "casteer": ("both", Both(casteer.CASteer(), casteer.Projection())),
}


@dataclass(frozen=True)
class Described:
    """A method's name, its kind ("map", "gate" or "both") and one line about it.

    `options` are those of the map and `settings` those of the gate, each with its default and what it takes.
    """

    name: str
    kind: str
    line: str
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def available() -> list[Described]:
    """Every method."""
    return [
        Described(name, kind, method.line, _options(_part(method, "map")), _settings(_part(method, "gate")))
        for name, (kind, method) in _METHODS.items()
    ]


def _part(method: Any, kind: str | None) -> Any:
    """What of a method is meant by a kind: its map, its gate, or all of it."""
    return getattr(method, kind) if isinstance(method, Both) and kind in ("map", "gate") else method


def _options(method: object) -> dict[str, dict[str, Any]]:
    known: Mapping[str, Option] = method.options if isinstance(method, MapMethod) else {}
    return {name: {"default": option.default, "takes": option.takes} for name, option in known.items()}


def _settings(method: object) -> dict[str, dict[str, Any]]:
    """The fields of a gate's dataclass."""
    settings: list[Any] = [one for one in fields(method) if one.init] if is_dataclass(method) else []
    takes = {one.name: "float, or nothing" if one.default is None else type(one.default).__name__ for one in settings}
    return {one.name: {"default": one.default, "takes": takes[one.name]} for one in settings}


def check_options(name: str, given: object) -> None:
    """Raise a DSASError unless the map method of that name takes these options."""
    if not isinstance(given, Mapping):
        raise DSASError(f"options of {name}: expected names with values, found {given!r}")
    with_defaults(mapping(name), given)


def get(name: str, kind: str | None = None) -> Any:
    """The method of that name; of gates also with settings, "quantile(q=0.95)", and combined, "product(dsas, gaps)".

    Of a method that is both, `kind` "map" and "gate" give its parts, None a `Both`.

    Raises:
        DSASError: there is none, or it is not of the wanted kind; the message lists what exists.
    """
    if "(" in name and kind != "map":
        return parsed(name, gate)
    names = [described.name for described in available() if kind is None or described.kind in (kind, "both")]
    if name not in names:
        close = difflib.get_close_matches(name, names, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        combined = f", and {', '.join(KINDS)} of gates" if kind == "gate" else ""
        raise DSASError(f"no {kind or 'method'} named {name!r}; there is {', '.join(names)}{combined}{hint}")
    return _part(_METHODS[name][1], kind)


def gate(name: str) -> Gate:
    """The gate of that name, see `get`."""
    found: Gate = get(name, "gate")
    return found


def mapping(name: str) -> MapMethod:
    """The map method of that name, see `get`."""
    found: MapMethod = get(name, "map")
    return found


def own_gate(name: str, options: Mapping[str, Any] | None = None) -> str:
    """The name of the gate that a map method is worn with where none is chosen: its own, or "dsas"."""
    return mapping(name).own_gate(**with_defaults(mapping(name), options or {}))
