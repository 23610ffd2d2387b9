"""Files of concepts of every kind, and what happens to files: odd values, other shapes, damage, exchange."""

from __future__ import annotations

import copy
import functools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save

from dsas_core.concept.builtin import FOLDER
from dsas_core.concept.concept import CONFIG, TENSORS, Concept
from dsas_core.concept.format import FORMAT, pack_concept
from dsas_core.concept.samples import STRIP
from tests.fixtures.every_part import ALL_MAPS, PROBES, make_concept

ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 999, 2**31, 2**63, 10**30, 10**400, -0.0, 0.5, 1.5, 1e-30, 5e-324, 1e30, 1e308,
    -1e308, float("nan"), float("inf"), -float("inf"), "", " ", "x", "é", "\ud800", "../x", "..", "a" * 5000,
    "\x1b[31m", "\n", "\0", "NaN", "1", "linear", "input", "unet", "unet.mid", [], {}, [[]], [{}], [None], [1], [-1, 1],
    [2.0, 1.0], [0, 10**400], ["x"], [0, 4], [4, 0], {"tensor": "x"}, {"tensor": None}, {"tensor": []},
    {"kind": "linear"}, {"kind": []}, {"kind": "identity"}, {"kind": "constant", "value": 7}, {"kind": "product",
    "factors": []}, {"kind": "oracle"}, {"kind": "affine", "shift": None}, {"x": 1}, json.loads("[" * 40 + "]" * 40),
]  # fmt: skip
RAW = [
    b"", b"\0", b"{", b"null", b"[]", b"\xef\xbb\xbf{}", b"\xff\xfe{\0}\0", b"[" * 100_000, b'{"format": 1e400}',
    b'{"format": 2, "format": 2}', b'"' + b"x" * 1000, b"9" * 5000, b"{" * 50_000, b'{"a":' * 5000, b"\x80\x02}q\0.",
]  # fmt: skip
SIZES = (0, 1, 2, 3, 9)
FILLS = (float("nan"), float("inf"), 3e38, -3e38, 1e30, 1e20, 1e13, 65536.0, 1.0, 0.0, -0.0, -1.0, 1e-40, 1e-30)
DTYPES = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int8, torch.bool, torch.complex64)


@dataclass
class Files:
    """The files of a concept as they are to be written: plain data and tensors, and what replaces their bytes."""

    config: Any
    tensors: dict[str, torch.Tensor]
    strip: bytes = b""
    #: name of a file -> changes its bytes
    changes: dict[str, Callable[[bytes], bytes]] = field(default_factory=dict)
    #: name of a file -> puts something else in its place
    places: dict[str, Callable[[Path], object]] = field(default_factory=dict)

    def contents(self) -> dict[str, bytes]:
        tensors = {name: tensor.contiguous().clone() for name, tensor in self.tensors.items()}
        found = {CONFIG: json.dumps(self.config).encode(), TENSORS: save(tensors)}
        found |= {STRIP: self.strip} if self.strip else {}
        return {name: self.changes.get(name, bytes)(content) for name, content in found.items()}

    def write(self, folder: Path) -> None:
        for name, content in self.contents().items():
            (folder / name).write_bytes(content)
        for name, place in self.places.items():
            (folder / name).unlink(missing_ok=True)
            place(folder / name)


@functools.cache
def whole_concepts() -> list[Concept]:
    """Every kind of probe with every kind of map, and the concepts that ship."""
    pairs = [(probe, kind) for probe in PROBES for kind in ALL_MAPS]
    made = [make_concept(probe, kind, seed) for seed, (probe, kind) in enumerate(pairs)]
    return [*made, *(Concept.from_pretrained(path.parent) for path in sorted(FOLDER.glob(f"*/{CONFIG}")))]


@functools.cache
def packed(number: int) -> Files:
    """The files of a concept; every fourth in format 1."""
    concept = whole_concepts()[number]
    strip = concept.samples.strip if concept.samples is not None else b""
    if number % 4:
        return Files(*pack_concept(concept), strip)
    interventions, tensors = concept.by_bins()
    return Files({"format": FORMAT - 1, **concept.settings(), "interventions": interventions}, tensors, strip)


def draw_files(random: Random) -> Files:
    """Files of some concept, undamaged."""
    found = packed(random.randrange(len(whole_concepts())))
    return Files(copy.deepcopy(found.config), dict(found.tensors), found.strip)


def damage(files: Files, random: Random) -> str:
    """Damage files in some way; returns which."""
    weighted = [*[damage_json] * 9, *[damage_tensor] * 7, *[damage_width] * 2, damage_bytes, damage_bytes, *EXCHANGES]
    chosen = random.choice(weighted)
    chosen(files, random)
    return chosen.__name__


def _walk(document: Any, random: Random) -> tuple[Any, Any]:
    """A list or mapping somewhere in a document, and one of its keys; every level is as likely as the next."""
    while True:
        keys = list(document) if isinstance(document, dict) else range(len(document))
        key = random.choice(keys)
        below = document[key]
        if not isinstance(below, dict | list) or not below or random.random() < 0.12:
            return document, key
        document = below


def damage_json(files: Files, random: Random) -> None:
    """Something in the configuration is replaced, left out, renamed, added, doubled, wrapped or moved."""
    place, key = _walk(files.config, random)
    value = place[key]
    way = random.choice(["odd", "odd", "odd", "odd", "out", "rename", "add", "wrap", "move", "scale", "twice"])
    if way == "out" or (way == "rename" and isinstance(place, list)):
        del place[key]
    elif way == "rename":
        place[random.choice([f"{key}s", key.upper(), "", "kind", "tensor", "reads", "clouds", "x" * 2000])] = place.pop(
            key
        )
    elif way == "add" and isinstance(place, dict):
        place[random.choice(["x", "reads", "clouds", "kind", "tensor", "range", "samples"])] = random.choice(ODD)
    elif way == "add":
        place.append(copy.deepcopy(random.choice(place)))
    elif way == "wrap":
        place[key] = random.choice([[value], {"x": value}, [value, value], {"tensor": value}])
    elif way == "move":
        other, place_there = _walk(files.config, random)
        place[key] = copy.deepcopy(other[place_there])
    elif way == "scale" and type(value) in (int, float):
        place[key] = value * random.choice([-1, 0, 1e3, -1e10, 1e40])
    elif way == "twice":
        name = json.dumps(str(key)).encode()
        files.changes[CONFIG] = lambda content: content.replace(name + b":", name + b": 1, " + name + b":", 1)
    else:
        place[key] = copy.deepcopy(random.choice(ODD))


def damage_tensor(files: Files, random: Random) -> None:
    """A tensor has another shape, dtype or values, is missing, has another name, or there is one more."""
    if not files.tensors:
        return damage_json(files, random)
    name = random.choice(list(files.tensors))
    tensor = files.tensors[name]
    way = random.choice(
        ["size", "size", "rank", "dtype", "fill", "fill", "one", "one", "out", "rename", "more", "swap"]
    )
    if way == "size" and tensor.ndim:
        axis = random.randrange(tensor.ndim)
        files.tensors[name] = _resize(tensor, axis, random.choice(SIZES))
    elif way in ("size", "rank"):
        files.tensors[name] = random.choice([tensor[None], tensor[..., None], tensor.flatten(), tensor.sum()])
    elif way == "dtype":
        files.tensors[name] = tensor.to(random.choice(DTYPES))
    elif way == "fill":
        files.tensors[name] = torch.full_like(tensor, random.choice(FILLS), dtype=torch.float32)
    elif way == "one":
        changed = tensor.float().clone()
        if changed.numel():
            changed.view(-1)[random.randrange(changed.numel())] = random.choice(FILLS)
        files.tensors[name] = changed
    elif way == "out":
        del files.tensors[name]
    elif way == "rename":
        files.tensors[f"{name}s"] = files.tensors.pop(name)
    elif way == "more":
        files.tensors[random.choice(["x", "", "__metadata__s", f"{name}.0"])] = tensor
    else:
        other = random.choice(list(files.tensors))
        files.tensors[name], files.tensors[other] = files.tensors[other], tensor
    return None


def damage_width(files: Files, random: Random) -> None:
    """All tensors of a width are of another width, as if the concept were of another model, or broadcast."""
    widths = sorted({tensor.shape[-1] for tensor in files.tensors.values() if tensor.ndim > 1})
    if not widths:
        return damage_json(files, random)
    width, size = random.choice(widths), random.choice(SIZES)
    for name, tensor in files.tensors.items():
        if tensor.ndim and tensor.shape[-1] == width:
            files.tensors[name] = _resize(tensor, tensor.ndim - 1, size)
    return None


def _resize(tensor: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    return tensor.repeat_interleave(max(1, size), axis).narrow(axis, 0, size)


def damage_bytes(files: Files, random: Random) -> None:
    """A file is cut short or goes on, bits of it flip, or it is something else."""
    name = random.choice([CONFIG, CONFIG, TENSORS, TENSORS, TENSORS, STRIP])
    at, bits, raw = random.random(), random.randrange(1, 256), random.choice(RAW)

    def flip(content: bytes, start: int = 0, stop: int | None = None) -> bytes:
        stop = len(content) if stop is None else min(stop, len(content))
        place = start + int(at * max(0, stop - start))
        return content[:place] + bytes([content[place] ^ bits]) + content[place + 1 :] if place < stop else content

    ways: list[Callable[[bytes], bytes]] = [
        lambda content: content[: int(at * len(content))],
        lambda content: content + raw,
        lambda content: raw + content,
        lambda content: raw,
        lambda content: flip(content),
        lambda content: flip(content, 0, 8),
        lambda content: flip(content, 8, 400),
        lambda content: content.replace(b'"data_offsets":[0', b'"data_offsets":[1', 1),
        lambda content: content.replace(b"0.", random_number, 1),
        lambda content: content.decode(errors="replace").encode("utf-16"),
    ]
    random_number = random.choice([b"NaN", b"Infinity", b"1e999", b"00.", b"-0.", b"9" * 5000])
    files.changes[name] = random.choice(ways)


def swap_tensors(files: Files, random: Random) -> None:
    """The tensors are another concept's."""
    files.tensors = dict(draw_files(random).tensors)


def swap_picture(files: Files, random: Random) -> None:
    """The picture is another file, or there is one where none belongs."""
    files.strip = random.choice([b"", b"RIFF", b"GIF89a", files.contents()[CONFIG], *RAW]) or b"x"


def misplace(files: Files, random: Random) -> None:
    """Something that is no file is in a file's place."""
    name = random.choice([CONFIG, TENSORS, STRIP])
    files.places[name] = random.choice(
        [
            Path.mkdir,
            os.mkfifo,
            lambda path: path.symlink_to(path),
            lambda path: path.symlink_to("/dev/zero"),
            lambda path: path.symlink_to("nowhere"),
            lambda path: None,
        ]
    )


EXCHANGES = (swap_tensors, swap_picture, misplace)
