"""What a concept does at one site: where its probe reads, where its map writes, and their weights by timestep bin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..errors import ArtifactError, UnsupportedError, quote
from ..maps import IdentityMap, Map
from ..maps.envelope import EllipticEnvelope
from ..model.sites import Site
from ..probes import Probe, RunningProbe
from ..utils.tensorclass import check_shapes


@dataclass(frozen=True, eq=False)
class Intervention:
    """One site of a concept: probe (when), map (how) and weight (how far the probe is trusted), by timestep bin.

    Args:
        site: where the map writes.
        probes: one for each timestep bin.
        maps: one for each timestep bin.
        weights: one for each timestep bin, 0 to 1; h is multiplied by it.
        probe_site: where the probe reads, if not at `site`: a site that the model reaches earlier, in the same root and
            with the same positions; if the probe has one h for all positions, also one in another root (a text
            encoder).
        clouds: ellipses around the target activations at `site`, one for each timestep bin, or none.

    Raises:
        UnsupportedError: a probe in another root that scores every position by itself.

    Example:
        >>> from dsas_core.maps import AffineMap
        >>> from dsas_core.probes import ConstantProbe
        >>> item = Intervention(Site("unet.mid_block"), (ConstantProbe(1.0),), (AffineMap(torch.ones(4)),), (1.0,))
        >>> item.read_only, item.as_read_only().read_only
        (False, True)
    """

    site: Site
    probes: tuple[Probe, ...]
    maps: tuple[Map, ...]
    weights: tuple[float, ...]
    probe_site: Site | None = None
    clouds: tuple[EllipticEnvelope, ...] = ()

    def __post_init__(self) -> None:
        across = self.probe_site is not None and self.probe_site.root != self.site.root
        if across and not all(probe.one_score_per_row for probe in self.probes):
            raise UnsupportedError(
                f"a probe at {self.probe_site} cannot gate {self.site}, which does not have its positions: read in "
                f"{self.site.root!r}, or have one h for a whole prompt (form pooled)"
            )

    @property
    def read_only(self) -> bool:
        """Whether it changes nothing: steering attaches it only where there is a trace to write to."""
        return all(isinstance(transform, IdentityMap) for transform in self.maps)

    @property
    def by_prompt(self) -> bool:
        """Whether a probe depends on where the prompt ends, see `RunningProbe.by_prompt`."""
        return any(isinstance(probe, RunningProbe) and probe.by_prompt for probe in self.probes)

    @property
    def width(self) -> int | None:
        """Number of channels of the activation that it changes or reads; None if it has no tensor of that width."""
        widths = (check_shapes(part) for part in (self.maps[0], self.probes[0]))
        return next((width for width in widths if width is not None), None)

    def as_read_only(self) -> Intervention:
        """A copy with maps that change nothing."""
        return replace(self, maps=(IdentityMap(),) * len(self.maps))

    def to_storage(self) -> Intervention:
        """A copy in storage precision: every tensor float32, on the CPU, without a gradient."""

        def to_float32(parts: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(part.map_tensors(lambda tensor: tensor.detach().to("cpu", torch.float32)) for part in parts)

        bins: dict[str, Any] = {name: to_float32(getattr(self, name)) for name in ("probes", "maps", "clouds")}
        return replace(self, **bins, weights=tuple(map(float, self.weights)))


def check_widths(interventions: Sequence[Intervention]) -> dict[Site, int]:
    """The channels of the activation at each site, where a tensor tells, if all shapes agree.

    Raises:
        ArtifactError: two tensors do not agree in their shapes, or have another width than their site's channels.

    Example:
        >>> from dsas_core.maps import AffineMap
        >>> from dsas_core.probes import ConstantProbe
        >>> item = Intervention(Site("unet.mid"), (ConstantProbe(1.0),), (AffineMap(torch.ones(4)),), (1.0,))
        >>> check_widths([item]) == {Site("unet.mid"): 4}
        True
    """
    widths: dict[Site, int] = {}
    for item in interventions:
        for site, parts in ((item.site, (*item.maps, *item.clouds)), (item.probe_site or item.site, item.probes)):
            try:
                for part in {id(part): part for part in parts}.values():
                    if (width := check_shapes(part, widths.get(site))) is not None:
                        widths[site] = width
            except ValueError as error:
                raise ArtifactError(f"{quote(str(site))}: {error}; learn the concept again") from None
            start, stop = site.channels or (None, None)
            wide = widths.get(site)
            if wide and stop is not None and (start or 0) >= 0 and stop >= 0 and wide != stop - (start or 0):
                raise ArtifactError(
                    f"{quote(str(site))} has {stop - (start or 0)} channels, and its probe or map is {wide} wide: "
                    "learn the concept again"
                )
    return widths


def bin_of(timestep: torch.Tensor | None, edges: Sequence[float]) -> torch.Tensor:
    """The number of the timestep bin that a timestep is in.

    Args:
        timestep: [], 0 (clean) to 1000 (noise); None for models without a timestep.
        edges: ascending timesteps that separate the bins.

    Returns:
        int64 []; 0 without a timestep or without edges.

    Example:
        >>> int(bin_of(torch.tensor(600.0), (250.0, 750.0)))
        1
    """
    if timestep is None or not edges:
        return torch.zeros((), dtype=torch.long)
    return torch.bucketize(timestep.float(), torch.tensor(list(edges), device=timestep.device), right=True)


def middles_of(edges: Sequence[float]) -> torch.Tensor:
    """The middle timestep of each bin, float32 [bins].

    Example:
        >>> middles_of((250.0, 750.0))
        tensor([125., 500., 875.])
    """
    ends = torch.tensor([0.0, *edges, 1000.0])
    return (ends[1:] + ends[:-1]) / 2
