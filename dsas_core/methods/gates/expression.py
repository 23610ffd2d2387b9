"""Gates as they are written: "gaps(soft=true)", "product(dsas, any(cosine, gaps))".

gate := name | name "(" argument { "," argument } ")"        argument := gate | setting "=" number, true, false
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

from ...errors import DSASError
from .combine import KINDS, Combined

_TOKEN = re.compile(r"\s*([\w.+-]+|[(),=])")


def parse_gate(text: str, named: Callable[[str], Any]) -> Any:
    """The gate that a text describes.

    Args:
        text: of the form above.
        named: finds the gate of a name, or raises a DSASError.

    Raises:
        DSASError: the text is not of the form above, or a gate does not take what it is given.

    Example:
        >>> from dsas_core import methods
        >>> parsed("gaps(soft=true)", methods.gate)
        GAPS(threshold=0.1, soft=True)
    """
    tokens, end = [], 0
    while found := _TOKEN.match(text, end):
        tokens.append(found[1])
        end = found.end()
    if text[end:].strip():
        raise _malformed(text, text[end:].strip()[0])
    gate, rest = _gate(text, tokens, named)
    if rest:
        raise _malformed(text, rest[0])
    return gate


def _gate(text: str, tokens: list[str], named: Callable[[str], Any]) -> tuple[Any, list[str]]:
    """The gate that tokens begin with, and the tokens behind it."""
    if not tokens or not re.match(r"\w", tokens[0]):
        raise _malformed(text, tokens[0] if tokens else "the end")
    name, rest = tokens[0], tokens[1:]
    if rest[:1] != ["("]:
        return named(name), rest
    parts: list[Any] = []
    settings: dict[str, Any] = {}
    separator, rest = rest[0], rest[1:]
    while separator != ")":
        if rest[1:2] == ["="] and len(rest) > 2:
            settings[rest[0]] = _value(text, rest[2])
            rest = rest[3:]
        else:
            part, rest = _gate(text, rest, named)
            parts.append(part)
        if rest[:1] not in ([","], [")"]):
            raise _malformed(text, rest[0] if rest else "the end")
        separator, rest = rest[0], rest[1:]
    if name in KINDS and not settings:
        return Combined(name, tuple(parts)), rest
    gate = named(name) if name not in KINDS else None
    if parts or gate is None:
        what = "takes gates only" if gate is None else f"is no combination of gates ({', '.join(KINDS)})"
        raise DSASError(f"gate {text!r}: {name} {what}")
    return _set(text, name, gate, settings), rest


def _set(text: str, name: str, gate: Any, settings: dict[str, Any]) -> Any:
    """The gate with other settings than its defaults."""
    known = {setting.name: setting.default for setting in fields(gate) if setting.init} if is_dataclass(gate) else {}
    for key, value in settings.items():
        if key not in known:
            there = f"there is {', '.join(known)}" if known else "it has none"
            raise DSASError(f"gate {text!r}: {name} has no setting {key!r}; {there}")
        wanted = float if known[key] is None else type(known[key])
        if type(value) is not wanted and (wanted, type(value)) != (float, int):
            raise DSASError(f"gate {text!r}: {key} of {name} takes {wanted.__name__}, found {value!r}")
    return replace(gate, **settings) if settings else gate


def _value(text: str, token: str) -> bool | int | float:
    if token in ("true", "false"):
        return token == "true"
    for kind in (int, float):
        try:
            return kind(token)
        except ValueError:
            continue
    raise DSASError(f"gate {text!r}: expected a number, true or false, found {token!r}")


def _malformed(text: str, found: str) -> DSASError:
    return DSASError(f"gate {text!r}: expected name or name(argument, …), stopped at {found!r}")
