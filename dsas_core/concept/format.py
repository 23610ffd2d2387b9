"""The files of a concept, written and read: settings, evidence and structure as JSON, tensors as safetensors.

Format 2 writes the probes of all timestep bins of a site as one, each tensor stacked over the bins, and once if the
bins are equal; so do maps and clouds. A folder then has a few hundred tensors, not thousands. Tensors are float16 where
that is exact, else float32, so that nothing is lost. Format 1, which wrote every bin separately, is read as well.

A folder may come from anybody: every reader, be it of a disk, the Hub or an upload, uses `load_concept`, which checks
everything before use. Nothing is ever unpickled.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..errors import ArtifactError, quote, shorten
from ..maps import AffineMap, Map
from ..model.sites import Site
from ..utils.saving.files import to_readable_json
from ..utils.saving.folders import read_folder, save_folder
from ..utils.tensorclass import TensorClass, unpack
from .card import render_card
from .data import ConceptData
from .intervention import Intervention
from .samples import STRIP, Samples
from .schema import MAX_INTERVENTIONS, NEEDED, SAMPLES, check_concept, check_plain, check_site
from .storage.own_files import recognise_concept, serialise
from .storage.reading import (
    AGAIN,
    CARD,
    CONFIG,
    FILES,
    TENSORS,
    is_file,
    read_bytes,
    read_json,
    read_tensors,
    refuse_unused,
)

__all__ = [
    "CARD",
    "CONFIG",
    "FILES",
    "FORMAT",
    "TENSORS",
    "load_concept",
    "pack_concept",
    "round_map",
    "round_to_half",
    "save_concept",
]

AnyConcept = TypeVar("AnyConcept", bound=ConceptData)

FORMAT = 2
READ = (1, FORMAT)
#: a rounded map moves the rows that it is for as the map does, but for this part of how far it moves them
ROUNDING = 2**-10

# ---- writing --------------------------------------------------------------------------------------------------------


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
        check_concept(concept)
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
        if not is_file(folder / name):
            raise ArtifactError(f"{folder} is no concept: it has no {name} (write one with `dsas learn`)")
    config, tensors = _read_config(folder / CONFIG), _Noted(read_tensors(folder / TENSORS))
    strip = read_bytes(folder / STRIP) if is_file(folder / STRIP) else b""
    try:
        concept = kind(**_unpack_concept(config, tensors, strip))
        check_concept(concept)
    except ValueError as error:
        raise ArtifactError(f"{folder / CONFIG} is damaged: {error}; {AGAIN}") from None
    refuse_unused(folder / TENSORS, tensors, tensors.used)
    try:
        render_card(concept)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{folder / CONFIG} is damaged: its evidence and provenance are such as no card can show "
            f"({type(error).__name__} {error}); {AGAIN}"
        ) from None
    return concept


class _Noted(dict[str, torch.Tensor]):
    """Tensors by name, and which of them were looked up."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__(tensors)
        self.used: set[str] = set()

    def __getitem__(self, name: str) -> torch.Tensor:
        self.used.add(name)
        return super().__getitem__(name)


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    if not isinstance(config, dict) or type(config.get("format")) is not int or config["format"] not in READ:
        actual = quote(config.get("format")) if isinstance(config, dict) else type(config).__name__
        formats = " and ".join(map(str, READ))
        raise ArtifactError(f"{path} is not a concept's: format {actual}, this version reads formats {formats}")
    return config


#: what `config.json` has, and what it may lack
_NEEDED = {"format", "name", "edges", "interventions"}
_OPTIONAL = {field.name for field in fields(ConceptData)} - _NEEDED


def _unpack_concept(config: dict[str, Any], tensors: dict[str, torch.Tensor], strip: bytes) -> dict[str, Any]:
    """The fields of a concept, the inverse of `pack_concept`; a ValueError where the configuration has others."""
    _check_keys("it", config, _NEEDED, _OPTIONAL)
    check_plain(config["edges"], ["a number"], "edges")
    check_plain(config["interventions"], [{NEEDED: ("site",), "reads": {}}], "interventions")
    for name in ("unit", *(["range"] if config.get("range") is not None else [])):
        check_plain(config.get(name, 1.0), ["a number"] if name == "range" else "a number", name)
    _check_counts(config)
    unpack_bins = _unpack_format_1 if config["format"] == 1 else _unpack_format_2
    interventions = tuple(
        Intervention(
            site=_unpack_site(item["site"]),
            probe_site=_unpack_site(item["reads"]) if "reads" in item else None,
            **unpack_bins(item, tensors),
        )
        for item in config["interventions"]
    )
    found = {key: value for key, value in config.items() if key != "format"}
    if config.get("samples") is not None:
        check_plain(config["samples"], SAMPLES, "samples")
        found["samples"] = Samples.from_dict(config["samples"], strip)
    if config.get("range") is not None:
        found["range"] = tuple(map(float, config["range"]))
    return {**found, "edges": tuple(map(float, config["edges"])), "interventions": interventions}


def _check_counts(config: dict[str, Any]) -> None:
    """Raise a ValueError where interventions have not one entry for each bin, before these are made."""
    items, bins = config["interventions"], len(config["edges"]) + 1
    if len(items) * bins > MAX_INTERVENTIONS:
        raise ValueError(f"it has {len(items)} interventions in {bins} bins: expected {MAX_INTERVENTIONS} in all")
    for item in items:
        entries = item.get("bins" if config["format"] == 1 else "weights")
        if isinstance(entries, list) and len(entries) != bins:
            raise ValueError(
                f"{bins - 1} edges need {bins} bins at each site, and one has {len(entries)}: expected one probe, map "
                "and weight in every bin"
            )


def _check_keys(what: str, given: Any, needed: Collection[str], optional: Collection[str] = ()) -> None:
    if not isinstance(given, dict):
        raise ValueError(f"{what} must be a mapping, found {quote(given)}")
    for keys, told in ((set(needed) - set(given), "lacks"), (set(given) - {*needed, *optional}, "has an unknown")):
        if keys:
            raise ValueError(f"{what} {told} {shorten(min(keys), 80)}")


def _unpack_site(data: Any) -> Site:
    check_plain(data, {NEEDED: ("path",), **dict.fromkeys(("path", "side", "layout", "stream"), "a text")}, "a site")
    site = Site.from_dict(data)
    check_site(site)
    return site


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


def _unpack_format_2(item: dict[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Fields of an intervention whose bins are stacked."""
    _check_keys("an intervention", item, ("site", "weights", "probes", "maps"), ("reads", "clouds"))
    check_plain(item["weights"], ["a number"], "weights")
    weights = tuple(map(float, item["weights"]))
    names = ("probes", "maps", *(["clouds"] if "clouds" in item else []))
    return {"weights": weights, **{name: _unpack_bins(item[name], tensors, len(weights)) for name in names}}


def _unpack_bins(spec: Any, tensors: dict[str, torch.Tensor], count: int) -> tuple[Any, ...]:
    """The inverse of `_pack_bins`."""
    if isinstance(spec, list):
        return tuple(_unpack_part(part, tensors) for part in spec)
    stacked = _unpack_part(spec, tensors)
    lengths = {len(tensor) if tensor.ndim else 0 for tensor in stacked.tensors()}
    if not lengths <= {1} and lengths != {count}:
        raise ValueError(f"{count} weights need tensors of as many bins, or of one, found {sorted(lengths)}")
    columns = [list(tensor) for tensor in stacked.tensors()]
    bins = []
    for i in range(max(lengths, default=1)):
        row = iter([column[i] for column in columns])
        bins.append(stacked.map_tensors(lambda _, row=row: next(row)))  # type: ignore[misc]
    return tuple(bins if len(bins) == count else bins * count)


def _unpack_part(spec: Any, tensors: dict[str, torch.Tensor]) -> TensorClass:
    part = unpack(spec, tensors)
    if not isinstance(part, TensorClass):
        raise ValueError(f"expected a probe, a map or a cloud, found {quote(spec)}")
    return part


def _unpack_format_1(item: dict[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Fields of an intervention whose bins are written one by one."""
    _check_keys("an intervention", item, ("site", "bins"), ("reads",))
    check_plain(item["bins"], [{NEEDED: ("probe", "map", "weight"), "weight": "a number"}], "bins")
    bins = item["bins"]
    for bin_ in bins:
        _check_keys("a bin", bin_, ("probe", "map", "weight"), ("cloud",))
    parts = {
        f"{name}s": tuple(_unpack_part(bin_[name], tensors) for bin_ in bins if name != "cloud" or name in bin_)
        for name in ("probe", "map", "cloud")
    }
    return {"weights": tuple(float(bin_["weight"]) for bin_ in bins), **parts}


def round_map(transform: Map, rows: torch.Tensor) -> Map:
    """A map with tensors rounded to float16 values, as far as it moves some rows as before (`ROUNDING`).

    Where rows lie far from 0, the errors of slope and shift do not cancel as both do: the shift is taken anew from the
    rounded slope, so that the mean row goes where it went; and stays as it is, or both do, where that is not enough.

    Args:
        transform: the map.
        rows: [n, width], which it is for.

    Example:
        >>> far = AffineMap(torch.tensor([2100.0]), torch.tensor([0.3]))  # of rows about 3000, which it takes there
        >>> rounded = round_map(far, torch.tensor([[2999.0], [3001.0]]))
        >>> rounded.slope == far.slope.half(), rounded.apply(torch.tensor([[3000.0]]), 1.0)
        (tensor([True]), tensor([[3000.]]))
    """
    rows = rows.double()

    def displaced(part: Map) -> torch.Tensor:
        return part.map_tensors(torch.Tensor.double).apply(rows, 1.0) - rows

    exact = displaced(transform)
    half = transform.map_tensors(round_to_half)
    candidates = [half]
    if isinstance(transform, AffineMap) and isinstance(half, AffineMap) and half.slope is not None:
        assert transform.slope is not None
        change = (transform.slope.double() - half.slope.double()) * rows.mean(0)
        shift = (transform.shift.double() + change).to(transform.shift)
        candidates = [replace(half, shift=round_to_half(shift)), replace(half, shift=shift)]
    near = (part for part in candidates if (displaced(part) - exact).norm() <= ROUNDING * exact.norm())
    return next(near, transform)


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
