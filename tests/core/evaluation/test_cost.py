"""Time and memory of constructed work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from dsas_core.evaluation import cost

CPU = torch.device("cpu")


def test_time_and_memory_of_work_that_takes_twice_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(cost.time, "perf_counter", lambda: now[0])

    def work() -> None:
        now[0] += 2.0

    @contextmanager
    def hungry() -> Iterator[None]:
        held = torch.ones(2**25)  # 128 MiB
        now[0] += 2.0
        yield
        del held

    result = cost.compare_cost(work, hungry, CPU, rounds=3)
    assert (result["time_ratio"], result["rounds"], result["device"]) == (2.0, 3, "cpu")
    if result["peak_memory"] is not None:
        assert 100 < result["peak_memory_steered"] - result["peak_memory"] < 200


def test_unknown_memory_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cost.peak_memory(torch.device("meta"))() is None
    monkeypatch.setattr(cost, "RESET", tmp_path / "nowhere" / "clear_refs")
    assert cost.peak_memory(CPU)() is None
