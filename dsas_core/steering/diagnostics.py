"""What may be wrong with a steering, told to the user: concepts in conflict, and sites that a call did not reach."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..concept.data import ConceptData
from ..concept.intervention import Intervention
from ..maps import AffineMap, Map, TurnMap
from ..model.hooks import is_compiled
from ..model.sites import Site
from .strengths import Strengths

#: two concepts are opposed where the cosine between what they do is below minus this
CONFLICT_COSINE = 0.5


# ---- concepts in conflict -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Conflict:
    """Two concepts at a site that both write.

    Args:
        first: name of the one.
        second: name of the other.
        site: where.
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


def find_conflicts(concepts: Sequence[ConceptData], strengths: Strengths) -> list[Conflict]:
    """Every two of several concepts at every site that they share; maps without a shift are left out."""
    shifts = {concept.name: _shifts(concept) for concept in concepts}
    found = []
    for first, second in itertools.combinations(shifts, 2):
        signs = _signs(strengths.values_of(first), strengths.values_of(second))
        for site in shifts[first]:
            if site in shifts[second]:
                cosine = torch.cosine_similarity(shifts[first][site], shifts[second][site], dim=0)
                opposed = bool((signs * cosine < -CONFLICT_COSINE).any())
                found.append(Conflict(first, second, site, float(cosine), opposed))
    return found


def describe_conflicts(conflicts: Sequence[Conflict]) -> list[str]:
    """One line for each two concepts that are opposed anywhere."""
    pairs: dict[tuple[str, str], list[Conflict]] = {}
    for conflict in conflicts:
        pairs.setdefault((conflict.first, conflict.second), []).append(conflict)
    lines = []
    for (first, second), shared in pairs.items():
        opposed = [conflict for conflict in shared if conflict.opposed]
        if opposed:
            worst = max(opposed, key=lambda conflict: abs(conflict.cosine))
            lines.append(
                f"{first!r} and {second!r} work against one another, with these strengths, at {len(opposed)} of "
                f"{len(shared)} shared sites: their shifts have a cosine of {worst.cosine:.2f} at {worst.site}"
            )
    return lines


def _signs(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """1 where two strengths go the same way, -1 where they go opposite ways, 0 where one is off, [1 or prompts]."""
    prompts = min(len(first), len(second)) if min(len(first), len(second)) > 1 else None
    return torch.sign(first[:prompts]) * torch.sign(second[:prompts])


def _shifts(concept: ConceptData) -> Mapping[Site, torch.Tensor]:
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


# ---- sites that a call did not reach --------------------------------------------------------------------------------


class UnreachedSites:
    """Sites that the user has been warned of already."""

    def __init__(self) -> None:
        self._reported: set[Site] = set()

    def new_among(self, sites: Iterable[Site]) -> list[Site]:
        """Those of some sites that were not reported yet; from now on they are."""
        new = [site for site in sites if site not in self._reported]
        self._reported.update(new)
        return new

    def reset(self) -> None:
        """Report all again."""
        self._reported.clear()


def warn_unreached(sites: Iterable[Site], why: str) -> None:
    """Warn of sites that a call did not reach."""
    message = f"attached sites were not reached, so nothing was steered there: {list_sites(sites)} ({why})"
    warnings.warn(message, stacklevel=3)


def explain_unreached(root: nn.Module) -> str:
    """What may have kept a call of a root from reaching its sites, and the way out."""
    if is_compiled(root) or "_compiled_call" in vars(root):  # this by `generate` of transformers
        return "torch goes by what it compiled without its hook: call torch.compiler.reset(), and again"
    return "somebody removed its hook, or the model skips that block"


def list_sites(sites: Iterable[Site]) -> str:
    """Sites, for a message."""
    return ", ".join(map(str, sites))
