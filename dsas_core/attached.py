"""What a steering holds of a concept: its interventions by site, and a live copy of the timestep bin's parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from .capture import bin_of
from .concept import Concept, Intervention
from .maps import Map
from .maps.envelope import Cloud
from .probes import ConstantProbe, Probe
from .probes.hyperplane import Hyperplane, hyperplane
from .sites import Site


class Entry(NamedTuple):
    """One intervention in the current bin; `number` tells it from the others of its concept.

    `elsewhere` says that it does not read where it writes, `across` that it reads in another root: one h for each
    prompt, whatever becomes of it. `plane` is what its strength can be solved for by; None where it has to be given.
    `cloud` is where it must stay; None where it may go anywhere.
    """

    number: int
    probe: Probe
    map: Map
    weight: torch.Tensor
    reads: Site
    writes: Site
    elsewhere: bool
    across: bool
    plane: Hyperplane | None
    cloud: Cloud | None


class _Bound:
    """Interventions, their tensors views of one: `live`, those of one bin."""

    def __init__(self, interventions: Sequence[Intervention], live: torch.Tensor) -> None:
        self.live = live
        self.entries: list[Entry] = []
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
        for number, intervention in enumerate(interventions):
            probe, transform, weight = parts[number]
            writes = intervention.site
            reads = intervention.reads or writes
            solvable = transform.linear_in_strength and reads == writes and not intervention.watches
            plane = hyperplane(probe) if solvable else None
            where = reads, writes, reads != writes, reads.root != writes.root
            self.entries.append(Entry(number, probe, transform, weight, *where, plane, clouds[number]))


class Attached:
    """One concept as a visitor holds it: parameters of all bins, and a live copy of those of the current bin.

    The copy lies on the device that the root is called on. A model may be spread over several: a site that comes by
    elsewhere gets a copy there. Clouds are held only where steering is to stay within them.
    """

    def __init__(
        self, concept: Concept, gate: str | None, watch: bool, within: bool = False, interpolate: bool = False
    ) -> None:
        self.name, self.unit, self.edges = concept.name, concept.unit, concept.edges
        self._middles = _middles(concept.edges) if interpolate and concept.edges else None
        chosen = [intervention for intervention in concept.interventions if watch or not intervention.watches]
        self._interventions = [_gated(item if within else replace(item, clouds=()), gate) for item in chosen]
        bins = [_flattened(self._interventions, i) for i in range(len(concept.edges) + 1)]
        self._banks = torch.stack(bins)  # [bins, parameters]
        self._go_to(self._banks.device)

    def _go_to(self, device: torch.device) -> None:
        with torch.inference_mode(False):
            self._device, self._banks = device, self._banks.to(device)
            self._here = _Bound(self._interventions, self._banks[0].clone())
            self._elsewhere: dict[torch.device, _Bound] = {}

    @property
    def entries(self) -> list[Entry]:
        """Every intervention by its number, on the device of the root."""
        return self._here.entries

    def on(self, device: torch.device) -> list[Entry]:
        """Every intervention by its number, for activations that are on a device."""
        if device == self._device:
            return self._here.entries
        if device not in self._elsewhere:
            with torch.inference_mode(False):
                self._elsewhere[device] = _Bound(self._interventions, self._here.live.to(device))
        return self._elsewhere[device].entries

    def turn(self, timestep: torch.Tensor | None, device: torch.device) -> None:
        """Bring in the parameters of the timestep's bin, on the device that the root is called on."""
        if device != self._device:
            self._go_to(device)
        if self.edges:
            now = self._between(timestep, device)
            for bound in (self._here, *self._elsewhere.values()):
                bound.live.copy_(now)

    def _between(self, timestep: torch.Tensor | None, device: torch.device) -> torch.Tensor:
        """The parameters of a timestep: those of its bin, or on the straight line between those of two."""
        if self._middles is None or timestep is None:
            bin_ = bin_of(timestep, self.edges).to(device)
            return self._banks.index_select(0, bin_[None])[0]
        middles = self._middles.to(device)
        right = torch.searchsorted(middles, timestep.to(device).float().reshape(1)).clamp(1, len(middles) - 1)
        low, high = middles[right - 1], middles[right]
        share = ((timestep.to(device) - low) / (high - low)).clamp(0, 1)
        return torch.lerp(self._banks.index_select(0, right - 1)[0], self._banks.index_select(0, right)[0], share)


def _middles(edges: Sequence[float]) -> torch.Tensor:
    """The middle timestep of each bin."""
    ends = torch.tensor([0.0, *edges, 1000.0])
    return (ends[1:] + ends[:-1]) / 2


def _gated(intervention: Intervention, gate: str | None) -> Intervention:
    if gate is None:
        return intervention
    probe = ConstantProbe(1.0 if gate == "on" else 0.0)
    bins = len(intervention.probes)
    return replace(intervention, probes=(probe,) * bins, weights=(1.0,) * bins, reads=None)


def _flattened(interventions: Sequence[Intervention], bin_: int) -> torch.Tensor:
    """Every parameter of one bin in a row, in the order in which `_Bound` takes them."""
    tensors = [torch.empty(0)]
    for item in interventions:
        tensors += [*item.probes[bin_].tensors(), *item.maps[bin_].tensors(), torch.tensor(item.weights[bin_])]
    tensors += [tensor for item in interventions if item.clouds for tensor in item.clouds[bin_].tensors()]
    return torch.cat([tensor.flatten().float() for tensor in tensors])
