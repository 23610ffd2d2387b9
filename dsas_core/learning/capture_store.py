"""Captured rows in a folder, a file for each batch of prompts.

It holds what memory cannot, and gives it back a site at a time. A run that was interrupted goes on after the last
batch, and several processes can share the batches. Rows are put together in the order of kinds and prompts, whoever
wrote them and when.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import ArtifactError, DSASError
from ..model.sites import Site
from .capture import Activations, Capture, Key, Shown, label

ABOUT = "about.json"
#: of `Rows`, what is kept of each call
_FIELDS = ("pooled", "prompts", "positions", "position_prompts", "places")


class CaptureStore(Mapping[Key, Activations]):
    """The rows of a capture, read from a folder a site at a time; what `Capture` is for whoever fits.

    Args:
        folder: where they are, or will be.
        about: what they depend on, plain data: model, prompts, settings. A folder of something else is refused.
        sites: all that are captured.
        edges: timesteps that separate the bins.

    Raises:
        ArtifactError: the folder holds what was captured otherwise, or something else.
        DSASError: it cannot be written.

    Example:
        >>> import tempfile
        >>> shards = Shards(tempfile.mkdtemp() + "/rows", about={"model": "tiny"}, sites=[Site("unet.mid")])
        >>> shards.has("source", offset=0), len(shards)
        (False, 0)
    """

    def __init__(
        self, folder: str | Path, about: Mapping[str, Any], sites: Sequence[Site], edges: Sequence[float] = ()
    ) -> None:
        self.folder, self.sites, self.edges = Path(folder), list(sites), tuple(edges)
        self.timeless: set[str] = set()
        self._shown: dict[str, Shown] = {}
        self._keys: dict[Key, list[Path]] = {}
        self._loaded: tuple[Key | None, Activations] = (None, Activations())
        wanted = json.loads(json.dumps({**about, "sites": list(map(str, sites)), "edges": list(edges)}))
        known = self.folder / ABOUT
        if known.is_file():
            there = _read(known)
            other = [key for key in wanted if there.get(key) != wanted[key]]
            if other:
                raise ArtifactError(
                    f"{self.folder} holds what was read otherwise ({', '.join(other)}): choose another folder, or "
                    "delete it"
                )
        elif self.folder.is_dir() and any(not path.match(_draft(known, "*").name) for path in self.folder.iterdir()):
            raise ArtifactError(f"{self.folder} is there and holds something else: choose another folder")
        else:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                _replace(known, json.dumps(wanted, indent=2).encode())
            except OSError as error:
                raise DSASError(f"cannot write into {self.folder}: {error.strerror}; choose another folder") from None

    @property
    def rows(self) -> Mapping[Key, Activations]:
        return self

    def has(self, kind: str, offset: int) -> bool:
        """Whether a batch has been captured, `offset` being the index of its first prompt in its kind."""
        return self._path(kind, offset).is_file()

    def write(self, kind: str, offset: int, capture: Capture, more: Mapping[str, torch.Tensor]) -> None:
        """Keep the rows of one batch, whole or not at all. The capture is empty afterwards.

        Args:
            kind: of prompts.
            offset: the index of the batch's first prompt in its kind.
            capture: what the batch left.
            more: results of the batch to keep beside, by name.
        """
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
        metadata = {"timeless": json.dumps(sorted(capture.timeless)), "order": json.dumps(order)}
        _replace(self._path(kind, offset), save(tensors, metadata=metadata))

    def read(self, kinds: Sequence[str]) -> None:
        """Look through what is there, in the order of kinds, and of prompts within each."""
        from safetensors import safe_open

        self._keys.clear()
        for kind in kinds:
            for path in sorted(self.folder.glob(f"{kind}-*.safetensors")):
                with safe_open(path, framework="pt") as file:
                    metadata = file.metadata()
                self.timeless |= set(json.loads(metadata["timeless"]))
                for name in json.loads(metadata["order"]):  # in which the model visited them
                    number, bin_ = map(int, name.split("."))
                    self._keys.setdefault((self.sites[number], bin_, kind), []).append(path)

    def more(self, kind: str, name: str) -> torch.Tensor:
        """The results of that name of all batches of a kind, in one tensor."""
        from safetensors import safe_open

        parts = []
        for path in sorted(self.folder.glob(f"{kind}-*.safetensors")):
            with safe_open(path, framework="pt") as file:
                parts.append(file.get_tensor(f"more.{name}"))
        return torch.cat(parts)

    def mark(self, kind: str, shown: Shown) -> None:
        """Label the sampled positions of a kind, as `Capture.mark`."""
        self._shown[kind] = shown
        self._loaded = (None, Activations())

    def __getitem__(self, key: Key) -> Activations:
        if self._loaded[0] != key:
            site, bin_, kind = key
            rows = Activations()
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


def _read_into(rows: Activations, path: Path, start: str) -> None:
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
    """What a folder says of itself; nothing where it is not ours."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _draft(path: Path, writer: str) -> Path:
    """Where a file is while it is being written; another process may be at it, or have been stopped."""
    return path.with_name(f".{path.name}.{writer}")


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, whoever writes it beside."""
    draft = _draft(path, str(os.getpid()))
    draft.write_bytes(content)
    draft.replace(path)
