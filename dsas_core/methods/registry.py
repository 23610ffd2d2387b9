"""Published methods by name: which map or gate, its formula, its source, how it is fitted.

To add a method, write one file and add it here:

1. Write `maps/NAME.py`, `gates/NAME.py` or `gated_maps/NAME.py`: a subclass of `MapMethod`, of `Gate`, or one of each.
2. Declare `traits = MapTraits(...)` or `GateTraits(...)`; only a new kind of trait is a new field in `base/traits.py`.
3. Write `_fit` on checked float64 rows; options of a map are its `options`, settings of a gate its dataclass fields.
4. Import the module below and give it one line in `_METHODS`: recipes, commands and the demo then have it.
5. Document it in its file (formula, paper, options, traps, `Example:`), name it in the tests, and list it in
   `benchmarks/grids/methods.yaml`, from which `make methods` writes `docs/methods.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..errors import DSASError, did_you_mean
from .base.gate import Gate, gate_settings
from .base.map_method import MapMethod, with_defaults
from .gated_maps import cast, casteer, e2e_dsas, fairsteer, mera, stars
from .gates import constant, cosine, dsas, gaps, mlp, quantile
from .gates.combine import KINDS
from .gates.expression import parse_gate
from .maps import aura, austeer, caa, gaussian_act, iti, iti_c, linear_act, lineas, mean_act, sadi


class GatedMapMethod(NamedTuple):
    """A published method with a map and a gate of its own; each can also be combined with others.

    Args:
        map: its map method.
        gate: its gate.

    Example:
        >>> get("cast").gate.traits.per_prompt
        True
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
    "lineas": lineas.LinEAS(),
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
    "fairsteer": GatedMapMethod(fairsteer.FairSteer(), fairsteer.HardClassifier()),
    "casteer": GatedMapMethod(casteer.CASteer(), casteer.PositiveCosine()),
    "e2e-dsas": GatedMapMethod(e2e_dsas.E2EMap(), e2e_dsas.E2EGate()),
    "stars": GatedMapMethod(stars.STARS(), stars.Agreement()),
}


@dataclass(frozen=True)
class MethodInfo:
    """The description of a method; `dsas methods --json` prints its fields.

    Args:
        name: of the method.
        kind: "map", "gate" or "both".
        line: one line about it.
        options: of the map, by name, each with its default and the values it takes.
        settings: of the gate, likewise.
        learned: whether `learn` takes it; False where nothing is learned, see `stars`.

    Example:
        >>> next(method for method in available() if method.name == "quantile").settings
        {'q': {'default': 0.9, 'takes': 'float'}}
    """

    name: str
    kind: str
    line: str
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    learned: bool = True


def available() -> list[MethodInfo]:
    """Descriptions of all methods.

    Example:
        >>> [method.name for method in available() if method.kind == "both"]
        ['cast', 'mera', 'fairsteer', 'casteer', 'e2e-dsas', 'stars']
    """
    parts = {name: (_part(method, "map"), _part(method, "gate")) for name, method in _METHODS.items()}
    return [
        MethodInfo(
            name,
            _kind(_METHODS[name]),
            map_.traits.summary,
            _options(map_),
            _settings(gate_),
            not map_.traits.couples_rows,
        )
        for name, (map_, gate_) in parts.items()
    ]


def _kind(method: object) -> str:
    return "both" if isinstance(method, GatedMapMethod) else "map" if isinstance(method, MapMethod) else "gate"


def _part(method: Any, kind: str | None) -> Any:
    """The part of a method that is of a kind: its map, its gate, or all of it."""
    return getattr(method, kind) if isinstance(method, GatedMapMethod) and kind in ("map", "gate") else method


def _options(method: object) -> dict[str, dict[str, Any]]:
    options = method.options if isinstance(method, MapMethod) else {}
    return {name: {"default": option.default, "takes": option.takes} for name, option in options.items()}


def _settings(method: object) -> dict[str, dict[str, Any]]:
    return {
        name: {"default": default, "takes": "float, or nothing" if default is None else type(default).__name__}
        for name, default in gate_settings(method).items()
    }


def check_options(name: str, given: object) -> None:
    """Check that the map method of that name takes these options.

    Args:
        name: of the map method.
        given: options by name.

    Raises:
        DSASError: no such map method, an unknown option, or a value that an option does not take.

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
        kind: "map" or "gate", also for that part of a method that is both; None for a method of any kind, which may be
            a `GatedMapMethod`.

    Raises:
        DSASError: there is none, or it is of another kind; the message lists what exists.

    Example:
        >>> get("caa").traits.summary
        'add the mean difference of target and source activations (arXiv 2312.06681)'
        >>> get("quantile(q=0.95)").q
        0.95
    """
    if "(" in name and kind != "map":
        return parse_gate(name, gate)
    names = [known for known, method in _METHODS.items() if kind is None or _kind(method) in (kind, "both")]
    if name not in names:
        combined = f", and {', '.join(KINDS)} of gates" if kind == "gate" else ""
        raise DSASError(
            f"no {kind or 'method'} named {name!r}; there is {', '.join(names)}{combined}{did_you_mean(name, names)}"
        )
    return _part(_METHODS[name], kind)


def gate(name: str) -> Gate:
    """The gate of that name, also with settings and combined, see `get`.

    Raises:
        DSASError: there is none, or a setting that it does not take.

    Example:
        >>> gate("dsas").traits.fitted_on
        'pooled'
    """
    return get(name, "gate")


def mapping(name: str) -> MapMethod:
    """The map method of that name, see `get`.

    Raises:
        DSASError: there is none.

    Example:
        >>> mapping("austeer").traits.paired
        True
    """
    return get(name, "map")


def default_gate(name: str, options: Mapping[str, Any] | None = None) -> str:
    """The name of a map method's gate where none is chosen: its own, or "dsas".

    Args:
        name: of the map method.
        options: of the map method.

    Raises:
        DSASError: no such map method, an unknown option, or a value that an option does not take.

    Example:
        >>> default_gate("caa"), default_gate("mera", {"alpha": 0.25})
        ('dsas', 'mera(alpha=0.25)')
    """
    return mapping(name).default_gate(**with_defaults(mapping(name), options or {}))
