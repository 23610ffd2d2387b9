"""Concepts that work against one another: the angle between where their maps go, at the sites that they share."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from .concept import Concept, Intervention
from .maps import AffineMap, Map, TurnMap
from .sites import Site
from .strengths import Strengths

#: two concepts are opposed where the cosine between what they do is below minus this
OPPOSED = 0.5


@dataclass(frozen=True)
class Opposition:
    """Two concepts at a site that both write.

    Args:
        cosine: between their maps' shifts at strength 1, means over timestep bins. Of a map that scales too, the shift
            is what an activation of 0 would be moved by.
        opposed: whether, with the strengths that they have now, the cosine between what they do is below -0.5: opposite
            shifts and strengths of one sign, or alike shifts and strengths of opposite signs. With strengths per
            prompt, whether that is so for any prompt.
    """

    first: str
    second: str
    site: Site
    cosine: float
    opposed: bool


def oppositions(concepts: Sequence[Concept], strengths: Strengths) -> list[Opposition]:
    """Every two of several concepts at every site that they share; maps without a shift are left out."""
    shifts = {concept.name: _shifts(concept) for concept in concepts}
    found = []
    for first, second in itertools.combinations(shifts, 2):
        signs = _signs(strengths.values_of(first), strengths.values_of(second))
        for site in shifts[first]:
            if site in shifts[second]:
                cosine = torch.cosine_similarity(shifts[first][site], shifts[second][site], dim=0)
                opposed = bool((signs * cosine < -OPPOSED).any())
                found.append(Opposition(first, second, site, float(cosine), opposed))
    return found


def warnings_of(table: Sequence[Opposition]) -> list[str]:
    """One line for each two concepts that are opposed anywhere."""
    pairs: dict[tuple[str, str], list[Opposition]] = {}
    for line in table:
        pairs.setdefault((line.first, line.second), []).append(line)
    found = []
    for (first, second), lines in pairs.items():
        opposed = [line for line in lines if line.opposed]
        if opposed:
            worst = max(opposed, key=lambda line: abs(line.cosine))
            found.append(
                f"{first!r} and {second!r} work against one another, with these strengths, at {len(opposed)} of "
                f"{len(lines)} shared sites: their shifts have a cosine of {worst.cosine:.2f} at {worst.site}"
            )
    return found


def _signs(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """1 where two strengths go the same way, -1 where they go opposite ways, 0 where one is off, [1 or prompts]."""
    prompts = min(len(first), len(second)) if min(len(first), len(second)) > 1 else None
    return torch.sign(first[:prompts]) * torch.sign(second[:prompts])


def _shifts(concept: Concept) -> Mapping[Site, torch.Tensor]:
    """Site -> the mean over timestep bins, and over interventions, of what maps add, [width]."""
    found: dict[Site, list[torch.Tensor]] = {}
    for item in concept.interventions:
        found.setdefault(item.site, []).extend(_shifts_of(item))
    return {site: torch.stack(shifts).mean(0) for site, shifts in found.items() if shifts}


def _shifts_of(item: Intervention) -> list[torch.Tensor]:
    shifts = [_shift(transform) for transform in item.maps]
    return [shift for shift in shifts if shift is not None] if any(item.weights) else []


def _shift(transform: Map) -> torch.Tensor | None:
    """What a map adds at strength 1: its own shift, or that of the map inside it."""
    if isinstance(transform, AffineMap | TurnMap):
        return transform.shift
    inner = getattr(transform, "inner", None)
    return _shift(inner) if isinstance(inner, Map) else None
