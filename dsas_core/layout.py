"""How a concept lies in its folder: settings, evidence and structure as JSON, its tensors as safetensors.

Format 2 writes the probes of all timestep bins of a site as one, each tensor stacked over the bins, and once where the
bins are equal; so do maps and clouds. A folder has a few hundred tensors then, not thousands. Tensors are float16
where that is exact, else float32, so that nothing is lost. Format 1, which wrote every bin by itself, is read as well.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from .card import STRIP, Samples
from .errors import DSASError
from .maps import Map
from .maps.envelope import Cloud
from .parts import Part, unpack
from .probes import Probe
from .sites import Site

if TYPE_CHECKING:
    from .concept import Concept

AnyConcept = TypeVar("AnyConcept", bound="Concept")

FORMAT = 2
READ = (1, FORMAT)
CONFIG, TENSORS, CARD = "config.json", "concept.safetensors", "README.md"
#: all that a concept writes into its folder
FILES = (CONFIG, TENSORS, CARD, STRIP)


def packed(concept: Concept) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A concept as what goes into `CONFIG` and `TENSORS`."""
    tensors: dict[str, torch.Tensor] = {}
    interventions = []
    for place, item in enumerate(concept.interventions):
        key = f"{place}.{item.site}"  # several slices of one module are several sites
        elsewhere = {} if item.reads is None else {"reads": item.reads.to_dict()}
        found = {"site": item.site.to_dict(), **elsewhere, "weights": list(item.weights)}
        for name in ("probes", "maps", "clouds"):
            if parts := getattr(item, name):
                found[name] = _packed_bins(parts, tensors, f"{key}.{name}")
        interventions.append(found)
    config = {"format": FORMAT, **concept.settings(), "interventions": interventions}
    return config, {name: _narrow(tensor) for name, tensor in tensors.items()}


def read(kind: type[AnyConcept], folder: Path) -> AnyConcept:
    """The concept in a folder, as one of that class.

    Raises:
        DSASError: what is there is damaged, or of another format; the message names the file.
    """
    from .concept import Intervention

    config, tensors = _read_files(folder)
    try:
        single = config.pop("format") == 1
        interventions = tuple(
            Intervention(
                site=Site.from_dict(item["site"]),
                reads=Site.from_dict(item["reads"]) if "reads" in item else None,
                **(_single_bins if single else _stacked_bins)(item, tensors),
            )
            for item in config.pop("interventions")
        )
        edges = tuple(float(edge) for edge in config.pop("edges"))
        if config.get("range") is not None:
            config["range"] = tuple(float(end) for end in config["range"])
        if config.get("samples") is not None:
            strip = folder / STRIP
            config["samples"] = Samples.from_dict(config["samples"], strip.read_bytes() if strip.is_file() else b"")
        concept = kind(interventions=interventions, edges=edges, **config)
        _validate(concept)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DSASError(f"{folder / CONFIG} is damaged: {type(error).__name__} {error}") from None
    if any(len(item.probes) != len(edges) + 1 for item in interventions):
        raise DSASError(f"{folder / CONFIG} is damaged: {len(edges)} edges need {len(edges) + 1} bins at each site")
    return concept


def _read_files(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    for name in (CONFIG, TENSORS):
        if not (folder / name).is_file():
            raise DSASError(f"{folder} is no concept: it has no {name} (write one with `dsas learn`)")
    try:
        config = json.loads((folder / CONFIG).read_text())
    except ValueError as error:
        raise DSASError(f"{folder / CONFIG} is damaged: {error}") from None
    try:
        tensors = {name: tensor.float() for name, tensor in load((folder / TENSORS).read_bytes()).items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise DSASError(f"{folder / TENSORS} is damaged or cut short: {error}; save or download it again") from None
    if not isinstance(config, dict) or config.get("format") not in READ:
        found = config.get("format") if isinstance(config, dict) else type(config).__name__
        formats = " and ".join(map(str, READ))
        raise DSASError(f"{folder / CONFIG}: format {found}, this version reads formats {formats}")
    if any(not bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise DSASError(f"{folder / TENSORS} holds NaN or infinite values; learn the concept again")
    return config, tensors


# ---- bins -----------------------------------------------------------------------------------------------------------


def _packed_bins(parts: Sequence[Part], tensors: dict[str, torch.Tensor], key: str) -> Any:
    """The parts of all bins as one, where they are alike; else a list of them."""
    found = [part.tensors() for part in parts]
    spec, shapes = parts[0].pack({}, key), [tensor.shape for tensor in found[0]]
    for part, own in zip(parts[1:], found[1:], strict=True):
        if part.pack({}, key) != spec or [tensor.shape for tensor in own] != shapes:
            return [part.map_tensors(torch.clone).pack(tensors, f"{key}.{i}") for i, part in enumerate(parts)]
    columns = list(zip(*found, strict=True))
    same = all(torch.equal(column[0], other) for column in columns for other in column[1:])
    stacked = iter([torch.stack(column[:1] if same else column) for column in columns])
    return parts[0].map_tensors(lambda _: next(stacked)).pack(tensors, key)


def _stacked_bins(item: Mapping[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    weights = tuple(float(weight) for weight in item["weights"])
    bins = {name: _unpacked_bins(item[name], tensors, len(weights)) for name in ("probes", "maps")}
    clouds = _unpacked_bins(item["clouds"], tensors, len(weights)) if "clouds" in item else ()
    return {"weights": weights, **bins, "clouds": clouds}


def _unpacked_bins(spec: Any, tensors: dict[str, torch.Tensor], count: int) -> tuple[Any, ...]:
    """The inverse of `_packed_bins`."""
    if isinstance(spec, list):
        return tuple(unpack(one, tensors) for one in spec)
    stacked = unpack(spec, tensors)
    rows = [list(tensor) for tensor in stacked.tensors()]
    lengths = {len(row) for row in rows}
    if not lengths <= {1} and lengths != {count}:
        raise ValueError(f"{count} weights need tensors of as many bins, found {sorted(lengths)}")
    bins = []
    for i in range(max(lengths, default=1)):
        row = iter([tensor[i] for tensor in rows])
        bins.append(stacked.map_tensors(lambda _, row=row: next(row)))  # type: ignore[misc]
    return tuple(bins if len(bins) == count else bins * count)


def _single_bins(item: Mapping[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """As format 1 wrote them."""
    bins = item["bins"]
    return {
        "probes": tuple(unpack(bin_["probe"], tensors) for bin_ in bins),
        "maps": tuple(unpack(bin_["map"], tensors) for bin_ in bins),
        "weights": tuple(float(bin_["weight"]) for bin_ in bins),
        "clouds": tuple(unpack(bin_["cloud"], tensors) for bin_ in bins if "cloud" in bin_),
    }


def rounded(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of a map as it is stored: float16 values, where these are within 2^-11 of it, by their norms.

    Scalars stay as they are: offsets of planes, which cost nothing and against which large numbers cancel.
    """
    half = tensor.half().to(tensor.dtype)
    near = tensor.ndim > 0 and bool((half - tensor).norm() <= 2**-11 * tensor.norm())  # not if it is infinite, or NaN
    return half if near else tensor


def _narrow(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as float16, where that is what it is."""
    half = tensor.half()
    return half if torch.equal(half.float(), tensor) else tensor


def _validate(concept: Concept) -> None:
    """Raise a ValueError when a file holds what no concept can; parts have been checked by `unpack`."""
    texts = (concept.name, concept.method, concept.gate, concept.description)
    weights = [weight for item in concept.interventions for weight in item.weights]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("name, method, gate and description must be texts")
    if isinstance(concept.unit, str) or not all(map(math.isfinite, (concept.unit, *concept.edges, *weights))):
        raise ValueError("unit, edges and weights must be finite numbers")
    if list(concept.edges) != sorted(set(concept.edges)):
        raise ValueError("edges must ascend")
    ends = concept.range
    if ends is not None and not (
        len(ends) == 2 and -math.inf < ends[0] <= 0 <= ends[1] < math.inf and ends[0] < ends[1]
    ):
        raise ValueError(f"range must be two finite numbers, from 0 or below to 0 or above, found {list(ends)}")
    if not concept.interventions:
        raise ValueError("it has no interventions")
    for item in concept.interventions:
        if not all(isinstance(probe, Probe) for probe in item.probes) or not all(isinstance(m, Map) for m in item.maps):
            raise ValueError(f"{item.site} needs probes and maps")
        if item.clouds and (len(item.clouds) != len(item.maps) or not all(isinstance(c, Cloud) for c in item.clouds)):
            raise ValueError(f"{item.site} needs a cloud in every bin, or none at all")
