"""The files of a concept, written and read: settings, evidence and structure as JSON, tensors as safetensors.

Format 2 writes the probes of all timestep bins of a site as one, each tensor stacked over the bins, and once if the
bins are equal; so do maps and clouds. A folder then has a few hundred tensors, not thousands. Tensors are float16 where
that is exact, else float32, so that nothing is lost. Format 1, which wrote every bin separately, is read as well.

A folder may come from anybody: every reader, be it of a disk, the Hub or an upload, uses `load_concept`, which checks
everything before use. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..errors import ArtifactError, quote
from ..maps import Map
from ..maps.envelope import EllipticEnvelope
from ..model.sites import Site
from ..probes import Probe
from ..utils.files import to_readable_json
from ..utils.saving.folders import read_folder, save_folder
from ..utils.saving.names import why_no_name
from ..utils.tensorclass import TensorClass, unpack
from .card import render_card
from .data import ConceptData
from .intervention import Intervention
from .own_files import recognise, serialise
from .samples import STRIP, Samples

AnyConcept = TypeVar("AnyConcept", bound=ConceptData)

FORMAT = 2
READ = (1, FORMAT)
CONFIG, TENSORS, CARD = "config.json", "concept.safetensors", "README.md"
#: all files of a concept
FILES = (CONFIG, TENSORS, CARD, STRIP)

#: largest size of a file, in bytes; those that `learn` writes have a few MB at most
MAX_BYTES = {CONFIG: 2**26, TENSORS: 2**32, STRIP: 2**26}
#: largest size of the header of the safetensors, in bytes, and number of tensors in it
MAX_HEADER, MAX_TENSORS = 2**24, 200_000
#: deepest nesting of lists and mappings in the configuration; `learn` writes less than half of it
MAX_DEPTH = 24
#: dtypes of tensors, as safetensors names them
DTYPES = {"F16", "BF16", "F32", "F64"}


# ---- writing --------------------------------------------------------------------------------------------------------


#: which files of a folder a save wrote, where it may be saved into
recognise_concept = partial(recognise, config=CONFIG, tensors=TENSORS, card=CARD)


def save_concept(
    concept: ConceptData, folder: Path, *, overwrite: bool = False, beside: Mapping[str, bytes] | None = None
) -> Path:
    """Write a concept's files, all or none of them; see `Concept.save_pretrained`.

    Args:
        concept: the concept.
        folder: where to; other files in it stay.
        overwrite: replace a concept that is there.
        beside: further files of the save, or another card.
    """
    try:
        _validate(concept)
    except ValueError as error:
        raise ArtifactError(
            f"concept {quote(concept.name)} cannot be saved, as it could not be read again: {error}"
        ) from None
    config, tensors = pack_concept(concept)
    files = {CONFIG: (to_readable_json(config) + "\n").encode(), CARD: render_card(concept).encode()}
    if concept.samples is not None and concept.samples.strip:
        files[STRIP] = concept.samples.strip
    files |= beside or {}
    files = {TENSORS: serialise(tensors, files, FORMAT), **files}
    save_folder(folder, files, partial(recognise_concept, overwrite=overwrite), obsolete=lambda name: name == STRIP)
    return folder


def pack_concept(concept: ConceptData) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The content of a concept's `CONFIG` and `TENSORS`.

    Example:
        >>> config, tensors = pack_concept(ConceptData("blur", ()))
        >>> config["format"], config["name"], tensors
        (2, 'blur', {})
    """
    tensors: dict[str, torch.Tensor] = {}
    interventions = []
    for place, item in enumerate(concept.interventions):
        key = f"{place}.{item.site}"  # slices of one module are different sites
        elsewhere = {} if item.probe_site is None else {"reads": item.probe_site.to_dict()}
        spec = {"site": item.site.to_dict(), **elsewhere, "weights": list(item.weights)}
        for name in ("probes", "maps", "clouds"):
            if parts := getattr(item, name):
                spec[name] = _pack_bins(parts, tensors, f"{key}.{name}")
        interventions.append(spec)
    config = {"format": FORMAT, **concept.settings(), "interventions": interventions}
    return config, {name: _to_half_if_exact(tensor) for name, tensor in tensors.items()}


# ---- reading --------------------------------------------------------------------------------------------------------


def load_concept(kind: type[AnyConcept], folder: Path) -> AnyConcept:
    """Read the concept in a folder and check all of it.

    Args:
        kind: class of the concept to return.
        folder: folder with its files.

    Raises:
        ArtifactError: a file is missing, damaged, too large, or of another format; the message names it.

    Example:
        >>> load_concept(ConceptData, Path(__file__).parents[1] / "concepts" / "banana-blur").name
        'banana-blur'
    """
    return read_folder(folder, FILES, lambda: _load(kind, folder))


def _load(kind: type[AnyConcept], folder: Path) -> AnyConcept:
    for name in (CONFIG, TENSORS):
        if not (folder / name).is_file():
            raise ArtifactError(f"{folder} is no concept: it has no {name} (write one with `dsas learn`)")
    config, tensors = _read_config(folder / CONFIG), _read_tensors(folder / TENSORS)
    strip = _read_bytes(folder / STRIP) if (folder / STRIP).is_file() else b""
    try:
        unpack_bins = _unpack_format_1 if config.pop("format") == 1 else _unpack_format_2
        interventions = tuple(
            Intervention(
                site=Site.from_dict(item["site"]),
                probe_site=Site.from_dict(item["reads"]) if "reads" in item else None,
                **unpack_bins(item, tensors),
            )
            for item in config.pop("interventions")
        )
        edges = _numbers("edges", config.pop("edges"))
        if config.get("range") is not None:
            config["range"] = _numbers("range", config["range"])
        if config.get("samples") is not None:
            config["samples"] = Samples.from_dict(config["samples"], strip)
        concept = kind(interventions=interventions, edges=edges, **config)
        _validate(concept)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        raise ArtifactError(f"{folder / CONFIG} is damaged: {type(error).__name__} {error}") from None
    try:
        render_card(concept)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{folder / CONFIG} is damaged: its evidence and provenance are such as no card can show "
            f"({type(error).__name__} {error}); save or download it again"
        ) from None
    return concept


def _read_bytes(path: Path) -> bytes:
    limit = MAX_BYTES[path.name]
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ArtifactError(
            f"{path} is larger than {limit // 2**20} MB, which no concept is: save or download it again"
        )
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
        actual = config.get("format") if isinstance(config, dict) else type(config).__name__
        formats = " and ".join(map(str, READ))
        raise ArtifactError(f"{path} is not a concept's: format {actual}, this version reads formats {formats}")
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
    except (SafetensorError, OSError, OverflowError, RuntimeError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged or cut short: {error}; save or download it again") from None
    if any(not bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise ArtifactError(f"{path} holds NaN or infinite values; learn the concept again")
    return tensors


def _check_header(content: bytes, path: Path) -> None:
    """Check the header before anything is parsed: refuse pickles, and files that are shorter than the header says."""
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
    """How deeply lists and mappings are nested in a JSON document."""
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


def _pack_bins(parts: Sequence[TensorClass], tensors: dict[str, torch.Tensor], key: str) -> Any:
    """The parts of all bins as one with stacked tensors, if they have the same structure; else a list of them."""
    structures = [(part.pack({}, key), [tensor.shape for tensor in part.tensors()]) for part in parts]
    if any(structure != structures[0] for structure in structures):
        return [part.map_tensors(torch.clone).pack(tensors, f"{key}.{i}") for i, part in enumerate(parts)]
    rows = list(zip(*(part.tensors() for part in parts), strict=True))
    equal = all(torch.equal(row[0], other) for row in rows for other in row[1:])
    stacked = iter([torch.stack(row[:1] if equal else row) for row in rows])
    return parts[0].map_tensors(lambda _: next(stacked)).pack(tensors, key)


def _unpack_format_2(item: Mapping[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Fields of an intervention whose bins are stacked."""
    weights = tuple(map(float, item["weights"]))
    names = ("probes", "maps", *(["clouds"] if "clouds" in item else []))
    return {"weights": weights, **{name: _unpack_bins(item[name], tensors, len(weights)) for name in names}}


def _unpack_bins(spec: Any, tensors: dict[str, torch.Tensor], count: int) -> tuple[Any, ...]:
    """The inverse of `_pack_bins`."""
    if isinstance(spec, list):
        return tuple(unpack(part, tensors) for part in spec)
    stacked = unpack(spec, tensors)
    columns = [list(tensor) for tensor in stacked.tensors()]
    lengths = {len(column) for column in columns}
    if not lengths <= {1} and lengths != {count}:
        raise ValueError(f"{count} weights need tensors of as many bins, found {sorted(lengths)}")
    bins = []
    for i in range(max(lengths, default=1)):
        row = iter([column[i] for column in columns])
        bins.append(stacked.map_tensors(lambda _, row=row: next(row)))  # type: ignore[misc]
    return tuple(bins if len(bins) == count else bins * count)


def _unpack_format_1(item: Mapping[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Fields of an intervention whose bins are written one by one."""
    bins = item["bins"]
    parts = {
        f"{name}s": tuple(unpack(bin_[name], tensors) for bin_ in bins if name != "cloud" or name in bin_)
        for name in ("probe", "map", "cloud")
    }
    return {"weights": tuple(float(bin_["weight"]) for bin_ in bins), **parts}


def round_to_half(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of a map, rounded to float16 values if these are within 2^-11 of it, relative to its norm.

    Scalars stay as they are: offsets of planes, which take no space and against which large numbers cancel.

    Example:
        >>> round_to_half(torch.tensor([1 / 3]))
        tensor([0.3333])
    """
    half = tensor.half().to(tensor.dtype)
    near = tensor.ndim > 0 and bool((half - tensor).norm() <= 2**-11 * tensor.norm())  # False for infinity and NaN
    return half if near else tensor


def _to_half_if_exact(tensor: torch.Tensor) -> torch.Tensor:
    half = tensor.half()
    return half if torch.equal(half.float(), tensor) else tensor


def _numbers(name: str, given: Any) -> tuple[float, ...]:
    if not isinstance(given, list) or not all(type(number) in (int, float) for number in given):
        raise ValueError(f"{name} must be a list of numbers, found {given!r:.80}")
    return tuple(map(float, given))


def _validate(concept: ConceptData) -> None:
    """Raise a ValueError if a file holds what no concept can; `unpack` has checked the parts."""
    texts = (concept.name, concept.method, concept.gate, concept.description)
    mappings = (concept.base, concept.learned_on, concept.evidence, concept.provenance)
    weights = [weight for item in concept.interventions for weight in item.weights]
    ends = concept.range
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("name, method, gate and description must be texts")
    if reason := why_no_name(concept.name):
        raise ValueError(f"name {quote(concept.name)} is such as no folder may have: {reason}")
    if not all(isinstance(content, Mapping) for content in mappings):
        raise ValueError("base, learned_on, evidence and provenance must be mappings")
    if isinstance(concept.unit, str) or not all(map(math.isfinite, (concept.unit, *concept.edges, *weights))):
        raise ValueError("unit, edges and weights must be finite numbers")
    if concept.unit <= 0:
        raise ValueError(f"unit must be above 0, found {concept.unit:g}")
    if list(concept.edges) != sorted(set(concept.edges)):
        raise ValueError("edges must ascend")
    if not (ends is None or (len(ends) == 2 and -math.inf < ends[0] <= 0 <= ends[1] < math.inf and ends[0] < ends[1])):
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
    valid = all(isinstance(cloud, EllipticEnvelope) for cloud in item.clouds)
    if item.clouds and (len(item.clouds) != bins or not valid):
        raise ValueError(f"{item.site} needs a cloud in every bin, or none at all")
