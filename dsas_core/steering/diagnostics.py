"""Diagnostics of a steering for the user: concepts in conflict, and sites that a call did not reach."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..concept.data import ConceptData
from ..errors import quote
from ..maps import AffineMap, Map, TurnMap
from ..model.compilation import is_compiled
from ..model.sites import Roots, Site

#: two concepts are opposed where the cosine between their changes is below minus this
CONFLICT_COSINE = 0.5


# ---- numbers that do not fit ----------------------------------------------------------------------------------------


def find_overflows(concepts: Iterable[ConceptData], roots: Roots) -> list[str]:
    """Warnings of concepts that move activations, at strength 1, further than the model's precision can hold.

    Example:
        >>> from dsas_core import Concept, Intervention
        >>> from dsas_core.probes import ConstantProbe
        >>> item = Intervention(Site("model"), (ConstantProbe(),), (AffineMap(torch.tensor([1e9])),), (1.0,))
        >>> find_overflows([Concept("far", (item,))], {"model": nn.Linear(1, 1).half()})[0]  # doctest: +ELLIPSIS
        "concept 'far' moves activations by up to 1e+09 at model, and float16, which model is in, ends at 65504: ..."
    """
    lines = []
    for concept in concepts:
        for item in concept.interventions:
            root = roots.get(item.site.root)
            parameter = None if root is None else next(root.parameters(), None)
            if parameter is None or parameter.dtype != torch.float16:
                continue
            largest = max((float(t.abs().max()) for part in item.maps for t in part.tensors()), default=0.0)
            limit = torch.finfo(parameter.dtype).max
            if concept.unit * largest > limit:
                lines.append(
                    f"concept {quote(concept.name)} moves activations by up to {concept.unit * largest:.3g} at "
                    f"{item.site}, and float16, which {item.site.root} is in, ends at {limit:.5g}: load the model in "
                    "bfloat16 or float32, or use smaller strengths"
                )
                break
    return lines


# ---- concepts in conflict -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Conflict:
    """Two concepts at a site that both write.

    Args:
        first: name of the one.
        second: name of the other.
        site: the site.
        cosine: between their maps' shifts at strength 1, means over timestep bins. For a map that scales too, the shift
            is its change of an activation of 0.
        opposed: whether, with their current strengths, the cosine between their changes is below -0.5: opposite shifts
            and strengths of one sign, or similar shifts and strengths of opposite signs. With strengths for each
            prompt, whether that is so for any prompt.
    """

    first: str
    second: str
    site: Site
    cosine: float
    opposed: bool


def find_conflicts(concepts: Sequence[ConceptData], strengths: Mapping[str, torch.Tensor]) -> list[Conflict]:
    """Every two of several concepts at every site that they share; maps without a shift are left out.

    Args:
        concepts: the concepts.
        strengths: concept name -> its current strengths, float [1] or [prompts].

    Returns:
        The conflicts of one pair of concepts after those of another.

    Example:
        >>> from dsas_core import Intervention
        >>> from dsas_core.probes import ConstantProbe
        >>> def concept(name, shift):
        ...     item = Intervention(Site("unet"), (ConstantProbe(),), (AffineMap(torch.tensor([shift])),), (1.0,))
        ...     return ConceptData(name, (item,))
        >>> strengths = {"a": torch.ones(1), "b": torch.ones(1)}
        >>> [(it.cosine, it.opposed) for it in find_conflicts([concept("a", 1.0), concept("b", -2.0)], strengths)]
        [(-1.0, True)]
    """
    shifts = {concept.name: _shifts(concept) for concept in concepts}
    cosines = _cosines(shifts)
    conflicts = []
    for first, second in itertools.combinations(shifts, 2):
        signs = set(_signs(strengths[first], strengths[second]).tolist())
        for site in shifts[first]:
            cosine = cosines.get((first, second, site))
            if cosine is not None:
                opposed = any(sign * cosine < -CONFLICT_COSINE for sign in signs)
                conflicts.append(Conflict(first, second, site, cosine, opposed))
    return conflicts


def _cosines(shifts: Mapping[str, Mapping[Site, torch.Tensor]]) -> dict[tuple[str, str, Site], float]:
    """The cosine between the shifts of every two concepts at every site where both have one, as wide."""
    placed: dict[tuple[Site, int], dict[str, torch.Tensor]] = {}
    for name, by_site in shifts.items():
        for site, shift in by_site.items():
            placed.setdefault((site, len(shift)), {})[name] = shift
    cosines = {}
    for (site, _), by_name in placed.items():
        rows = torch.nn.functional.normalize(torch.stack(list(by_name.values())), dim=1)
        table = (rows @ rows.T).clamp(-1, 1).tolist()
        for (i, first), (j, second) in itertools.combinations(enumerate(by_name), 2):
            cosines[first, second, site] = table[i][j]
    return cosines


def describe_conflicts(conflicts: Sequence[Conflict]) -> list[str]:
    """One line for each two concepts that are opposed at any site.

    Args:
        conflicts: as `find_conflicts` returns them.
    """
    lines = []
    for (first, second), group in itertools.groupby(conflicts, lambda conflict: (conflict.first, conflict.second)):
        shared = list(group)
        opposed = [conflict for conflict in shared if conflict.opposed]
        if opposed:
            worst = max(opposed, key=lambda conflict: abs(conflict.cosine))
            lines.append(
                f"{first!r} and {second!r} work against one another, with these strengths, at {len(opposed)} of "
                f"{len(shared)} shared sites: their shifts have a cosine of {worst.cosine:.2f} at {worst.site}"
            )
    return lines


def _signs(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """1 where two strengths have one sign, -1 where they have opposite signs, 0 where one is 0; [1 or prompts]."""
    prompts = min(len(first), len(second)) if min(len(first), len(second)) > 1 else None
    return torch.sign(first[:prompts]) * torch.sign(second[:prompts])


def _shifts(concept: ConceptData) -> Mapping[Site, torch.Tensor]:
    """Site -> mean shift [width] of its maps, over timestep bins and interventions."""
    shifts: dict[Site, list[torch.Tensor]] = {}
    for item in concept.interventions:
        for transform in item.maps if any(item.weights) else ():
            shift = _shift(transform)
            if shift is not None:
                shifts.setdefault(item.site, []).append(shift)
    return {site: torch.stack(parts).mean(0) for site, parts in shifts.items()}


def _shift(transform: Map) -> torch.Tensor | None:
    """The shift of a map at strength 1, or of the map inside it; None where it has none."""
    if isinstance(transform, AffineMap | TurnMap):
        return transform.shift
    inner = getattr(transform, "inner", None)
    return _shift(inner) if isinstance(inner, Map) else None


# ---- sites that a call did not reach --------------------------------------------------------------------------------


class UnreachedSites:
    """The sites that the user has been warned of already.

    Example:
        >>> unreached = UnreachedSites()
        >>> len(unreached.new_among([Site("unet.mid")])), len(unreached.new_among([Site("unet.mid")]))
        (1, 0)
    """

    def __init__(self) -> None:
        self._reported: set[Site] = set()

    def new_among(self, sites: Iterable[Site]) -> list[Site]:
        """Those of some sites that were not reported before; from now on they are."""
        new = [site for site in sites if site not in self._reported]
        self._reported.update(new)
        return new

    def reset(self) -> None:
        """Report all sites again."""
        self._reported.clear()


def warn_unreached(sites: Iterable[Site], why: str) -> None:
    """Warn of sites that a call did not reach.

    Args:
        sites: the sites.
        why: the cause and the way out.
    """
    message = f"attached sites were not reached, so nothing was steered there: {list_sites(sites)} ({why})"
    warnings.warn(message, stacklevel=3)


def warn_wrapped(sites: Iterable[Site]) -> None:
    """Warn of sites that other modules have come around, or to, since steering began."""
    warnings.warn(
        f"other modules have come to {list_sites(sites)} since steering began, such as LoRA's, which go unseen: "
        "detach, and steer anew",
        stacklevel=3,
    )


def explain_unreached(root: nn.Module) -> str:
    """What may have kept a call of a root from reaching its sites, and the way out."""
    if is_compiled(root) or "_compiled_call" in vars(root):  # the latter is set by `generate` of transformers
        return "torch reuses a graph without the hook: call torch.compiler.reset(), and the model again"
    return "its hook was removed, or the model skips that block"


def list_sites(sites: Iterable[Site]) -> str:
    """Sites for a message, separated by commas."""
    return ", ".join(map(str, sites))
