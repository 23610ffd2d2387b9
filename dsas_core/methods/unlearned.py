"""Concepts of methods that need no prompts: that of STARS at some sites of a model, see `gated_maps.stars`."""

from __future__ import annotations

from collections.abc import Sequence

from ..concept.concept import Concept
from ..concept.intervention import Intervention
from ..errors import DSASError
from ..maps import StiefelMap
from ..model.fingerprints import describe_module, fingerprint
from ..model.sites import Roots, Site
from ..probes import AgreementProbe, ConstantProbe
from ..utils.versions import versions
from . import registry
from .gated_maps.stars import Agreement


def make_stars(
    roots: Roots, sites: Sequence[Site], *, c: float = 0.5, gate: str = "on", seed: int = 0, name: str = "stars"
) -> Concept:
    """The concept that pushes runs of one prompt apart, at some sites of a model.

    Args:
        roots: the model's root modules by name.
        sites: where.
        c: squared length of an offset as a share of the largest squared singular value of the runs; the length itself
            is proportional to the strength as well, so that 1 is the method.
        gate: "on", as published, or "stars" to steer as far as the runs are alike, also with "stars(least=0.5)".
        seed: of the random directions that the offsets begin with.
        name: of the concept.

    Raises:
        DSASError: a value that an option does not take, or another gate.
    """
    options = {"c": c, "seed": seed}
    registry.check_options("stars", options)
    chosen = registry.gate(gate)
    if gate != "on" and not isinstance(chosen, Agreement):
        raise DSASError(f"gate {gate!r}: expected on, stars or stars(least=…), as nothing is learned")
    probe = AgreementProbe(float(chosen.least)) if isinstance(chosen, Agreement) else ConstantProbe(1.0)
    transform = StiefelMap(float(c), seed)
    touched = {root: roots[root] for root in sorted({site.root for site in sites})}
    return Concept(
        name,
        tuple(Intervention(site, (probe,), (transform,), (1.0,)) for site in sites),
        method="stars",
        gate=gate,
        description="several runs of one prompt are pushed apart, so that they differ",
        base={root: fingerprint(module) for root, module in touched.items()},
        learned_on={root: describe_module(module) for root, module in touched.items()},
        provenance={"recipe": {"method": "stars", "gate": gate, "options": options}, "versions": versions("torch")},
    )
