"""Runs: cells are measured once, resumed, shared among processes, and never mixed up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dsas_core import DSASError
from dsas_core.evaluation import Cell, RunStore
from dsas_core.utils.processes import Share

IDENTITY = {"model": "a", "concept": "b"}


class Cells:
    """Ten cells that draw a random number each, and tell which were made."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.made: list[int] = []
        self.fail_at = fail_at

    def cells(self) -> list[Cell]:
        return [Cell({"number": i}, lambda folder, i=i: self.make(folder, i)) for i in range(10)]  # type: ignore[misc]

    def make(self, folder: Path, number: int) -> dict[str, Any]:
        if number == self.fail_at:
            raise KeyboardInterrupt
        self.made.append(number)
        (folder / "drawn.txt").write_text(str(number))
        return {"drawn": float(torch.rand(()))}


def complete_values(run: RunStore, cells: Cells) -> list[float]:
    return [result.values["drawn"] for result in run.complete(cells.cells())]


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    first, again = Cells(), Cells()
    values = complete_values(RunStore(tmp_path / "run", IDENTITY), first)
    assert complete_values(RunStore(tmp_path / "run", IDENTITY), again) == values
    assert (first.made, again.made) == (list(range(10)), [])
    assert len(set(values)) == 10, "each cell draws its own numbers"
    result = RunStore(tmp_path / "run", IDENTITY).complete(again.cells()[3:4])[0]
    assert (result.folder / "drawn.txt").read_text() == "3"


def test_a_stopped_run_resumes(tmp_path: Path) -> None:
    stopped, rest = Cells(fail_at=4), Cells()
    with pytest.raises(KeyboardInterrupt):
        complete_values(RunStore(tmp_path / "run", IDENTITY), stopped)
    values = complete_values(RunStore(tmp_path / "run", IDENTITY), rest)
    assert (stopped.made, rest.made) == ([0, 1, 2, 3], [4, 5, 6, 7, 8, 9])
    assert values == complete_values(RunStore(tmp_path / "whole", IDENTITY), Cells())
    assert not list((tmp_path / "run" / "cells").glob(".*")), "nothing half-written is left"


def test_processes_share_the_work_and_see_the_same(tmp_path: Path) -> None:
    alone = complete_values(RunStore(tmp_path / "alone", IDENTITY), Cells())
    shares = [Cells(), Cells()]
    other = RunStore(tmp_path / "shared", IDENTITY, Share(1, 2))

    def meanwhile() -> None:
        """What the second process does until the first waits for it."""
        for cell in shares[1].cells()[1::2]:
            other._make(cell)

    run = RunStore(tmp_path / "shared", IDENTITY, Share(0, 2))
    run.share = Share(0, 2, meanwhile)
    assert complete_values(run, shares[0]) == alone
    assert shares[0].made == [0, 2, 4, 6, 8]
    assert shares[1].made == [1, 3, 5, 7, 9]


def test_the_callers_random_numbers_are_its_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    first = torch.rand(())
    complete_values(RunStore(tmp_path / "run", IDENTITY), Cells())
    assert torch.equal(torch.stack([first, torch.rand(())]), expected)


def test_another_run_is_refused(tmp_path: Path) -> None:
    RunStore(tmp_path / "run", IDENTITY)
    with pytest.raises(DSASError, match=r"holds another run \(another concept\): choose another folder"):
        RunStore(tmp_path / "run", {**IDENTITY, "concept": "c"})
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("x")
    with pytest.raises(DSASError, match="holds something else than a run"):
        RunStore(tmp_path / "notes", IDENTITY)
    with pytest.raises(DSASError, match="is a file: choose a folder"):
        RunStore(tmp_path / "notes" / "mine.txt", IDENTITY)
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(DSASError, match="is damaged"):
        RunStore(tmp_path / "run", IDENTITY)


def test_a_damaged_cell_says_what_to_do(tmp_path: Path) -> None:
    run, cells = RunStore(tmp_path / "run", IDENTITY), Cells()
    run.complete(cells.cells()[:1])
    (tmp_path / "run" / "cells" / cells.cells()[0].digest / "values.json").write_text("{")
    with pytest.raises(DSASError, match=r"cannot be read .*: remove .* and run again"):
        run.complete(cells.cells()[:1])


def test_keys_tell_cells_apart() -> None:
    keys = [{"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 1, "b": 3}]
    digests = [Cell(key, lambda folder: {}).digest for key in keys]
    assert digests[0] == digests[1] != digests[2]
    assert json.dumps(keys[0])
