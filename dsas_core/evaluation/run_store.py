"""Runs: what is measured, kept by content in a folder. A run that was stopped goes on; several processes share one.

A cell is what is measured at once: one arm at one strength on one set of prompts. Its key holds what its result depends
on, and names the folder that keeps it, so nothing is measured twice. Of the code it holds the version alone: start a
new folder when you change the code itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..concept.concept import Concept
from ..errors import ArtifactError, DSASError
from ..learning.prompts.prompt_set import PromptSet
from ..model.fingerprints import weights_digest
from ..model.sites import Roots
from ..utils.files import replace_folder
from ..utils.progress import progress_bar

IDENTITY, VALUES, CELLS = "run.json", "values.json", "cells"


def identity(roots: Roots, concept: Concept, prompts: PromptSet) -> dict[str, Any]:
    """What a run is about: with another model (its roots), concept or prompt file it is another run."""
    return {"model": weights_digest(roots), "concept": concept.digest, "prompts": prompts.to_dict()}


@dataclass(frozen=True)
class Cell:
    """Something to measure.

    Args:
        key: plain data, everything that the result depends on.
        make: measures; writes further files (pictures) into the folder that it is given, returns plain data.
    """

    key: Mapping[str, Any]
    make: Callable[[Path], Mapping[str, Any]]

    @property
    def digest(self) -> str:
        """A name for the key, 20 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Done:
    """What a cell gave: its values, and the folder with its further files."""

    values: Mapping[str, Any]
    folder: Path


class RunStore:
    """A folder of cells.

    Args:
        folder: made where it is missing.
        identity: plain data, what the run is about (model, concepts, prompts). A folder of another run is refused.
        process, processes: this process and how many share the work; each makes its part of the cells.
        wait: returns when every process has called it.
        show_progress: a bar with the remaining time.

    Raises:
        DSASError: the folder holds another run, or something else.
    """

    def __init__(
        self,
        folder: str | Path,
        identity: Mapping[str, Any],
        *,
        process: int = 0,
        processes: int = 1,
        wait: Callable[[], object] = lambda: None,
        show_progress: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.process, self.processes, self.wait, self.show_progress = process, processes, wait, show_progress
        if process == 0:
            _check(self.folder, identity)
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                if not (self.folder / IDENTITY).is_file():
                    (self.folder / IDENTITY).write_text(json.dumps(identity, indent=2, sort_keys=True) + "\n")
            except OSError as error:
                raise DSASError(f"cannot write {self.folder}: {error.strerror}") from None
        wait()
        if process > 0:
            _check(self.folder, identity)

    def complete(self, cells: Sequence[Cell], label: str = "measuring") -> list[Done]:
        """Make the cells that are missing, wait for those of the other processes, and give all in their order."""
        mine = [cell for i, cell in enumerate(cells) if i % self.processes == self.process]
        missing = [cell for cell in mine if not (self._place(cell) / VALUES).is_file()]
        with progress_bar(len(missing), label, self.show_progress and bool(missing)) as bar:
            for cell in missing:
                self._make(cell)
                bar.update()
        self.wait()
        return [self._read(cell) for cell in cells]

    def _place(self, cell: Cell) -> Path:
        return self.folder / CELLS / cell.digest

    def _make(self, cell: Cell) -> None:
        """Measure one cell; whatever draws at random draws the same in every process."""
        with replace_folder(self._place(cell)) as draft, torch.random.fork_rng():
            torch.manual_seed(int(cell.digest[:15], 16))
            try:
                values = cell.make(draft)
            except OSError as error:  # of whatever is measured, not of the folder
                raise DSASError(f"cannot measure {cell.key.get('kind', 'this')}: {error}") from error
            (draft / "key.json").write_text(json.dumps(cell.key, indent=2, sort_keys=True) + "\n")
            (draft / VALUES).write_text(json.dumps(values) + "\n")

    def _read(self, cell: Cell) -> Done:
        path = self._place(cell) / VALUES
        try:
            return Done(json.loads(path.read_text()), path.parent)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path} cannot be read ({error}): remove {path.parent} and run again") from None


def _check(folder: Path, identity: Mapping[str, Any]) -> None:
    """Raise a DSASError when a folder holds anything but this run."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise DSASError(f"{folder} is a file: choose a folder")
    path = folder / IDENTITY
    if not path.is_file():
        if any(folder.iterdir()):
            raise DSASError(f"{folder} holds something else than a run: choose another folder")
        return
    try:
        stored = json.loads(path.read_text())
    except ValueError:
        raise ArtifactError(f"{path} is damaged: choose another folder") from None
    expected = json.loads(json.dumps(identity))
    other = sorted(key for key in {*expected, *stored} if expected.get(key) != stored.get(key))
    if other:
        raise DSASError(f"{folder} holds another run (another {', another '.join(other)}): choose another folder")
