"""What a way of steering needs of a concept, and why one cannot have it."""

from __future__ import annotations

from collections.abc import Iterator

from ..concept.concept import Concept
from ..concept.intervention import Intervention
from ..maps.envelope import RANK
from ..probes.hyperplane import hyperplane


def obstacle_to_auto(concept: Concept, gate: str | None = None) -> str | None:
    """Why a concept cannot choose its strength by itself.

    Args:
        concept: what is to steer.
        gate: "on" or "off" where that stands in for the concept's own. What is off may have any strength.

    Returns:
        The reason with its site; None where the concept can.

    Example:
        >>> import torch
        >>> from dsas_core import Site, maps, probes
        >>> moved = maps.AffineMap(torch.ones(2))
        >>> always = Intervention(Site("unet.mid"), (probes.ConstantProbe(),), (moved,), (1.0,))
        >>> obstacle_to_auto(Concept("it", (always,)))
        'at unet.mid, ConstantProbe has no hyperplane to move to; give it a number'
    """
    if gate == "on":
        return "the gate 'on' looks at nothing, so it has no hyperplane to move to; leave the concept its own"
    for item in _steering(concept) if gate is None else ():
        if item.probe_site not in (None, item.site):
            return f"{item.site} is gated by what {item.probe_site} shows, whose hyperplane is not in its own space"
        for probe, transform in zip(item.probes, item.maps, strict=True):
            if hyperplane(probe) is None:
                return f"at {item.site}, {type(probe).__name__} has no hyperplane to move to; give it a number"
            if not transform.linear_in_strength:
                return f"at {item.site}, {type(transform).__name__} is not linear in its strength; give it a number"
    return None


def obstacle_to_within(concept: Concept, gate: str | None = None) -> str | None:
    """Why a concept cannot be kept where its target activations are.

    Args:
        concept: what is to steer.
        gate: "on" or "off" where that stands in for the concept's own. What is off stays everywhere.

    Returns:
        The reason with its site and the way out; None where the concept can.

    Example:
        >>> import torch
        >>> from dsas_core import Site, maps, probes
        >>> turned = Intervention(Site("unet.mid"), (probes.ConstantProbe(),), (maps.TurnMap(torch.ones(2)),), (1.0,))
        >>> obstacle_to_within(Concept("it", (turned,)))
        'at unet.mid, TurnMap is not linear in its strength, so no root tells how far'
    """
    for item in _steering(concept) if gate != "off" else ():
        curved = next((transform for transform in item.maps if not transform.linear_in_strength), None)
        if curved is not None:
            return f"at {item.site}, {type(curved).__name__} is not linear in its strength, so no root tells how far"
        if not item.clouds:
            return (
                "no cloud of target activations was learned: learn it again with --cloud, in Python "
                f'recipe={{"cloud": {RANK}}}'
            )
    return None


def _steering(concept: Concept) -> Iterator[Intervention]:
    """The interventions that change something: those that only read, or have no weight, need nothing."""
    return (item for item in concept.interventions if not item.read_only and any(item.weights))
