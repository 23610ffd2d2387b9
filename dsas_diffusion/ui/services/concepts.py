"""What the services for pictures and for chats have in common."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from dsas_core.concept.builtin import shipped
from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError
from dsas_core.model.sites import Roots

#: the first sliders: what the first example of a tab is about
FIRST = ("builtin:banana-blur", "builtin:rudeness")


def load_shipped(model: str) -> list[Concept]:
    """The concepts that ship for a built-in model, in the order of their sliders.

    Example:
        >>> [concept.name for concept in load_shipped("builtin:chat")]
        ['rudeness', 'address-to-trade']
    """
    found = sorted(shipped(model), key=lambda concept: concept.name not in FIRST)
    return [Concept.from_pretrained(concept.name) for concept in found]


def index_concepts(concepts: Sequence[Concept], roots: Roots) -> dict[str, Concept]:
    """The concepts that every visitor has, by name.

    Args:
        concepts: in the order of their sliders.
        roots: of the model that they are for.

    Raises:
        DSASError: a concept does not fit the model, or two have one name.
    """
    by_name: dict[str, Concept] = {}
    for concept in concepts:
        if concept.name in by_name:
            raise DSASError(f"two concepts are named {concept.name!r}: load one of them")
        concept.check(roots)
        by_name[concept.name] = concept
    return by_name


def gate_of(request: Any) -> str | None:
    """The gate of an `Order` or a `Question`, as `steer` takes it."""
    return None if request.gate == "dsas" else request.gate


def keep_latest(results: OrderedDict[Any, Any], key: Any, result: Any, limit: int) -> None:
    """Keep a result as the latest one, under its key; the oldest go where there are more than `limit`."""
    results[key] = result
    results.move_to_end(key)
    while len(results) > limit:
        results.popitem(last=False)


def conflicting_pairs(steering: Any) -> tuple[tuple[str, str], ...]:
    """The names of concepts that undo one another, in pairs."""
    return tuple(sorted({(pair.first, pair.second) for pair in steering.conflicts() if pair.opposed}))
