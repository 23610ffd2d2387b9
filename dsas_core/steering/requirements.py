"""Requirements of strength "auto" and of `within="target"`, and why a concept does not meet them."""

from __future__ import annotations

from collections.abc import Iterator

from ..concept.concept import Concept
from ..concept.intervention import Intervention
from ..maps.envelope import RANK
from ..probes.hyperplane import hyperplane


def obstacle_to_auto(concept: Concept, gate: str | None = None) -> str | None:
    """Why the strength of a concept cannot be "auto".

    Args:
        concept: the concept.
        gate: "on" or "off" in place of the concept's own gate; a concept that is off may have any strength.

    Returns:
        The reason with its site; None where it can.

    Example:
        >>> import torch
        >>> from dsas_core import Site, maps, probes
        >>> moved = maps.AffineMap(torch.ones(2))
        >>> always = Intervention(Site("unet.mid"), (probes.ConstantProbe(),), (moved,), (1.0,))
        >>> obstacle_to_auto(Concept("it", (always,)))
        'at unet.mid, ConstantProbe has no hyperplane to move to; give it a number'
    """
    if gate == "on":
        return "the gate 'on' reads nothing, so it has no hyperplane to move to; leave the concept its own"
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
    """Why the activations cannot be kept within those of a concept's targets.

    Args:
        concept: the concept.
        gate: "on" or "off" in place of the concept's own gate; a concept that is off changes nothing.

    Returns:
        The reason with its site and the way out; None where they can.

    Example:
        >>> import torch
        >>> from dsas_core import Site, maps, probes
        >>> turned = Intervention(Site("unet.mid"), (probes.ConstantProbe(),), (maps.TurnMap(torch.ones(2)),), (1.0,))
        >>> obstacle_to_within(Concept("it", (turned,)))
        'at unet.mid, TurnMap is not linear in its strength, which bounds need'
    """
    for item in _steering(concept) if gate != "off" else ():
        curved = next((transform for transform in item.maps if not transform.linear_in_strength), None)
        if curved is not None:
            return f"at {item.site}, {type(curved).__name__} is not linear in its strength, which bounds need"
        if not item.clouds:
            return (
                "no cloud of target activations was learned: learn it again with --cloud, in Python "
                f'recipe={{"cloud": {RANK}}}'
            )
    return None


def _steering(concept: Concept) -> Iterator[Intervention]:
    """The interventions that change activations: not those that only read, or have no weight."""
    return (item for item in concept.interventions if not item.read_only and any(item.weights))
