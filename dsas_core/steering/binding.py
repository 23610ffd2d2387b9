"""Concepts bound to a steering: their interventions, and a live copy of the parameters of the current timestep bin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple, cast

import torch

from ..concept.data import ConceptData
from ..concept.intervention import Intervention, bin_of, check_widths, middles_of
from ..errors import ArtifactError, quote
from ..maps import AffineMap, Map, RunningMap
from ..maps.envelope import EllipticEnvelope
from ..model.row_groups import RowGroups, among, couples_rows
from ..model.sites import Site
from ..probes import ConstantProbe, LinearProbe, Probe, RunningProbe
from ..probes.hyperplane import Hyperplane, hyperplane
from ..utils.tensorclass import same_structure


class BoundIntervention(NamedTuple):
    """One intervention in the current timestep bin.

    Args:
        concept: name of its concept.
        number: its number within the concept.
        probe: of the current bin.
        map: of the current bin.
        weight: of the current bin, float [].
        probe_site: where the probe reads.
        map_site: where the map writes.
        reads_elsewhere: whether these are two sites.
        reads_other_root: whether they are in two roots; the probe then has one h for each prompt.
        plane: the hyperplane that its strength can be solved with; None where the strength has to be given.
        envelope: the ellipse that activations are kept within; None for no bound.
        coupled: whether the probe, and whether the map, goes by the other rows of a group, see `model.row_groups`.
    """

    concept: str
    number: int
    probe: Probe
    map: Map
    weight: torch.Tensor
    probe_site: Site
    map_site: Site
    reads_elsewhere: bool
    reads_other_root: bool
    plane: Hyperplane | None
    envelope: EllipticEnvelope | None
    coupled: tuple[bool, bool] = (False, False)


def _bind(
    concept: str,
    number: int,
    item: Intervention,
    probe: Probe,
    transform: Map,
    weight: torch.Tensor,
    envelope: EllipticEnvelope | None,
) -> BoundIntervention:
    probe_site = item.probe_site or item.site
    solvable = transform.linear_in_strength and probe_site == item.site and not item.read_only
    return BoundIntervention(
        concept=concept,
        number=number,
        probe=probe,
        map=transform,
        weight=weight,
        probe_site=probe_site,
        map_site=item.site,
        reads_elsewhere=probe_site != item.site,
        reads_other_root=probe_site.root != item.site.root,
        plane=hyperplane(probe) if solvable else None,
        envelope=envelope,
        coupled=(couples_rows(probe), couples_rows(transform)),
    )


class BoundParameters:
    """The interventions of a concept with all their tensors views of one: `live`, the parameters of one bin.

    If the model is spread over several devices, a site on another one has a copy there.
    """

    def __init__(self, concept: str, interventions: Sequence[Intervention], live: torch.Tensor) -> None:
        self.live, self._device = live, live.device
        self._concept, self._interventions = concept, interventions
        self._copies: dict[torch.device, BoundParameters] = {}
        self.entries: list[BoundIntervention] = []
        start = 0

        def view(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal start
            start += tensor.numel()
            return live[start - tensor.numel() : start].view(tensor.shape)

        parts = [
            (item.probes[0].map_tensors(view), item.maps[0].map_tensors(view), view(torch.empty(())))
            for item in interventions
        ]
        # after all others, so that these keep their addresses: alignment decides the last bit of a product
        envelopes = [item.clouds[0].map_tensors(view) if item.clouds else None for item in interventions]
        for number, (item, (probe, transform, weight)) in enumerate(zip(interventions, parts, strict=True)):
            self.entries.append(_bind(concept, number, item, probe, transform, weight, envelopes[number]))

    def on(self, device: torch.device) -> list[BoundIntervention]:
        """The interventions by number, on the device of an activation."""
        if device == self._device:
            return self.entries
        if device not in self._copies:
            with torch.inference_mode(False):
                self._copies[device] = BoundParameters(self._concept, self._interventions, self.live.to(device))
        return self._copies[device].entries

    def write(self, parameters: torch.Tensor) -> None:
        """Make the parameters of another bin the live ones, in place."""
        for bound in (self, *self._copies.values()):
            bound.live.copy_(parameters)


class BoundConcept:
    """One concept in a steering: the parameters of all bins, and a live copy of those of the current bin.

    The copy is on the device that the root is called on, and made when a call first needs it.

    Args:
        concept: the concept.
        gate: None for its own, "on" for h = 1 (and weights 1), "off" for h = 0.
        watch: include interventions that only read.
        within: include the ellipses that activations are kept within.
        interpolate: interpolate the parameters linearly between the middles of the bins.

    Raises:
        ArtifactError: shapes that do not agree, or timestep bins with probes or maps that are not of one kind.
    """

    def __init__(
        self, concept: ConceptData, gate: str | None, watch: bool, within: bool = False, interpolate: bool = False
    ) -> None:
        self.name, self.unit, self.edges = concept.name, concept.unit, concept.edges
        self._middles = middles_of(concept.edges) if interpolate and concept.edges else None
        items = [item for item in concept.interventions if watch or not item.read_only]
        self._interventions = [_with_gate(item if within else replace(item, clouds=()), gate) for item in items]
        #: channels of the activation at each site, where a tensor tells
        self.widths = check_widths(self._interventions)
        for item in self._interventions:
            if not all(same_structure(parts) for parts in (item.probes, item.maps, item.clouds) if parts):
                raise ArtifactError(
                    f"concept {quote(self.name)}: the timestep bins of {item.site} differ in more than the values of "
                    "their tensors, and one kind of probe and map has to serve them all: learn it again, or give each "
                    "bin the same kind"
                )
        #: the interventions by number, with the parameters of the first bin, for what does not go by their values
        self.entries = [
            _bind(
                self.name,
                i,
                item,
                item.probes[0],
                item.maps[0],
                torch.tensor(item.weights[0]),
                (item.clouds or [None])[0],
            )
            for i, item in enumerate(self._interventions)
        ]
        #: whether the concept may be left out of calls that it has strength 0 in
        self.can_rest = not any(
            entry.reads_elsewhere or isinstance(entry.probe, RunningProbe) or isinstance(entry.map, RunningMap)
            for entry in self.entries
        )
        self._bins, self._device = torch.empty(0), cast("torch.device | None", None)  # before the first call

    @cached_property
    def stackable(self) -> dict[int, Intervention]:
        """By number, the interventions that `stack.Stack` takes."""
        found = {i: item for i, item in enumerate(self._interventions) if self._middles is None and is_stackable(item)}
        maps = [tensor.flatten() for item in found.values() for part in item.maps for tensor in part.tensors()]
        return found if not maps or bool(torch.cat(maps).isfinite().all()) else {}

    def _move_to(self, device: torch.device) -> None:
        with torch.inference_mode(False):
            if not len(self._bins):
                bins = [_flatten_bin(self._interventions, i) for i in range(len(self.edges) + 1)]
                self._bins = torch.stack(bins)  # [bins, parameters]
            self._device, self._bins = device, self._bins.to(device)
            self.current = BoundParameters(self.name, self._interventions, self._bins[0].clone())

    def select_bin(self, timestep: torch.Tensor | None, device: torch.device, *, anew: bool = False) -> None:
        """Make the parameters of a timestep's bin the live ones.

        Args:
            timestep: float [], 0 to 1000; None for models without a timestep.
            device: the device that the root is called on.
            anew: as new tensors, because autograd may have saved those before.
        """
        if device != self._device:
            self._move_to(device)
        if not self.edges:
            return
        parameters = self._parameters_at(timestep, device)
        if anew:
            with torch.inference_mode(False):
                live = torch.empty_like(parameters)
            live.copy_(parameters)
            self.current = BoundParameters(self.name, self._interventions, live)
        else:
            self.current.write(parameters)

    def _parameters_at(self, timestep: torch.Tensor | None, device: torch.device) -> torch.Tensor:
        """The parameters of a timestep: those of its bin, or interpolated between those of two."""
        if self._middles is None or timestep is None:
            return select_bins(self._bins, timestep, self.edges)
        middles = self._middles.to(device)
        right = torch.searchsorted(middles, timestep.to(device).float().reshape(1)).clamp(1, len(middles) - 1)
        low, high = middles[right - 1], middles[right]
        progress = ((timestep.to(device) - low) / (high - low)).clamp(0, 1)
        return torch.lerp(self._bins.index_select(0, right - 1)[0], self._bins.index_select(0, right)[0], progress)


def select_bins(bins: torch.Tensor, timestep: torch.Tensor | None, edges: Sequence[float]) -> torch.Tensor:
    """The row of a timestep's bin, [...] of [bins, ...]."""
    return bins.index_select(0, bin_of(timestep, edges).to(bins.device)[None])[0]


def is_stackable(item: Intervention) -> bool:
    """Whether an intervention is a linear or constant gate of an affine map, at one site, without an ellipse."""
    return (
        all(type(probe) in (LinearProbe, ConstantProbe) for probe in item.probes)
        and all(type(transform) is AffineMap for transform in item.maps)
        and item.probe_site in (None, item.site)
        and not item.clouds
    )


def coupled_roots(concepts: Sequence[BoundConcept]) -> dict[str, set[str]]:
    """By root, the names of the concepts with probes or maps that go by the other rows of a group."""
    coupled: dict[str, set[str]] = {}
    for concept in concepts:
        for entry in concept.entries:
            for site in (entry.map_site, entry.probe_site) if any(entry.coupled) else ():
                coupled.setdefault(site.root, set()).add(concept.name)
    return coupled


def tell_groups(
    entries: Sequence[BoundIntervention], groups: RowGroups | None, x: torch.Tensor, mask: torch.Tensor | None
) -> Sequence[BoundIntervention]:
    """Interventions whose probes and maps know which rows of an activation belong together.

    Args:
        entries: the interventions of a concept, by number.
        groups: of the call; None where nothing couples its rows.
        x: the activation [batch, positions, width].
        mask: float [batch, positions], 1 for positions that count; None for all.
    """
    if groups is None or not any(any(entry.coupled) for entry in entries):
        return entries
    placed, told = groups.at(x.device, mask), []
    for entry in entries:
        of_probe, of_map = entry.coupled
        probe = among(entry.probe, placed) if of_probe else entry.probe
        told.append(entry._replace(probe=probe, map=among(entry.map, placed) if of_map else entry.map))
    return told


def _with_gate(intervention: Intervention, gate: str | None) -> Intervention:
    """An intervention with a constant gate, "on" or "off", in place of its own; None changes nothing."""
    if gate is None:
        return intervention
    probes = (ConstantProbe(float(gate == "on")),) * len(intervention.probes)
    return replace(intervention, probes=probes, weights=(1.0,) * len(probes), probe_site=None)


def _flatten_bin(interventions: Sequence[Intervention], bin_: int) -> torch.Tensor:
    """All parameters of one bin in one vector, in the order in which `BoundParameters` reads them."""
    tensors = [torch.empty(0)]
    for item in interventions:
        tensors += [*item.probes[bin_].tensors(), *item.maps[bin_].tensors(), torch.tensor(item.weights[bin_])]
    tensors += [tensor for item in interventions if item.clouds for tensor in item.clouds[bin_].tensors()]
    return torch.cat([tensor.flatten().float() for tensor in tensors])
