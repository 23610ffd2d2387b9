"""Gates as text: "gaps(soft=true)", "product(dsas, any(cosine, gaps))".

gate := name | name "(" argument { "," argument } ")"        argument := gate | setting "=" number, true, false
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...errors import DSASError
from ..base.gate import gate_settings
from .combine import KINDS, Combined

_TOKEN = re.compile(r"[\w.+-]+|\S")
#: behind the last token
_END = ""


def parse_gate(text: str, gate_named: Callable[[str], Any]) -> Any:
    """The gate that a text describes.

    Args:
        text: of the form above.
        gate_named: returns the gate of a name, or raises a DSASError.

    Raises:
        DSASError: the text is not of the form above, or a gate does not take its arguments.

    Example:
        >>> from dsas_core import methods
        >>> parse_gate("gaps(soft=true)", methods.gate)
        GAPS(threshold=0.1, soft=True)
    """
    tokens = [*_TOKEN.findall(text), _END]
    gate = _take_gate(text, tokens, gate_named)
    if tokens != [_END]:
        raise _malformed(text, tokens[0])
    return gate


def _take_gate(text: str, tokens: list[str], gate_named: Callable[[str], Any]) -> Any:
    """The gate that tokens begin with; its tokens are taken off."""
    if not re.match(r"\w", tokens[0]):
        raise _malformed(text, tokens[0])
    name = tokens.pop(0)
    if tokens[0] != "(":
        return gate_named(name)
    parts: list[Any] = []
    settings: dict[str, Any] = {}
    while tokens.pop(0) != ")":
        if tokens[1:2] == ["="] and tokens[2] != _END:
            settings[tokens[0]] = _value(text, tokens[2])
            del tokens[:3]
        else:
            parts.append(_take_gate(text, tokens, gate_named))
        if tokens[0] not in (",", ")"):
            raise _malformed(text, tokens[0])
    if name in KINDS and not settings:
        return Combined(name, tuple(parts))
    gate = gate_named(name) if name not in KINDS else None
    if parts or gate is None:
        what = "takes gates only" if gate is None else f"is no combination of gates ({', '.join(KINDS)})"
        raise DSASError(f"gate {text!r}: {name} {what}")
    return _with_settings(text, name, gate, settings)


def _with_settings(text: str, name: str, gate: Any, settings: dict[str, Any]) -> Any:
    """The gate with other settings than its defaults."""
    known = gate_settings(gate)
    for key, value in settings.items():
        if key not in known:
            there = f"there is {', '.join(known)}" if known else "it has none"
            raise DSASError(f"gate {text!r}: {name} has no setting {key!r}; {there}")
        expected = float if known[key] is None else type(known[key])
        if type(value) is not expected and (expected, type(value)) != (float, int):
            raise DSASError(f"gate {text!r}: {key} of {name} takes {expected.__name__}, found {value!r}")
    return replace(gate, **settings) if settings else gate


def _value(text: str, token: str) -> bool | int | float | str:
    if token in ("true", "false"):
        return token == "true"
    for kind in (int, float):
        try:
            return kind(token)
        except ValueError:
            continue
    if re.fullmatch("[A-Za-z]+", token):
        return token
    raise DSASError(f"gate {text!r}: expected a number, a word, true or false, found {token!r}")


def _malformed(text: str, token: str) -> DSASError:
    return DSASError(f"gate {text!r}: expected name or name(argument, …), stopped at {token or 'the end'!r}")
