"""What the studio and the talk have in common."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError
from dsas_core.model.sites import Roots


def by_name(concepts: Sequence[Concept], roots: Roots) -> dict[str, Concept]:
    """The concepts that everybody has, by name.

    Raises:
        DSASError: one that does not fit the model of these roots, or two of one name.
    """
    named: dict[str, Concept] = {}
    for concept in concepts:
        if concept.name in named:
            raise DSASError(f"two concepts are named {concept.name!r}: load one of them")
        concept.check(roots)
        named[concept.name] = concept
    return named


def gate_of(request: Any) -> str | None:
    """The gate that an order or a question asks for, as `steer` takes it."""
    return None if request.gate == "dsas" else request.gate


def keep_latest(results: OrderedDict[Any, Any], key: Any, result: Any, most: int) -> None:
    """Keep a result by what was asked for; the oldest go."""
    results[key] = result
    while len(results) > most:
        results.popitem(last=False)


def opposed(steering: Any) -> tuple[tuple[str, str], ...]:
    """The pairs of concepts that undo one another, by name."""
    return tuple(sorted({(pair.first, pair.second) for pair in steering.conflicts() if pair.opposed}))
