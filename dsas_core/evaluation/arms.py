"""The arms of a comparison: a concept as it is, without its gate, and with what is special about it taken away.

Every arm is a concept of the same name, so it is steered as any other, and strengths carry over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F

from ..concept.concept import Concept
from ..concept.intervention import Intervention, bin_of
from ..errors import DSASError
from ..maps import AffineMap, Map, ProjectionMap, TurnMap
from ..model.sites import patch_grid
from ..probes import ConstantProbe, Probe
from ..steering.trace import Trace

#: name -> what the arm is, in a few words
ARMS: Mapping[str, str] = {
    "dsas": "DSAS",
    "on": "always on",
    "random_direction": "random direction",
    "shuffled_gate": "gate at random",
    "constant_gate": "constant gate",
    "complement": "gate turned round",
    "oracle": "gate that knows",
}
#: arms that know less than the gate does: DSAS is to do better than they
CONTROLS = ("random_direction", "shuffled_gate", "constant_gate", "complement")
#: arms whose gates need to know what the real ones said
BLIND = ("shuffled_gate", "constant_gate")
#: the file that keeps what gates said
SCORES = "scores.safetensors"
#: scores that are kept of each gate
BANK = 8192

#: what each gate said, without its site's weight: (intervention, timestep bin) -> float [n]
Scores = Mapping[tuple[int, int], torch.Tensor]


@dataclass(frozen=True, eq=False)
class DrawnProbe(Probe, kind="drawn"):
    """Scores drawn at random from those in `bank` [n]: the same dose as the gate that gave them, no information.

    Of a gate that scores each dimension they are means over dimensions, for all alike. Draws from torch's global
    generator.
    """

    bank: torch.Tensor

    def score(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        places = torch.randint(len(self.bank), x.shape[:-1])
        return self.bank[places.to(self.bank.device)][..., None]


@dataclass(frozen=True, eq=False)
class OracleProbe(Probe, kind="oracle"):
    """Says where a thing is because it was told: the share of each patch that the thing covers.

    `there` is float [pictures, height, width] in [0, 1], for x [rows, positions, width] whose positions are the patches
    of pictures of that shape, row by row; rows are the pictures in their order, once or several times over (guidance).
    """

    there: torch.Tensor

    def score(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        pictures, height, width = self.there.shape
        patches = F.adaptive_avg_pool2d(self.there[:, None], patch_grid(x.shape[-2], height, width))
        return patches.reshape(pictures, -1, 1).repeat(len(x) // pictures, 1, 1)


def scores_of(trace: Trace, concept: Concept) -> Scores:
    """What the gates of a concept said in a trace.

    Raises:
        DSASError: two interventions at a site, which a trace does not tell apart, or nothing recorded.
    """
    sites = [str(item.site) for item in concept.interventions]  # a trace keeps what watches, too
    steered = [str(site) for site in concept.steered_sites]
    double = next((site for site in steered if sites.count(site) > 1), None)
    if double is not None:
        raise DSASError(f"{concept.name!r} has two interventions at {double}: their scores cannot be told apart")
    found: dict[tuple[int, int], list[torch.Tensor]] = {}
    for number, item in enumerate(concept.interventions):
        if item.read_only:
            continue
        for record in trace.select(concept.name, str(item.site)):
            timestep = None if record.timestep is None else torch.tensor(record.timestep)
            bin_ = int(bin_of(timestep, concept.edges))
            h = record.h.flatten() if record.mask is None else record.h[record.mask > 0]
            if item.weights[bin_] > 0:
                found.setdefault((number, bin_), []).append(h / item.weights[bin_])
    if not found:
        raise DSASError(f"the trace holds nothing of {concept.name!r}: run the model inside steer(trace=True) first")
    return {place: torch.cat(parts) for place, parts in found.items()}


def doses(own: Mapping[str, float], arms: Sequence[str]) -> dict[str, dict[str, float]]:
    """How much of the map arms let through at strength 1, by side, told from what DSAS does: `own`, mean h by side.

    The blind gates repeat everywhere what the real ones say of source prompts: there they are at the same dose. Of
    "complement" and "oracle" it depends on the site.
    """
    blind = dict.fromkeys(own, own["source"])
    known = {"dsas": own, "random_direction": own, "shuffled_gate": blind, "constant_gate": blind}
    known["on"] = dict.fromkeys(own, 1.0)
    return {name: dict(known[name]) for name in arms if name in known}


def save_scores(parts: Sequence[Scores], path: Path) -> None:
    """Write the scores of several traces, up to `BANK` of each gate, of the same distribution."""
    from safetensors.torch import save_file

    joined = {place: torch.cat([part[place] for part in parts if place in part]) for part in parts for place in part}
    thin = {place: _of_size(h, min(len(h), BANK)) for place, h in joined.items()}
    save_file({f"{number}.{bin_}": h for (number, bin_), h in thin.items()}, path)


def load_scores(path: Path) -> Scores:
    """What `save_scores` wrote."""
    from safetensors.torch import load_file

    return {(int(name.split(".")[0]), int(name.split(".")[1])): h for name, h in load_file(path).items()}


def arm(
    concept: Concept,
    name: str,
    scores: Scores | None = None,
    seed: int = 0,
    there: Mapping[str, torch.Tensor] | None = None,
) -> tuple[Concept, str | None]:
    """The concept of one arm, and the `gate=` to steer it with.

    Args:
        name: in `ARMS`. "random_direction" turns each map's vectors to random directions of the same length, shift and
            slope - 1 apart, so that with slopes the change of a given x need not be as long; "shuffled_gate" says at
            random what the gate said elsewhere, "constant_gate" its mean, both site by site; "complement" is h where
            the gate says 1 - h (a latch turns its decision: before it, both are 0); "oracle" is 1 where the thing is
            and 0 elsewhere, for prompts that show the concept: those that do not it leaves alone, steer nothing there.
        scores: what the gates say of source prompts, for the arms that are blind.
        seed: of the random directions.
        there: where the thing is in each picture, float [pictures, height, width] in [0, 1], by root, for the oracle;
            at roots that it does not name, the oracle is 1 everywhere.

    Raises:
        DSASError: an unknown arm, one that needs scores and has none, or a random direction of no affine map.
    """
    if name not in ARMS:
        raise DSASError(f"no arm {name!r}; there is {', '.join(ARMS)}")
    if name == "dsas":
        return concept, None
    if name == "on":
        return concept, "on"
    if name == "random_direction":
        random = torch.Generator().manual_seed(seed)
        return _changed(concept, lambda number, bin_, probe, map_: (probe, _turned(map_, random))), None
    if name == "complement":
        return _changed(concept, lambda number, bin_, probe, map_: (probe.complement(), map_)), None
    if name == "oracle":
        roots = [item.site.root for item in concept.interventions]
        known = {root: OracleProbe(shape.float()) for root, shape in (there or {}).items()}
        told = _changed(
            concept, lambda number, bin_, probe, map_: (known.get(roots[number], ConstantProbe(1.0)), map_), False
        )
        sure = [replace(item, weights=(1.0,) * len(item.weights)) for item in told.interventions]  # as gate="on"
        return replace(told, interventions=tuple(sure)), None
    if scores is None:
        raise DSASError(f"arm {name!r} needs to know what the gates say: pass scores_of(trace, concept)")

    size = max(len(h) for h in scores.values())

    def blind(number: int, bin_: int, probe: Probe, map_: Map) -> tuple[Probe, Map]:
        """Of every bin as many scores: a bin's parameters must have one shape, and be tensors to differ by bin."""
        bank = scores.get((number, bin_), torch.zeros(1))
        return DrawnProbe(bank.mean()[None] if name == "constant_gate" else _of_size(bank, size)), map_

    return _changed(concept, blind, reads=False), None


def _changed(
    concept: Concept, change: Callable[[int, int, Probe, Map], tuple[Probe, Map]], reads: bool = True
) -> Concept:
    """The concept with the probe and the map of each intervention and bin replaced.

    Without `reads`, probes are where their maps are, also those of gates that read elsewhere: theirs look at nothing.
    """
    items: list[Intervention] = []
    for number, item in enumerate(concept.interventions):
        if item.read_only:
            continue
        pairs = zip(item.probes, item.maps, strict=True)
        parts = [change(number, bin_, probe, map_) for bin_, (probe, map_) in enumerate(pairs)]
        probes, maps = zip(*parts, strict=True)
        where = item.probe_site if reads else None
        items.append(replace(item, probes=tuple(probes), maps=tuple(maps), probe_site=where))
    return replace(concept, interventions=tuple(items))


def _of_size(h: torch.Tensor, size: int) -> torch.Tensor:
    """As many scores of the distribution of h [n]: the middles of `size` equal shares of its sorted values.

    Every k-th one, or the first ones again, would not do: scores come by place, and k may be the width of a picture.
    """
    return h.sort().values[(2 * torch.arange(size) + 1) * len(h) // (2 * size)]


def _turned(map_: Map, random: torch.Generator) -> Map:
    """The map with what it adds turned to a random direction of the same length; slopes likewise, around 1."""

    def turned(tensor: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(tensor.shape, generator=random)
        return noise * tensor.norm() / noise.norm().clamp_min(1e-12)

    if isinstance(map_, ProjectionMap):
        return replace(map_, direction=turned(map_.direction))
    if isinstance(map_, TurnMap):
        return TurnMap(turned(map_.shift))
    if not isinstance(map_, AffineMap):
        raise DSASError(f"arm 'random_direction' knows no way to turn a map of kind {map_.kind}: leave it out (--arms)")
    return AffineMap(turned(map_.shift), None if map_.slope is None else 1 + turned(map_.slope - 1))
