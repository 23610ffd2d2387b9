"""Captured activations in a folder, one file for each batch of prompts.

It holds what memory cannot, and is read back one site at a time. A run that was interrupted continues after the last
batch, and several processes can share the batches. Batches are concatenated in the order of kinds and prompts,
whichever process wrote them and when.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..errors import ArtifactError, DSASError, quote
from ..model.sites import Site
from ..utils.saving.drafts import remove_left
from ..utils.saving.files import write_files
from ..utils.saving.folders import names_in
from .capture import Activations, Capture, Key, LabelPositions

ABOUT = "about.json"
#: what earlier versions left where they were killed before they had written that
_LEFT = rf"\.{re.escape(ABOUT)}\.\d+"
#: the fields of `Activations` that are stored
_FIELDS = ("pooled", "prompts", "positions", "position_prompts", "places")


class CaptureStore(Mapping[Key, Activations]):
    """The activations of a capture, read from a folder one site at a time; fitting uses it like a `Capture`.

    Args:
        folder: where the files are, or will be written.
        about: what the activations depend on, as plain data: model, prompts, settings. A folder that was written with
            other values is refused.
        sites: all sites that are captured.
        edges: ascending timesteps that separate the bins.

    Raises:
        ArtifactError: the folder holds activations that were captured otherwise, or other files.
        DSASError: the folder, or a batch, cannot be written.

    Example:
        >>> import tempfile
        >>> store = CaptureStore(tempfile.mkdtemp() + "/rows", about={"model": "tiny"}, sites=[Site("unet.mid")])
        >>> store.has("source", offset=0), len(store)
        (False, 0)
    """

    def __init__(
        self, folder: str | Path, about: Mapping[str, Any], sites: Sequence[Site], edges: Sequence[float] = ()
    ) -> None:
        self.folder, self.sites, self.edges = Path(folder), list(sites), tuple(edges)
        self.timeless: set[str] = set()
        self._labels: dict[str, LabelPositions] = {}
        self._paths: dict[Key, list[Path]] = {}
        self._loaded: tuple[Key | None, Activations] = (None, Activations())
        expected = json.loads(json.dumps({**about, "sites": list(map(str, sites)), "edges": list(edges)}))
        path = self.folder / ABOUT
        remove_left(self.folder)
        if path.is_file():
            stored = _read_object(path)
            different = ", ".join(key for key in expected if stored.get(key) != expected[key])
            if different:
                raise ArtifactError(
                    f"{self.folder} holds what was read otherwise ({different}): choose another folder, or delete it"
                )
        elif self.folder.exists() and not self.folder.is_dir():
            raise DSASError(f"cannot write into {self.folder}: File exists; choose another folder")
        elif other := [name for name in names_in(self.folder) if not re.fullmatch(_LEFT, name)]:
            raise ArtifactError(f"{self.folder} is there and holds something else ({other[0]}): choose another folder")
        else:
            write_files({path: json.dumps(expected, indent=2).encode()})

    @property
    def rows(self) -> Mapping[Key, Activations]:
        return self

    def has(self, kind: str, offset: int) -> bool:
        """Whether a batch has been captured; `offset` is the index of its first prompt in its kind."""
        return self._path(kind, offset).is_file()

    def write(self, kind: str, offset: int, capture: Capture, extra: Mapping[str, torch.Tensor]) -> None:
        """Store the activations of one batch, all or nothing. The capture is empty afterwards.

        Args:
            kind: kind of prompts.
            offset: index of the batch's first prompt in its kind.
            capture: activations of the batch.
            extra: other tensors of the batch to store beside, by name.
        """
        from safetensors.torch import save

        tensors = {f"more.{name}": tensor.cpu().contiguous() for name, tensor in extra.items()}
        prefixes = {key: self._prefix(key) for key in capture.rows}
        for key, prefix in prefixes.items():
            rows = capture.rows.pop(key)  # not in memory twice
            for name in _FIELDS:
                parts = getattr(rows, name)
                if parts:
                    tensors[f"{prefix}.{name}"] = torch.cat(parts)
                    tensors[f"{prefix}.{name}.calls"] = torch.tensor([len(part) for part in parts])
            tensors[f"{prefix}.count"] = torch.tensor(rows.count)
        metadata = {"timeless": json.dumps(sorted(capture.timeless)), "order": json.dumps([*prefixes.values()])}
        write_files({self._path(kind, offset): save(tensors, metadata=metadata)})

    def read(self, kinds: Sequence[str]) -> None:
        """Index the files, in the order of kinds, and of prompts within each."""
        self._paths.clear()
        for kind in kinds:
            for path in self._paths_of(kind):
                with _open(path) as file:
                    metadata = file.metadata()
                self.timeless |= set(json.loads(metadata["timeless"]))
                for prefix in json.loads(metadata["order"]):  # in which the model visited them
                    number, bin_ = map(int, prefix.split("."))
                    self._paths.setdefault((self.sites[number], bin_, kind), []).append(path)

    def read_extra(self, kind: str, name: str) -> torch.Tensor:
        """The extra tensors of that name of all batches of a kind, concatenated."""
        parts = []
        for path in self._paths_of(kind):
            with _open(path) as file:
                parts.append(file.get_tensor(f"more.{name}"))
        return torch.cat(parts)

    def mark(self, kind: str, label_positions: LabelPositions) -> None:
        """Label the sampled positions of a kind, as `Capture.mark`."""
        self._labels[kind] = label_positions
        self._loaded = (None, Activations())

    def __getitem__(self, key: Key) -> Activations:
        if self._loaded[0] != key:
            rows = Activations()
            for path in self._paths[key]:
                _read_into(rows, path, self._prefix(key))
            if key[2] in self._labels:
                rows.mark(self._labels[key[2]])
            self._loaded = key, rows
        return self._loaded[1]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __contains__(self, key: object) -> bool:
        return key in self._paths  # without reading it

    def _prefix(self, key: Key) -> str:
        """What the names of a key's tensors begin with."""
        site, bin_, _ = key
        return f"{self.sites.index(site)}.{bin_}"

    def _path(self, kind: str, offset: int) -> Path:
        return self.folder / f"{kind}-{offset:06d}.safetensors"

    def _paths_of(self, kind: str) -> list[Path]:
        return sorted(self.folder.glob(f"{kind}-*.safetensors"))


#: captured activations, in memory or in a folder
Captured = Capture | CaptureStore


def _read_into(rows: Activations, path: Path, prefix: str) -> None:
    """Append what one file holds of a site and bin, one tensor for each forward pass."""
    with _open(path) as file:
        names = set(file.keys())
        rows.count = max(rows.count, int(file.get_tensor(f"{prefix}.count")))
        for name in _FIELDS:
            if f"{prefix}.{name}" in names:
                calls = file.get_tensor(f"{prefix}.{name}.calls").tolist()
                getattr(rows, name).extend(file.get_tensor(f"{prefix}.{name}").split(calls))


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty where the file holds anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """A stored batch.

    Raises:
        ArtifactError: it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged ({quote(error)}): delete it, and it is captured again") from None
