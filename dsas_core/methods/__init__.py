"""Published methods by name: which map or gate, its formula, its source, how it is fitted.

A method is one file here and one line in `_METHODS`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ..errors import DSASError
from ..maps import Map
from ..probes import Probe
from . import caa, constant, dsas


class MapMethod(Protocol):
    """Fits HOW: `fit(source, target)` on float tensors [n, width] gives a map."""

    def fit(self, source: torch.Tensor, target: torch.Tensor) -> Map: ...


class GateMethod(Protocol):
    """Fits WHEN: `fit(source, control)` on float tensors [n, width] gives a probe."""

    def fit(self, source: torch.Tensor, control: torch.Tensor) -> Probe: ...


_METHODS: dict[str, tuple[str, Any]] = {
    "caa": ("map", caa.CAA()),
    "dsas": ("gate", dsas.DSAS()),
    "on": ("gate", constant.Constant(1.0)),
    "off": ("gate", constant.Constant(0.0)),
}


@dataclass(frozen=True)
class Described:
    """A method's name, its kind ("map", "gate" or "both") and one line about it."""

    name: str
    kind: str
    line: str


def available() -> list[Described]:
    """Every method."""
    return [Described(name, kind, method.line) for name, (kind, method) in _METHODS.items()]


def get(name: str, kind: str | None = None) -> Any:
    """The method of that name.

    Raises:
        DSASError: there is none, or it is not of the wanted kind; the message lists what exists.
    """
    names = [described.name for described in available() if kind in (None, described.kind, "both")]
    if name not in names:
        close = difflib.get_close_matches(name, names, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise DSASError(f"no {kind or 'method'} named {name!r}; there is {', '.join(names)}{hint}")
    return _METHODS[name][1]
