"""Captured rows in a folder, a file for each batch of prompts.

What memory cannot hold lies there, and comes back a site at a time; a run that was interrupted goes on behind the last
batch; and several processes share the batches among them. Rows are put together in the order of kinds and prompts,
whoever wrote them and when.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .capture import Capture, Key, Rows, Shown, label
from .errors import DSASError
from .sites import Site

ABOUT = "about.json"
#: of `Rows`, what is kept of each call
_FIELDS = ("pooled", "prompts", "positions", "position_prompts", "places")


class Shards(Mapping[Key, Rows]):
    """The rows of a capture, read from a folder a site at a time; what `Capture` is for whoever fits.

    Args:
        folder: where they are, or will be.
        about: what they depend on, plain data: model, prompts, settings. A folder of something else is refused.
        sites: all that are captured.
        edges: timesteps that separate the bins.

    Raises:
        DSASError: the folder holds what was read otherwise, or something else.
    """

    def __init__(
        self, folder: str | Path, about: Mapping[str, Any], sites: Sequence[Site], edges: Sequence[float] = ()
    ) -> None:
        self.folder, self.sites, self.edges = Path(folder), list(sites), tuple(edges)
        self.timeless: set[str] = set()
        self._shown: dict[str, Shown] = {}
        self._keys: dict[Key, list[Path]] = {}
        self._loaded: tuple[Key | None, Rows] = (None, Rows())
        told = json.loads(json.dumps({**about, "sites": list(map(str, sites)), "edges": list(edges)}))
        known = self.folder / ABOUT
        if known.is_file():
            found = _read(known)
            other = [key for key in told if found.get(key) != told[key]]
            if other:
                raise DSASError(
                    f"{self.folder} holds what was read otherwise ({', '.join(other)}): choose another folder, or "
                    "delete it"
                )
        elif self.folder.is_dir() and any(not path.match(_draft(known, "*").name) for path in self.folder.iterdir()):
            raise DSASError(f"{self.folder} is there and holds something else: choose another folder")
        else:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                _replace(known, json.dumps(told, indent=2).encode())
            except OSError as error:
                raise DSASError(f"cannot write into {self.folder}: {error.strerror}; choose another folder") from None

    @property
    def rows(self) -> Mapping[Key, Rows]:
        return self

    def has(self, kind: str, offset: int) -> bool:
        """Whether a batch has been read, its first prompt being the so-manieth of its kind."""
        return self._path(kind, offset).is_file()

    def write(self, kind: str, offset: int, capture: Capture, more: Mapping[str, torch.Tensor]) -> None:
        """Keep what one batch showed, and what came of it; whole or not at all. The capture is empty afterwards."""
        from safetensors.torch import save

        tensors = {f"more.{name}": tensor.cpu().contiguous() for name, tensor in more.items()}
        order = [f"{self.sites.index(site)}.{bin_}" for site, bin_, _ in capture.rows]
        for key in list(capture.rows):
            (site, bin_, _), rows = key, capture.rows.pop(key)  # not in memory twice
            start = f"{self.sites.index(site)}.{bin_}"
            for name in _FIELDS:
                parts = getattr(rows, name)
                if parts:
                    tensors[f"{start}.{name}"] = torch.cat(parts)
                    tensors[f"{start}.{name}.calls"] = torch.tensor([len(part) for part in parts])
            tensors[f"{start}.count"] = torch.tensor(rows.count)
        told = {"timeless": json.dumps(sorted(capture.timeless)), "order": json.dumps(order)}
        _replace(self._path(kind, offset), save(tensors, metadata=told))

    def read(self, kinds: Sequence[str]) -> None:
        """Look through what is there, in the order of kinds, and of prompts within each."""
        from safetensors import safe_open

        self._keys.clear()
        for kind in kinds:
            for path in sorted(self.folder.glob(f"{kind}-*.safetensors")):
                with safe_open(path, framework="pt") as file:
                    told = file.metadata()
                self.timeless |= set(json.loads(told["timeless"]))
                for name in json.loads(told["order"]):  # that in which the model came by
                    number, bin_ = map(int, name.split("."))
                    self._keys.setdefault((self.sites[number], bin_, kind), []).append(path)

    def more(self, kind: str, name: str) -> torch.Tensor:
        """What came of all batches of a kind."""
        from safetensors import safe_open

        parts = []
        for path in sorted(self.folder.glob(f"{kind}-*.safetensors")):
            with safe_open(path, framework="pt") as file:
                parts.append(file.get_tensor(f"more.{name}"))
        return torch.cat(parts)

    def mark(self, kind: str, told: Shown) -> None:
        """Label the sampled positions of a kind, as `Capture.mark`."""
        self._shown[kind] = told
        self._loaded = (None, Rows())

    def __getitem__(self, key: Key) -> Rows:
        if self._loaded[0] != key:
            site, bin_, kind = key
            rows = Rows()
            for path in self._keys[key]:
                _read_into(rows, path, f"{self.sites.index(site)}.{bin_}")
            if kind in self._shown:
                label(rows, self._shown[kind])
            self._loaded = key, rows
        return self._loaded[1]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def _path(self, kind: str, offset: int) -> Path:
        return self.folder / f"{kind}-{offset:06d}.safetensors"


def _read_into(rows: Rows, path: Path, start: str) -> None:
    """Add what one file has of a site and bin, call by call."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        there = set(file.keys())
        rows.count = max(rows.count, int(file.get_tensor(f"{start}.count")))
        for name in _FIELDS:
            if f"{start}.{name}" in there:
                calls = file.get_tensor(f"{start}.{name}.calls").tolist()
                getattr(rows, name).extend(file.get_tensor(f"{start}.{name}").split(calls))


def _read(path: Path) -> dict[str, Any]:
    """What a folder tells about itself; nothing where it is not ours."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = {}
    return found if isinstance(found, dict) else {}


def _draft(path: Path, writer: str) -> Path:
    """Where a file is while it is being written; another process may be at it, or have been stopped."""
    return path.with_name(f".{path.name}.{writer}")


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, whoever writes it beside."""
    draft = _draft(path, str(os.getpid()))
    draft.write_bytes(content)
    draft.replace(path)
