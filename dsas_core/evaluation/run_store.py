"""Results of measurements, cached by content in a folder: a stopped run resumes, and several processes share one.

A cell is the unit of measurement: one arm at one strength on one set of prompts. Its key holds everything that its
result depends on, and the key's digest names its folder, so nothing is measured twice. Of the code, the key holds only
the version: take a new folder after changing the code itself.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from ..concept.concept import Concept
from ..errors import ArtifactError, DSASError
from ..learning.prompts.kept import are_private
from ..learning.prompts.prompt_set import PromptSet
from ..model.fingerprints import weights_digest
from ..model.sites import Roots
from ..utils.processes import Share
from ..utils.progress import progress_bar
from ..utils.saving.drafts import remove_left
from ..utils.saving.files import write_files
from ..utils.saving.folders import fill_folder, names_in

IDENTITY, VALUES, CELLS = "run.json", "values.json", "cells"


def identity(roots: Roots, concept: Concept, prompts: PromptSet) -> dict[str, Any]:
    """Plain data that tells a run apart: the model's weights (by its roots), the concept and the prompt file.

    Of private prompts (`prompts.kept.are_private`) the hash.
    """
    content: Any = prompts.to_dict()
    if are_private(concept, prompts):
        content = _hash(content)
    return {"model": weights_digest(roots), "concept": concept.digest, "prompts": content}


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Args:
        key: plain data, everything that the result depends on.
        make: measures, writes further files (pictures) into the given folder, and returns plain data.
    """

    key: Mapping[str, Any]
    make: Callable[[Path], Mapping[str, Any]]

    @property
    def digest(self) -> str:
        """The key's hash, 20 hexadecimal digits."""
        return _hash(self.key)[:20]


@dataclass(frozen=True)
class CellResult:
    """The values of a measured cell, and the folder with its further files."""

    values: Mapping[str, Any]
    folder: Path


class RunStore:
    """A folder of measured cells.

    Args:
        folder: created if missing.
        identity: plain data that tells the run apart (model, concepts, prompts). A folder of another run is refused.
        share: this process's share of the cells, if several processes measure them.
        show_progress: show a bar with the remaining time.

    Raises:
        DSASError: the folder holds another run, or something else, or cannot be written.

    Example:
        >>> import tempfile
        >>> store = RunStore(tempfile.mkdtemp(), {"model": "a table"})
        >>> cell = Cell({"kind": "sum", "of": [1, 2]}, lambda folder: {"sum": 3})
        >>> [result] = store.complete([cell])
        >>> result.values
        {'sum': 3}
    """

    def __init__(
        self,
        folder: str | Path,
        identity: Mapping[str, Any],
        share: Share | None = None,
        show_progress: bool = False,
    ) -> None:
        self.folder, self.share, self.show_progress = Path(folder), share or Share(), show_progress
        if self.share.process == 0:
            _check(self.folder, identity)
            for folder in (self.folder, self.folder / CELLS):
                remove_left(folder)
            if not (self.folder / IDENTITY).is_file():
                write_files({self.folder / IDENTITY: (json.dumps(identity, indent=2, sort_keys=True) + "\n").encode()})
        self.share.wait()
        if self.share.process > 0:
            _check(self.folder, identity)
        self._hidden: tuple[str, ...] = ()

    def hiding(self, *names: str) -> Self:
        """The same store, in whose files the named items of keys are hashes; values are stored as they are."""
        store = copy.copy(self)
        store._hidden = names
        return store

    def complete(self, cells: Sequence[Cell], label: str = "measuring") -> list[CellResult]:
        """Measure the missing cells, wait for those of the other processes, and return all results.

        Args:
            cells: what is needed.
            label: of the progress bar.

        Returns:
            One result a cell, in the order of `cells`.

        Raises:
            DSASError: a cell cannot be measured, or a stored result cannot be read.
        """
        own = cells[self.share.process :: self.share.processes]
        missing = [cell for cell in own if not (self._folder_of(cell) / VALUES).is_file()]
        with progress_bar(len(missing), label, self.show_progress and bool(missing)) as bar:
            for cell in missing:
                self._make(cell)
                bar.update()
        self.share.wait()
        return [self._read(cell) for cell in cells]

    def _folder_of(self, cell: Cell) -> Path:
        return self.folder / CELLS / cell.digest

    def _make(self, cell: Cell) -> None:
        """Measure one cell, with random numbers seeded by its key, so that every process draws the same."""
        with fill_folder(self._folder_of(cell), last=VALUES) as draft, torch.random.fork_rng():
            torch.manual_seed(int(cell.digest[:15], 16))
            try:
                values = cell.make(draft)
            except OSError as error:  # of the measurement, not of the folder
                kind, reason = cell.key.get("kind", "this"), error.strerror or error
                raise DSASError(f"cannot measure {kind}, or keep it in {self.folder}: {reason}") from error
            key = {name: _hash(value) if name in self._hidden else value for name, value in cell.key.items()}
            (draft / "key.json").write_text(json.dumps(key, indent=2, sort_keys=True) + "\n")
            (draft / VALUES).write_text(json.dumps(values) + "\n")

    def _read(self, cell: Cell) -> CellResult:
        path = self._folder_of(cell) / VALUES
        try:
            return CellResult(json.loads(path.read_text()), path.parent)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path} cannot be read ({error}): remove {path.parent} and run again") from None


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check(folder: Path, identity: Mapping[str, Any]) -> None:
    """Raise a DSASError if a folder holds anything but this run."""
    if folder.exists() and not folder.is_dir():
        raise DSASError(f"{folder} is a file: choose a folder")
    path = folder / IDENTITY
    if not path.is_file():
        if names_in(folder):
            raise DSASError(f"{folder} holds something else than a run: choose another folder")
        return
    try:
        stored = json.loads(path.read_text())
    except (ValueError, RecursionError):
        stored = None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}): choose another folder") from None
    if not isinstance(stored, dict):
        raise ArtifactError(f"{path} is damaged, so whose results are beside it is unknown: choose another folder")
    expected = json.loads(json.dumps(identity))
    if differing := sorted(key for key in {*expected, *stored} if expected.get(key) != stored.get(key)):
        raise DSASError(f"{folder} holds another run (another {', another '.join(differing)}): choose another folder")
