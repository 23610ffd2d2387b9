"""What a steering holds of a concept: its interventions by site, and a live copy of the timestep bin's parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from ..concept.data import ConceptData
from ..concept.intervention import Intervention, bin_of, middles_of
from ..maps import Map
from ..maps.envelope import EllipticEnvelope
from ..model.sites import Site
from ..probes import ConstantProbe, Probe
from ..probes.hyperplane import Hyperplane, hyperplane


class BoundIntervention(NamedTuple):
    """One intervention in the current timestep bin.

    Args:
        concept: its concept's name.
        number: tells it from the others of its concept.
        probe, map, weight: of the current bin.
        probe_site: where the probe reads.
        map_site: where the map writes.
        reads_elsewhere: whether these are two sites.
        reads_other_root: whether they are in two roots; then there is one h for each prompt.
        plane: what its strength can be solved for by; None where it has to be given.
        cloud: where it must stay; None where it may go anywhere.
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
    cloud: EllipticEnvelope | None


class BoundParameters:
    """Interventions of a concept, their tensors views of one: `live`, the parameters of one bin."""

    def __init__(self, concept: str, interventions: Sequence[Intervention], live: torch.Tensor) -> None:
        self.live = live
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
        # behind all others, which lie where they would without: what is read where decides the last bit of a product
        clouds = [item.clouds[0].map_tensors(view) if item.clouds else None for item in interventions]
        for number, item in enumerate(interventions):
            probe, transform, weight = parts[number]
            probe_site = item.probe_site or item.site
            solvable = transform.linear_in_strength and probe_site == item.site and not item.read_only
            self.entries.append(
                BoundIntervention(
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
                    cloud=clouds[number],
                )
            )


class BoundConcept:
    """One concept as a steering holds it: parameters of all bins, and a live copy of those of the current bin.

    The copy lies on the device that the root is called on. A model may be spread over several: a site on another one
    gets a copy there.

    Args:
        concept: what is to steer.
        gate: None for its own, "on" for h = 1 (weights 1), "off" for h = 0.
        watch: hold interventions that only read as well.
        within: hold the clouds that steering is to stay within.
        interpolate: go from one bin's parameters to the next on a straight line between the bins' middles.
    """

    def __init__(
        self, concept: ConceptData, gate: str | None, watch: bool, within: bool = False, interpolate: bool = False
    ) -> None:
        self.name, self.unit, self.edges = concept.name, concept.unit, concept.edges
        self._middles = middles_of(concept.edges) if interpolate and concept.edges else None
        chosen = [item for item in concept.interventions if watch or not item.read_only]
        self._interventions = [_gated(item if within else replace(item, clouds=()), gate) for item in chosen]
        bins = [_flattened(self._interventions, i) for i in range(len(concept.edges) + 1)]
        self._bins = torch.stack(bins)  # [bins, parameters]
        self._move_to(self._bins.device)

    def _move_to(self, device: torch.device) -> None:
        with torch.inference_mode(False):
            self._device, self._bins = device, self._bins.to(device)
            self._main = BoundParameters(self.name, self._interventions, self._bins[0].clone())
            self._copies: dict[torch.device, BoundParameters] = {}

    @property
    def entries(self) -> list[BoundIntervention]:
        """Every intervention by its number, on the device of the root."""
        return self._main.entries

    def on(self, device: torch.device) -> list[BoundIntervention]:
        """Every intervention by its number, for activations that are on a device."""
        if device == self._device:
            return self._main.entries
        if device not in self._copies:
            with torch.inference_mode(False):
                self._copies[device] = BoundParameters(self.name, self._interventions, self._main.live.to(device))
        return self._copies[device].entries

    def select_bin(self, timestep: torch.Tensor | None, device: torch.device) -> None:
        """Bring in the parameters of the timestep's bin, on the device that the root is called on."""
        if device != self._device:
            self._move_to(device)
        if self.edges:
            parameters = self._parameters_at(timestep, device)
            for bound in (self._main, *self._copies.values()):
                bound.live.copy_(parameters)

    def _parameters_at(self, timestep: torch.Tensor | None, device: torch.device) -> torch.Tensor:
        """The parameters of a timestep: those of its bin, or on the straight line between those of two."""
        if self._middles is None or timestep is None:
            bin_ = bin_of(timestep, self.edges).to(device)
            return self._bins.index_select(0, bin_[None])[0]
        middles = self._middles.to(device)
        right = torch.searchsorted(middles, timestep.to(device).float().reshape(1)).clamp(1, len(middles) - 1)
        low, high = middles[right - 1], middles[right]
        progress = ((timestep.to(device) - low) / (high - low)).clamp(0, 1)
        return torch.lerp(self._bins.index_select(0, right - 1)[0], self._bins.index_select(0, right)[0], progress)


def _gated(intervention: Intervention, gate: str | None) -> Intervention:
    if gate is None:
        return intervention
    probe = ConstantProbe(1.0 if gate == "on" else 0.0)
    bins = len(intervention.probes)
    return replace(intervention, probes=(probe,) * bins, weights=(1.0,) * bins, probe_site=None)


def _flattened(interventions: Sequence[Intervention], bin_: int) -> torch.Tensor:
    """Every parameter of one bin in a row, in the order in which `_Bound` takes them."""
    tensors = [torch.empty(0)]
    for item in interventions:
        tensors += [*item.probes[bin_].tensors(), *item.maps[bin_].tensors(), torch.tensor(item.weights[bin_])]
    tensors += [tensor for item in interventions if item.clouds for tensor in item.clouds[bin_].tensors()]
    return torch.cat([tensor.flatten().float() for tensor in tensors])
