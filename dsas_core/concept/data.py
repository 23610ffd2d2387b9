"""A concept's data: interventions, settings, evidence and provenance, without files, card and Hub.

Values are rounded to storage precision before they are first used, so that a saved and loaded concept equals the
learned one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch

from ..errors import ArtifactError, DSASError, quote
from ..model.row_groups import couples_rows
from ..model.sites import Site
from .intervention import Intervention
from .samples import Samples


def check_below(timestep: float, edges: tuple[float, ...], name: str) -> None:
    """Check that a concept can steer in steps below a timestep alone.

    Raises:
        DSASError: a timestep that is not among the edges.
    """
    if timestep not in edges:
        listed = ", ".join(map("{:g}".format, edges)) or "none"
        raise DSASError(
            f"steer below timestep {quote(timestep)}: expected one that separates bins of concept {name!r} ({listed}); "
            "learn with such edges"
        )


@dataclass(frozen=True, eq=False)
class ConceptData:
    """A learned change of a model's behaviour and the knowledge of when to apply it, without files and the Hub.

    Args:
        name: a short name without slashes, which is also that of its folder; strengths are set by it.
        interventions: what is done at each site.
        edges: ascending timesteps that separate the bins; every intervention has one entry more than there are edges.
        unit: the map strength that the user's strength 1 stands for.
        range: lowest and highest useful strength, in units; None before `calibrate`.
        method: name of the map method in `dsas_core.methods`.
        gate: name of the gate in `dsas_core.methods`.
        description: what it does, in a sentence.
        base: root name -> architecture fingerprint of the module that it was learned on.
        learned_on: root name -> `fingerprints.describe_module` of that module.
        samples: images or texts that show what it does; None before `illustrate`.
        evidence: measurements of learning, by site and for the choice of unit and range.
        provenance: prompts, seeds, versions and settings of learning.

    Two concepts are equal that do the same, on the same evidence. What learning took (`evidence["cost"]`: seconds,
    tokens, memory) does not count, as it differs from run to run.

    Raises:
        TypeError: base, learned_on, evidence or provenance hold what JSON cannot; numbers that are not finite become
            None.
        ArtifactError: they contain themselves, or are nested too deeply.

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
        for name in ("base", "learned_on", "evidence", "provenance"):
            object.__setattr__(self, name, _as_plain_data(name, getattr(self, name)))

    def __hash__(self) -> int:
        return hash(self.name)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ConceptData):
            return NotImplemented
        (specs, tensors), (other_specs, other_tensors) = self.by_bins(), other.by_bins()
        same = self._compared() == other._compared() and specs == other_specs
        return same and all(torch.equal(tensors[key], other_tensors[key]) for key in tensors)

    def __repr__(self) -> str:
        ends = "" if self.range is None else f", range {self.range[0]:g} to {self.range[1]:g}"
        sites = f"{len(self.interventions)} sites"
        return f"{type(self).__name__}({self.name!r}, {self.method}+{self.gate}, {sites}, unit {self.unit:g}{ends})"

    @property
    def is_private(self) -> bool:
        """Whether its prompts are not to be shown: it keeps hashes only, or they are from a private prompt file."""
        prompts = self.provenance.get("prompts")
        return "prompt_hashes" in self.provenance or (isinstance(prompts, Mapping) and bool(prompts.get("private")))

    @property
    def by_prompt(self) -> bool:
        """Whether a gate depends on where the prompt ends."""
        return any(item.by_prompt for item in self.interventions)

    @property
    def couples_rows(self) -> bool:
        """Whether it goes by several runs of one prompt, as those of `stars` do."""
        return any(couples_rows(part) for item in self.interventions for part in (*item.probes, *item.maps))

    @property
    def sites(self) -> tuple[Site, ...]:
        """Sites where it writes, or only reads for a trace; one for each intervention."""
        return tuple(intervention.site for intervention in self.interventions)

    @property
    def steered_sites(self) -> tuple[Site, ...]:
        """Sites where it changes the activations."""
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
        """A copy with another unit of strength; its range stays the same in map strengths.

        The copy has no samples, as these belong to strengths in the old unit.

        Args:
            unit: the new unit.

        Example:
            >>> ConceptData("blur", (), range=(-1.0, 2.0)).with_unit(0.5).range
            (-2.0, 4.0)
        """
        ends = None
        if self.range is not None and unit > 0:
            low, high = (end * self.unit / unit for end in self.range)
            ends = low, high
        return replace(self, unit=float(unit), range=ends, samples=None)

    def steering_below(self, timestep: float | None) -> Self:
        """A copy that steers in steps below a timestep alone.

        Args:
            timestep: one of `edges`; None for all steps, as this one does.

        Raises:
            DSASError: a timestep that separates no bins.

        Example:
            >>> from dsas_core.maps import AffineMap
            >>> from dsas_core.probes import ConstantProbe
            >>> parts = (ConstantProbe(1.0),) * 2, (AffineMap(torch.ones(4)),) * 2
            >>> item = Intervention(Site("unet.mid"), *parts, weights=(1.0, 1.0))
            >>> late = ConceptData("blur", (item,), edges=(500.0,)).steering_below(500.0)
            >>> late.interventions[0].weights, late.steps_below
            ((1.0, 0.0), 500.0)
        """
        if timestep is None:
            return self
        check_below(timestep, self.edges, self.name)
        count = self.edges.index(timestep) + 1
        interventions = tuple(
            item if item.read_only else replace(item, weights=item.weights[:count] + (0.0,) * len(item.weights[count:]))
            for item in self.interventions
        )
        return replace(self, interventions=interventions)

    @property
    def steps_below(self) -> float | None:
        """The timestep below which it steers; None where it steers in all steps."""
        steered = [item.weights for item in self.interventions if not item.read_only]
        last = max((i for weights in steered for i, weight in enumerate(weights) if weight), default=len(self.edges))
        return self.edges[last] if last < len(self.edges) else None

    def settings(self) -> dict[str, Any]:
        """Everything but the interventions, as plain data."""
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

    def _compared(self) -> dict[str, Any]:
        """The settings that `==` compares."""
        evidence = {name: value for name, value in self.evidence.items() if name != "cost"}
        return {**self.settings(), "evidence": evidence}

    def by_bins(self) -> tuple[list[Any], dict[str, torch.Tensor]]:
        """Its interventions bin by bin, as plain data and tensors, for digests and comparisons.

        This is format 1, and stays so whatever format files have: evaluations on disk are identified by the digest.
        """
        tensors: dict[str, torch.Tensor] = {}
        specs = []
        for place, item in enumerate(self.interventions):
            key = f"{place}.{item.site}"  # slices of one module are different sites
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


def _as_plain_data(name: str, content: Any) -> Any:
    """A copy that has only what JSON can hold."""
    try:
        return json.loads(json.dumps(content), parse_constant=lambda _: None)
    except (RecursionError, ValueError) as error:
        raise ArtifactError(f"{name} of a concept cannot be written as JSON: {error}") from None
