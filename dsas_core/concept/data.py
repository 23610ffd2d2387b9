"""A concept's data: what was learned, on what evidence, from what; apart from files, card and Hub.

Values are rounded to storage precision before they are first used, so what was saved and loaded again equals what was
learned.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch

from ..model.sites import Site
from .intervention import Intervention
from .samples import Samples


@dataclass(frozen=True, eq=False)
class ConceptData:
    """A learned direction of change and the knowledge of when to apply it.

    Args:
        name: a short slug; strengths are set by it.
        interventions: by site.
        edges: ascending timesteps that separate the bins; every intervention has one entry more than edges.
        unit: the map strength that a user's strength of 1 stands for.
        range: the useful ends of strength, low and high, in units; None where nobody has looked (`calibrate`).
        method: name of the map method in `dsas_core.methods`.
        gate: name of the gate in `dsas_core.methods`.
        description: what it does, in a sentence.
        base: root name -> fingerprint of the architecture of the module that it was learned on.
        learned_on: root name -> `fingerprints.portrait` of that module.
        samples: what it does, to be shown; None where nobody has looked (`illustrate`).
        evidence: measured while learning: per site, and of the choice of unit.
        provenance: prompts, seeds, versions, settings.

    Raises:
        TypeError: base, learned_on, evidence or provenance hold what JSON cannot.

    Example:
        >>> ConceptData("blur", (), unit=2.0, range=(-1.0, 2.0))
        ConceptData('blur', caa+dsas, 0 sites, unit 2, range -1 to 2)
    """

    name: str
    interventions: tuple[Intervention, ...]
    edges: tuple[float, ...] = ()
    unit: float = 1.0
    range: tuple[float, float] | None = None
    method: str = "caa"
    gate: str = "dsas"
    description: str = ""
    base: Mapping[str, str] = field(default_factory=dict)
    learned_on: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    samples: Samples | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "interventions", tuple(item.to_storage() for item in self.interventions))
        for name in ("base", "learned_on", "evidence", "provenance"):  # what JSON cannot hold must not get in
            object.__setattr__(self, name, json.loads(json.dumps(getattr(self, name))))

    def __hash__(self) -> int:
        return hash(self.name)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ConceptData):
            return NotImplemented
        (specs, tensors), (other_specs, other_tensors) = self.by_bins(), other.by_bins()
        same = self.settings() == other.settings() and specs == other_specs
        return same and all(torch.equal(tensors[key], other_tensors[key]) for key in tensors)

    def __repr__(self) -> str:
        ends = "" if self.range is None else f", range {self.range[0]:g} to {self.range[1]:g}"
        sites = f"{len(self.interventions)} sites"
        return f"{type(self).__name__}({self.name!r}, {self.method}+{self.gate}, {sites}, unit {self.unit:g}{ends})"

    @property
    def by_prompt(self) -> bool:
        """Whether a gate depends on where a prompt ends."""
        return any(item.by_prompt for item in self.interventions)

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where it writes, or only reads for a trace; one per intervention."""
        return tuple(intervention.site for intervention in self.interventions)

    @property
    def steered_sites(self) -> tuple[Site, ...]:
        """Those where it changes something."""
        return tuple(item.site for item in self.interventions if not item.read_only)

    @property
    def digest(self) -> str:
        """Sixteen hex digits of its interventions, edges and unit."""
        specs, tensors = self.by_bins()
        digest = hashlib.sha256(json.dumps([specs, self.edges, self.unit]).encode())
        for name in sorted(tensors):
            digest.update(tensors[name].numpy().tobytes())
        return digest.hexdigest()[:16]

    def with_unit(self, unit: float) -> Self:
        """The same concept with another unit of strength; the ends of its range stay where they are in the map's.

        Samples, which are by strength, are left out.
        """
        ends = None
        if self.range is not None and unit > 0:
            low, high = (end * self.unit / unit for end in self.range)
            ends = low, high
        return replace(self, unit=float(unit), range=ends, samples=None)

    def settings(self) -> dict[str, Any]:
        """All of it but the interventions, as plain data."""
        return {
            "name": self.name,
            "description": self.description,
            "method": self.method,
            "gate": self.gate,
            "unit": self.unit,
            **({} if self.range is None else {"range": list(self.range)}),
            "edges": list(self.edges),
            "base": self.base,
            **({"learned_on": self.learned_on} if self.learned_on else {}),
            **({} if self.samples is None else {"samples": self.samples.to_dict()}),
            "evidence": self.evidence,
            "provenance": self.provenance,
        }

    def by_bins(self) -> tuple[list[Any], dict[str, torch.Tensor]]:
        """Its interventions bin by bin, as plain data and tensors: what digests and comparisons are made from.

        This is format 1. However files are laid out, it stays: evaluations that are kept on disk are known by the
        digest.
        """
        tensors: dict[str, torch.Tensor] = {}
        specs = []
        for place, item in enumerate(self.interventions):
            key = f"{place}.{item.site}"  # several slices of one module are several sites
            bins = []
            for i, (probe, transform) in enumerate(zip(item.probes, item.maps, strict=True)):
                spec = {
                    "probe": probe.pack(tensors, f"{key}.{i}.probe"),
                    "map": transform.pack(tensors, f"{key}.{i}.map"),
                    "weight": item.weights[i],
                }
                if item.clouds:
                    spec["cloud"] = item.clouds[i].pack(tensors, f"{key}.{i}.cloud")
                bins.append(spec)
            elsewhere = {} if item.probe_site is None else {"reads": item.probe_site.to_dict()}
            specs.append({"site": item.site.to_dict(), **elsewhere, "bins": bins})
        return specs, tensors
