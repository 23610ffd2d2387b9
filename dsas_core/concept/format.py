"""How a concept lies in its folder, written and read: settings, evidence and structure as JSON, tensors as safetensors.

Format 2 writes the probes of all timestep bins of a site as one, each tensor stacked over the bins, and once where the
bins are equal; so do maps and clouds. A folder has a few hundred tensors then, not thousands. Tensors are float16
where that is exact, else float32, so that nothing is lost. Format 1, which wrote every bin by itself, is read as well.

A folder may come from anybody: whoever reads one, from a disk, from the Hub or from an upload, comes through `read`,
which checks all of it before use. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..errors import ArtifactError
from ..maps import Map
from ..maps.envelope import EllipticEnvelope
from ..model.sites import Site
from ..probes import Probe
from ..utils.files import as_lines, replacing_folder
from ..utils.tensorclass import TensorClass, unpack
from .card import card
from .data import ConceptData
from .intervention import Intervention
from .samples import STRIP, Samples

AnyConcept = TypeVar("AnyConcept", bound=ConceptData)

FORMAT = 2
READ = (1, FORMAT)
CONFIG, TENSORS, CARD = "config.json", "concept.safetensors", "README.md"
#: all that a concept writes into its folder
FILES = (CONFIG, TENSORS, CARD, STRIP)

#: bytes that a file may have; what `learn` writes has a few MB at most
MAX_BYTES = {CONFIG: 2**26, TENSORS: 2**32, STRIP: 2**26}
#: bytes of the header of the safetensors, and how many tensors it may list
MAX_HEADER, MAX_TENSORS = 2**24, 200_000
#: lists and mappings within one another in the configuration; what `learn` writes has fewer than half of them
MAX_DEPTH = 24
#: types of numbers that tensors may have
DTYPES = {"F16", "BF16", "F32", "F64"}


# ---- writing --------------------------------------------------------------------------------------------------------


def save_concept(concept: ConceptData, folder: Path, *, overwrite: bool = False) -> Path:
    """Write a concept's folder, whole or not at all; see `Concept.save_pretrained`."""
    from safetensors.torch import save

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not overwrite:
        raise ArtifactError(f"{folder} is there and not empty: choose another folder, or pass overwrite (--overwrite)")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG).is_file():
        raise ArtifactError(
            f"{folder} holds something else than a concept, which overwrite would lose: choose another folder"
        )
    try:
        _validate(concept)
    except ValueError as error:
        raise ArtifactError(
            f"concept {concept.name!r} cannot be saved, as it could not be read again: {error}"
        ) from None
    config, tensors = pack_concept(concept)
    with replacing_folder(folder) as draft:
        (draft / TENSORS).write_bytes(save(tensors, metadata={"format": "pt", "dsas": str(FORMAT)}))
        (draft / CONFIG).write_text(as_lines(config) + "\n")
        (draft / CARD).write_text(card(concept), encoding="utf-8")
        if concept.samples is not None and concept.samples.strip:
            (draft / STRIP).write_bytes(concept.samples.strip)
    return folder


def pack_concept(concept: ConceptData) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A concept as what goes into `CONFIG` and `TENSORS`."""
    tensors: dict[str, torch.Tensor] = {}
    interventions = []
    for place, item in enumerate(concept.interventions):
        key = f"{place}.{item.site}"  # several slices of one module are several sites
        elsewhere = {} if item.probe_site is None else {"reads": item.probe_site.to_dict()}
        spec = {"site": item.site.to_dict(), **elsewhere, "weights": list(item.weights)}
        for name in ("probes", "maps", "clouds"):
            if parts := getattr(item, name):
                spec[name] = _packed_bins(parts, tensors, f"{key}.{name}")
        interventions.append(spec)
    config = {"format": FORMAT, **concept.settings(), "interventions": interventions}
    return config, {name: _narrow(tensor) for name, tensor in tensors.items()}


# ---- reading --------------------------------------------------------------------------------------------------------


def load_concept(kind: type[AnyConcept], folder: Path) -> AnyConcept:
    """The concept in a folder, all of it checked.

    Args:
        kind: the class of what is returned.
        folder: where its files lie.

    Raises:
        ArtifactError: what is there is damaged, too large, or of another format; the message names the file.
    """
    for name in (CONFIG, TENSORS):
        if not (folder / name).is_file():
            raise ArtifactError(f"{folder} is no concept: it has no {name} (write one with `dsas learn`)")
    config, tensors = _read_config(folder / CONFIG), _read_tensors(folder / TENSORS)
    try:
        single = config.pop("format") == 1
        interventions = tuple(
            Intervention(
                site=Site.from_dict(item["site"]),
                probe_site=Site.from_dict(item["reads"]) if "reads" in item else None,
                **(_single_bins if single else _stacked_bins)(item, tensors),
            )
            for item in config.pop("interventions")
        )
        edges = tuple(float(edge) for edge in config.pop("edges"))
        if config.get("range") is not None:
            config["range"] = tuple(float(end) for end in config["range"])
        if config.get("samples") is not None:
            strip = folder / STRIP
            config["samples"] = Samples.from_dict(config["samples"], _read_bytes(strip) if strip.is_file() else b"")
        concept = kind(interventions=interventions, edges=edges, **config)
        _validate(concept)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        raise ArtifactError(f"{folder / CONFIG} is damaged: {type(error).__name__} {error}") from None
    try:
        card(concept)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{folder / CONFIG} is damaged: its evidence and provenance are such as no card can show "
            f"({type(error).__name__} {error}); save or download it again"
        ) from None
    return concept


def _read_bytes(path: Path) -> bytes:
    most = MAX_BYTES[path.name]
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ArtifactError(f"{path} is larger than {most // 2**20} MB, which no concept is: save or download it again")
    return content


def _read_config(path: Path) -> dict[str, Any]:
    content = _read_bytes(path)
    try:
        config = json.loads(content.decode())
    except UnicodeDecodeError:
        raise ArtifactError(f"{path} is damaged: it is no text; expected JSON, as `dsas learn` writes it") from None
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged: it is not JSON: {error}") from None
    if not isinstance(config, dict) or config.get("format") not in READ:
        found = config.get("format") if isinstance(config, dict) else type(config).__name__
        formats = " and ".join(map(str, READ))
        raise ArtifactError(f"{path} is not a concept's: format {found}, this version reads formats {formats}")
    if _depth(config) > MAX_DEPTH:
        raise ArtifactError(f"{path} is not a concept's: more than {MAX_DEPTH} lists and mappings within one another")
    return config


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    content = _read_bytes(path)
    _check_header(content, path)
    try:
        tensors = {name: tensor.float() for name, tensor in load(content).items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged or cut short: {error}; save or download it again") from None
    if any(not bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise ArtifactError(f"{path} holds NaN or infinite values; learn the concept again")
    return tensors


def _check_header(content: bytes, path: Path) -> None:
    """Look at the header alone: a pickle, or a file that promises more than it has, goes no further."""
    damaged = f"{path} is damaged or cut short"
    length = int.from_bytes(content[:8], "little")
    if not 2 <= length <= min(MAX_HEADER, len(content) - 8) or content[8:9] != b"{":
        if content[:1] == b"\x80" or content[:4] == b"PK\x03\x04":
            raise ArtifactError(f"{damaged}: it is a pickle, which is never read; expected safetensors of `dsas learn`")
        raise ArtifactError(f"{damaged}: it is not safetensors; save or download it again")
    try:
        header = json.loads(content[8 : 8 + length])
        dtypes = {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        raise ArtifactError(f"{damaged}: it has a damaged header; save or download it again") from None
    if len(header) > MAX_TENSORS or not dtypes <= DTYPES:
        odd = ", ".join(sorted(map(str, dtypes - DTYPES)))[:80] or f"{len(header)} tensors"
        raise ArtifactError(f"{path} holds {odd}: expected up to {MAX_TENSORS} tensors of floats")


def _depth(document: Any) -> int:
    """How many lists and mappings of a JSON document are within one another."""
    level, depth = [document], 0
    while level:
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())
        ]
        depth += 1
    return depth


# ---- bins -----------------------------------------------------------------------------------------------------------


def _packed_bins(parts: Sequence[TensorClass], tensors: dict[str, torch.Tensor], key: str) -> Any:
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


def _validate(concept: ConceptData) -> None:
    """Raise a ValueError when a file holds what no concept can; parts have been checked by `unpack`."""
    texts = (concept.name, concept.method, concept.gate, concept.description)
    weights = [weight for item in concept.interventions for weight in item.weights]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("name, method, gate and description must be texts")
    if not concept.name.isprintable() or not concept.name or set(concept.name) & set("/\\"):
        raise ValueError(f"name {concept.name[:80]!r} is such as no folder may have")
    about = (concept.base, concept.learned_on, concept.evidence, concept.provenance)
    if not all(isinstance(content, Mapping) for content in about):
        raise ValueError("base, learned_on, evidence and provenance must be mappings")
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
        _validate_intervention(item, bins=len(concept.edges) + 1)


def _validate_intervention(item: Intervention, bins: int) -> None:
    if not all(isinstance(probe, Probe) for probe in item.probes) or not all(isinstance(m, Map) for m in item.maps):
        raise ValueError(f"{item.site} needs probes and maps")
    if {len(item.probes), len(item.maps), len(item.weights)} != {bins}:
        raise ValueError(
            f"{bins - 1} edges need {bins} bins at each site, and {item.site} has not one probe, map and weight in "
            "every bin"
        )
    if item.clouds and (
        len(item.clouds) != len(item.maps) or not all(isinstance(c, EllipticEnvelope) for c in item.clouds)
    ):
        raise ValueError(f"{item.site} needs a cloud in every bin, or none at all")
