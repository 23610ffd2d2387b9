"""The arms of a comparison: a concept as it is, without its gate, and controls in which a part is made uninformative.

Every arm is a concept of the same name, so it is steered like any other, at the same strengths.
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

#: name -> label in reports
ARMS: Mapping[str, str] = {
    "dsas": "DSAS",
    "on": "always on",
    "random_direction": "random direction",
    "shuffled_gate": "gate at random",
    "constant_gate": "constant gate",
    "complement": "gate turned round",
    "oracle": "gate that knows",
}
#: control arms, which DSAS should beat
CONTROLS = ("random_direction", "shuffled_gate", "constant_gate", "complement")
#: arms whose gates repeat scores of the concept's own gates, whatever they read
BLIND = ("shuffled_gate", "constant_gate")
#: the file of the gates' scores
SCORES = "scores.safetensors"
#: the most scores stored of a gate
MAX_SCORES = 8192

#: h of each gate without its site's weight: (intervention, timestep bin) -> float [n]
Scores = Mapping[tuple[int, int], torch.Tensor]


@dataclass(frozen=True, eq=False)
class DrawnProbe(Probe, kind="drawn", stored=False):
    """Scores drawn at random from those of a gate: the same dose, but no information.

    Draws from torch's global generator. Of a gate that scores each dimension, scores are means over dimensions.

    Args:
        bank: scores of the gate, float [n].

    Example:
        >>> DrawnProbe(torch.tensor([0.25])).score(torch.zeros(1, 2, 8)).tolist()
        [[[0.25], [0.25]]]
    """

    bank: torch.Tensor

    def score(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        indices = torch.randint(len(self.bank), x.shape[:-1])
        return self.bank[indices.to(self.bank.device)][..., None]


@dataclass(frozen=True, eq=False)
class OracleProbe(Probe, kind="oracle", stored=False):
    """The true location of a thing: the share of each patch that its mask covers.

    For x [rows, positions, width], whose positions are the patches of a picture in row-major order; rows are the
    pictures in their order, repeated for each branch of classifier-free guidance.

    Args:
        masks: float [pictures, height, width] in [0, 1].

    Example:
        >>> left = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
        >>> OracleProbe(left).score(torch.zeros(1, 4, 8)).flatten().tolist()
        [1.0, 0.0, 1.0, 0.0]
    """

    masks: torch.Tensor

    def score(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        pictures, height, width = self.masks.shape
        patches = F.adaptive_avg_pool2d(self.masks[:, None], patch_grid(x.shape[-2], height, width))
        return patches.reshape(pictures, -1, 1).repeat(len(x) // pictures, 1, 1)


def collect_scores(trace: Trace, concept: Concept) -> Scores:
    """The scores of a concept's gates in a trace.

    Raises:
        DSASError: two interventions at a site, which a trace does not tell apart, or nothing recorded.
    """
    sites = [str(item.site) for item in concept.interventions]  # a trace records read-only interventions, too
    steered = [str(site) for site in concept.steered_sites]
    duplicate = next((site for site in steered if sites.count(site) > 1), None)
    if duplicate is not None:
        raise DSASError(f"{concept.name!r} has two interventions at {duplicate}: their scores cannot be told apart")
    scores: dict[tuple[int, int], list[torch.Tensor]] = {}
    for number, item in enumerate(concept.interventions):
        if item.read_only:
            continue
        for record in trace.select(concept.name, str(item.site)):
            timestep = None if record.timestep is None else torch.tensor(record.timestep)
            bin_ = int(bin_of(timestep, concept.edges))
            h = record.h.flatten() if record.mask is None else record.h[record.mask > 0]
            if item.weights[bin_] > 0:
                scores.setdefault((number, bin_), []).append(h / item.weights[bin_])
    if not scores:
        raise DSASError(f"the trace holds nothing of {concept.name!r}: run the model inside steer(trace=True) first")
    return {place: torch.cat(parts) for place, parts in scores.items()}


def doses(own: Mapping[str, float], arms: Sequence[str]) -> dict[str, dict[str, float]]:
    """The dose of arms at strength 1, mean h by side, as far as it follows from that of DSAS.

    The blind gates repeat the scores of source prompts everywhere. The dose of "complement" and "oracle" depends on the
    site, and is left out.

    Args:
        own: mean h of DSAS by side.
        arms: names in `ARMS`.

    Example:
        >>> doses({"source": 0.5, "control": 0.25}, ["on", "constant_gate", "oracle"])
        {'on': {'source': 1.0, 'control': 1.0}, 'constant_gate': {'source': 0.5, 'control': 0.5}}
    """
    blind = dict.fromkeys(own, own["source"])
    known = {"dsas": own, "random_direction": own, "on": dict.fromkeys(own, 1.0), **dict.fromkeys(BLIND, blind)}
    return {name: dict(known[name]) for name in arms if name in known}


def save_scores(parts: Sequence[Scores], path: Path) -> None:
    """Write the scores of several traces, thinned to `MAX_SCORES` of each gate, evenly over the sorted scores."""
    from safetensors.torch import save

    joined = {place: torch.cat([part[place] for part in parts if place in part]) for part in parts for place in part}
    thin = {place: _of_size(h, min(len(h), MAX_SCORES)) for place, h in joined.items()}
    path.write_bytes(save({f"{number}.{bin_}": h for (number, bin_), h in thin.items()}))


def load_scores(path: Path) -> Scores:
    """Read the file of `save_scores`."""
    from safetensors.torch import load_file

    return {(int(name.split(".")[0]), int(name.split(".")[1])): h for name, h in load_file(path).items()}


def build_arm(
    concept: Concept,
    name: str,
    scores: Scores | None = None,
    seed: int = 0,
    masks: Mapping[str, torch.Tensor] | None = None,
) -> tuple[Concept, str | None]:
    """The concept of one arm, and the `gate=` to steer it with.

    - "dsas": the concept itself; "on": its map without a gate.
    - "random_direction": the vectors of each map in random directions, of the same length; shift and slope - 1 are
      drawn separately, so with slopes the change of a given x may have another length.
    - "shuffled_gate": h drawn from the gate's scores at the same site; "constant_gate": their mean.
    - "complement": 1 - h (of a latch, the opposite decision: before it, both are 0).
    - "oracle": h is 1 where the thing is and 0 elsewhere, for source prompts; do not steer control prompts with it.

    Args:
        concept: the concept under evaluation.
        name: in `ARMS`.
        scores: of the gates for source prompts, for the arms in `BLIND`.
        seed: of the random directions.
        masks: where the thing is in each picture, float [pictures, height, width] in [0, 1], by root, for the oracle;
            at other roots its h is 1 everywhere.

    Raises:
        DSASError: an unknown arm, one that needs scores and has none, or a random direction of no affine map.
    """
    if name not in ARMS:
        raise DSASError(f"no arm {name!r}; there is {', '.join(ARMS)}")
    if name in ("dsas", "on"):
        return concept, "on" if name == "on" else None
    if name == "random_direction":
        random = torch.Generator().manual_seed(seed)
        return _replace_parts(concept, lambda number, bin_, probe, map_: (probe, _randomise(map_, random))), None
    if name == "complement":
        return _replace_parts(concept, lambda number, bin_, probe, map_: (probe.complement(), map_)), None
    if name == "oracle":
        # masks are of patches, which the embeddings of a prompt have not
        roots = ["" if item.site.argument else item.site.root for item in concept.interventions]
        probes = {root: OracleProbe(mask.float()) for root, mask in (masks or {}).items()}
        oracle = _replace_parts(
            concept, lambda number, bin_, probe, map_: (probes.get(roots[number], ConstantProbe(1.0)), map_), False
        )
        items = (replace(item, weights=(1.0,) * len(item.weights)) for item in oracle.interventions)  # as gate="on"
        return replace(oracle, interventions=tuple(items)), None
    if scores is None:
        raise DSASError(f"arm {name!r} needs to know what the gates say: pass collect_scores(trace, concept)")

    size = max(len(h) for h in scores.values())

    def blind(number: int, bin_: int, probe: Probe, map_: Map) -> tuple[Probe, Map]:
        """As many scores for every bin: the parameters of all bins must have one shape, and be tensors to differ."""
        bank = scores.get((number, bin_), torch.zeros(1))
        return DrawnProbe(bank.mean()[None] if name == "constant_gate" else _of_size(bank, size)), map_

    return _replace_parts(concept, blind, keep_probe_sites=False), None


def _replace_parts(
    concept: Concept, change: Callable[[int, int, Probe, Map], tuple[Probe, Map]], keep_probe_sites: bool = True
) -> Concept:
    """The concept with the probe and the map of each intervention and bin replaced.

    Args:
        concept: read-only interventions of it are dropped.
        change: number of the intervention, bin, probe, map -> the new probe and map.
        keep_probe_sites: False puts probes at the site of their map, for probes that do not read activations.
    """
    items: list[Intervention] = []
    for number, item in enumerate(concept.interventions):
        if item.read_only:
            continue
        pairs = zip(item.probes, item.maps, strict=True)
        parts = [change(number, bin_, probe, map_) for bin_, (probe, map_) in enumerate(pairs)]
        probes, maps = zip(*parts, strict=True)
        probe_site = item.probe_site if keep_probe_sites else None
        items.append(replace(item, probes=tuple(probes), maps=tuple(maps), probe_site=probe_site))
    return replace(concept, interventions=tuple(items))


def _of_size(h: torch.Tensor, size: int) -> torch.Tensor:
    """`size` scores of the distribution of h [n]: the middles of equal shares of its sorted values.

    Every k-th score of the unsorted ones would be biased: they are ordered by position, and k may be a picture's width.
    """
    return h.sort().values[(2 * torch.arange(size) + 1) * len(h) // (2 * size)]


def _randomise(map_: Map, random: torch.Generator) -> Map:
    """The map with its vectors in random directions of the same length; of slopes, the deviation from 1."""

    def random_like(tensor: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(tensor.shape, generator=random)
        return noise * tensor.norm() / noise.norm().clamp_min(1e-12)

    if isinstance(map_, ProjectionMap):
        return replace(map_, direction=random_like(map_.direction))
    if isinstance(map_, TurnMap):
        return TurnMap(random_like(map_.shift))
    if not isinstance(map_, AffineMap):
        raise DSASError(f"arm 'random_direction' knows no way to turn a map of kind {map_.kind}: leave it out (--arms)")
    return AffineMap(random_like(map_.shift), None if map_.slope is None else 1 + random_like(map_.slope - 1))
