"""Published methods by name: which map or gate, its formula, its source, how it is fitted.

A method is one file here and one line in `_METHODS`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, NamedTuple

from ..errors import DSASError
from .base.gate import Gate
from .base.map_method import MapMethod, Option, with_defaults
from .gated_maps import cast, casteer, fairsteer, mera
from .gates import constant, cosine, dsas, gaps, mlp, quantile
from .gates.combine import KINDS
from .gates.expression import parse_gate
from .maps import aura, austeer, caa, gaussian_act, iti, iti_c, linear_act, mean_act, sadi


class GatedMapMethod(NamedTuple):
    """A published method with a map and a gate of its own; each also goes with others.

    Args:
        map: its map method.
        gate: its gate.
    """

    map: MapMethod
    gate: Gate


_METHODS: dict[str, MapMethod | Gate | GatedMapMethod] = {
    "caa": caa.CAA(),
    "iti": iti.ITI(),
    "iti-c": iti_c.ITIc(),
    "mean-act": mean_act.MeanAcT(),
    "gaussian-act": gaussian_act.GaussianAcT(),
    "linear-act": linear_act.LinearAcT(),
    "aura": aura.AurA(),
    "sadi": sadi.SADI(),
    "austeer": austeer.AUSteer(),
    "dsas": dsas.DSAS(),
    "on": constant.Constant(1.0),
    "off": constant.Constant(0.0),
    "gaps": gaps.GAPS(),
    "cosine": cosine.Cosine(),
    "mlp": mlp.MLP(),
    "quantile": quantile.Quantile(),
    "cast": GatedMapMethod(cast.CAST(), cast.Condition()),
    "mera": GatedMapMethod(mera.MERA(), mera.CalibratedProbe()),
    "fairsteer": GatedMapMethod(fairsteer.FairSteer(), fairsteer.Hard()),
    "casteer": GatedMapMethod(casteer.CASteer(), casteer.Projection()),
}


@dataclass(frozen=True)
class MethodInfo:
    """What there is to tell of a method; `dsas methods --json` prints its fields.

    Args:
        name: of the method.
        kind: "map", "gate" or "both".
        line: one line about it.
        options: those of the map, each with its default and what it takes.
        settings: those of the gate, likewise.
    """

    name: str
    kind: str
    line: str
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def available() -> list[MethodInfo]:
    """Every method.

    Example:
        >>> [method.name for method in available() if method.kind == "both"]
        ['cast', 'mera', 'fairsteer', 'casteer']
    """
    described = []
    for name, method in _METHODS.items():
        map_, gate_ = _part(method, "map"), _part(method, "gate")
        line = map_.traits.summary
        described.append(MethodInfo(name, _kind(method), line, _options(map_), _settings(gate_)))
    return described


def _kind(method: object) -> str:
    return "both" if isinstance(method, GatedMapMethod) else "map" if isinstance(method, MapMethod) else "gate"


def _part(method: Any, kind: str | None) -> Any:
    """What of a method is meant by a kind: its map, its gate, or all of it."""
    return getattr(method, kind) if isinstance(method, GatedMapMethod) and kind in ("map", "gate") else method


def _options(method: object) -> dict[str, dict[str, Any]]:
    options: Mapping[str, Option] = method.options if isinstance(method, MapMethod) else {}
    return {name: {"default": option.default, "takes": option.takes} for name, option in options.items()}


def _settings(method: object) -> dict[str, dict[str, Any]]:
    """The fields of a gate's dataclass."""
    settings: list[Any] = [setting for setting in fields(method) if setting.init] if is_dataclass(method) else []
    return {
        setting.name: {
            "default": setting.default,
            "takes": "float, or nothing" if setting.default is None else type(setting.default).__name__,
        }
        for setting in settings
    }


def check_options(name: str, given: object) -> None:
    """Raise a DSASError unless the map method of that name takes these options.

    Example:
        >>> check_options("caa", {"normalise": "unit"})
    """
    if not isinstance(given, Mapping):
        raise DSASError(f"options of {name}: expected names with values, found {given!r}")
    with_defaults(mapping(name), given)


def get(name: str, kind: str | None = None) -> Any:
    """The method of that name.

    Args:
        name: see `available`; of gates also with settings, "quantile(q=0.95)", and combined, "product(dsas, gaps)".
        kind: "map" or "gate", also for that part of a method that is both; None for what it is, perhaps a `Both`.

    Raises:
        DSASError: there is none, or it is not of the wanted kind; the message lists what exists.

    Example:
        >>> get("caa").traits.summary
        'add the mean difference of target and source activations (arXiv 2312.06681)'
        >>> get("quantile(q=0.95)").q
        0.95
    """
    if "(" in name and kind != "map":
        return parse_gate(name, gate)
    names = [described.name for described in available() if kind is None or described.kind in (kind, "both")]
    if name not in names:
        close = difflib.get_close_matches(name, names, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        combined = f", and {', '.join(KINDS)} of gates" if kind == "gate" else ""
        raise DSASError(f"no {kind or 'method'} named {name!r}; there is {', '.join(names)}{combined}{hint}")
    return _part(_METHODS[name], kind)


def gate(name: str) -> Gate:
    """The gate of that name, see `get`.

    Example:
        >>> gate("dsas").traits.fitted_on
        'pooled'
    """
    named: Gate = get(name, "gate")
    return named


def mapping(name: str) -> MapMethod:
    """The map method of that name, see `get`.

    Example:
        >>> mapping("austeer").traits.paired
        True
    """
    named: MapMethod = get(name, "map")
    return named


def default_gate(name: str, options: Mapping[str, Any] | None = None) -> str:
    """The name of a map method's gate where none is chosen: its own, or "dsas".

    Args:
        name: of the map method.
        options: of the map method.

    Example:
        >>> own_gate("caa"), own_gate("mera", {"alpha": 0.25})
        ('dsas', 'mera(alpha=0.25)')
    """
    return mapping(name).default_gate(**with_defaults(mapping(name), options or {}))
