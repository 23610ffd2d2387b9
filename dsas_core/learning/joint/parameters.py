"""The parameters of a joint training: the maps, and perhaps the gates, of all sites and timestep bins."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from ...concept.intervention import Intervention
from ...errors import DSASError
from ...methods.training.parts import Scale, TrainedMap, TrainedProbe
from ...model.sites import Site
from .visitor import SteeredSite

Changed = TypeVar("Changed")


class JointParameters(nn.ModuleList):
    """Maps and gates as parameters; timestep bins that share a map or a gate share its parameters.

    Args:
        items: the interventions where training begins.
        scales: of each site, the scales of its map and of its gate.
        gates: whether gates are trained together with their maps; maps are trained always on otherwise.

    Raises:
        UnsupportedError: maps or gates of kinds that cannot be trained.
    """

    def __init__(
        self, items: Sequence[Intervention], scales: Mapping[Site, tuple[Scale, Scale]], *, gates: bool
    ) -> None:
        self.items, self.gates = items, gates
        self.maps = [by_bin(item.maps, partial(TrainedMap, scale=scales[item.site][0])) for item in items]
        self.probes = [
            by_bin(item.probes if gates else (), partial(TrainedProbe, scale=scales[item.site][1])) for item in items
        ]
        parts: list[nn.Module] = [part for parts in self.maps for part in parts]
        parts += [part for parts in self.probes for part in parts]
        super().__init__(dict.fromkeys(parts))

    def steered(self) -> dict[Site, SteeredSite]:
        """Maps and gates as they are now."""
        steered = {}
        for item, maps, probes in zip(self.items, self.maps, self.probes, strict=True):
            gates = [part() for part in probes] or [None] * len(item.maps)
            steered[item.site] = SteeredSite([part() for part in maps], gates, item.weights)
        return steered

    def interventions(self) -> list[Intervention]:
        """What has been trained, on the CPU and without gradients; bins that shared a part share it still."""
        trained = []
        with torch.no_grad():
            for item, maps, probes in zip(self.items, self.maps, self.probes, strict=True):
                made = {part: part().map_tensors(torch.Tensor.cpu) for part in dict.fromkeys([*maps, *probes])}
                gates = tuple(made[part] for part in probes) or item.probes
                trained.append(replace(item, maps=tuple(made[part] for part in maps), probes=gates))
        return trained

    def shrink(self, optimiser: torch.optim.Optimizer, rate: float, l1: float, group: float) -> None:
        """A proximal step of the sparse group lasso on every map."""
        for part in dict.fromkeys(part for parts in self.maps for part in parts):
            part.shrink(optimiser, rate, l1, group)

    @property
    def dimensions(self) -> int:
        """How many numbers the mean of the loss is over."""
        return sum(parts[0].offset.numel() for parts in self.maps)

    def moved_dimensions(self) -> dict[str, int]:
        """How many dimensions are moved at each site."""
        return {
            str(item.site): max(part.moved_dimensions() for part in parts)
            for item, parts in zip(self.items, self.maps, strict=True)
        }

    def check_bins(self, bins: Collection[int], edges: Sequence[float]) -> None:
        """Raise a DSASError where a timestep bin with a map of its own is none of those that are trained.

        Args:
            bins: those that are trained.
            edges: ascending timesteps that separate bins.
        """
        for item, maps in zip(self.items, self.maps, strict=True):
            missing = [i for i, part in enumerate(maps) if all(maps[j] is not part for j in bins)]
            if missing:
                ends = (0.0, *edges, 1000.0)
                raise DSASError(
                    f"no moment of training is at timesteps {ends[missing[0]]:g} to {ends[missing[0] + 1]:g}, a bin of "
                    f"{item.site} with a map of its own: train at more moments (training moments), or have fewer bins "
                    "(edges)"
                )


def by_bin(parts: Sequence[Any], change: Callable[[Any], Changed]) -> list[Changed]:
    """What is made of the part of each timestep bin, once of one that several bins share.

    Example:
        >>> shared = object()
        >>> first, second = by_bin([shared, shared], lambda part: object())
        >>> first is second
        True
    """
    made = {id(part): change(part) for part in parts}
    return [made[id(part)] for part in parts]
