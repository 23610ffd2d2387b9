"""What is read of a model, kept in a folder: what memory would hold, whoever read it and however often it stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from dsas_core.learning.capture_store import CaptureStore
from dsas_core.learning.recipe import Recipe
from dsas_core.utils.processes import Share
from dsas_diffusion import Concept, DSASError, Lesson, learn
from dsas_diffusion.generation import pictures
from dsas_diffusion.pipelines.adapter import PipelineAdapter
from tests.diffusion.learning.test_learn import PROMPTS

SETTINGS: dict[str, Any] = {"count": 8, "steps": 2, "batch": 4, "sites": "denoiser", "seed": 5}
ROOT = Path(__file__).resolve().parents[3]


pytestmark = pytest.mark.usefixtures("one_unit")


@pytest.fixture
def expected(tiny_pipe: Any, one_unit: None) -> Concept:
    """What is learned from memory."""
    return _expected(tiny_pipe)


@cache
def _expected(pipe: Any) -> Concept:
    return learn(pipe, PROMPTS, **SETTINGS)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Prompts that are drawn while they are read."""
    found: list[str] = []

    def noted(adapter: PipelineAdapter, texts: list[str], *settings: Any) -> Any:
        found.extend(texts)
        return pictures.latents_of(adapter, texts, *settings)

    monkeypatch.setitem(Lesson._capture.__globals__, "latents_of", noted)
    return found


def test_it_is_what_memory_holds(tiny_pipe: Any, expected: Concept, tmp_path: Path) -> None:
    kept, held = Lesson(tiny_pipe, PROMPTS, **SETTINGS, store=tmp_path / "kept"), Lesson(tiny_pipe, PROMPTS, **SETTINGS)
    capture, other = (lesson.captured(Recipe()) for lesson in (kept, held))
    assert list(capture.rows) != []
    assert set(capture.rows) == set(other.rows)
    for key, rows in other.rows.items():
        again = capture.rows[key]
        assert again.count == rows.count
        assert again.sampled == rows.sampled
        for name in ("pooled", "prompts", "positions", "position_prompts", "places"):
            assert again.gathered(name).equal(rows.gathered(name)), name
    assert capture.timeless == other.timeless
    assert kept.learn() == expected
    assert {str(item.site) for item in expected.interventions if item.read_only} == set(
        expected.evidence["mask"]["sites"]
    )


def test_what_was_read_is_not_read_again(
    tiny_pipe: Any, expected: Concept, tmp_path: Path, drawn: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the third batch: it goes on there."""
    lesson = Lesson(tiny_pipe, PROMPTS, **SETTINGS, store=tmp_path)
    every = [text for texts in lesson.fitting.values() for text in texts]
    capture, captures = Lesson._capture, 0

    def stopped(self: Lesson, *given: Any, **more: Any) -> Any:
        nonlocal captures
        captures += 1
        if captures == 3:
            raise KeyboardInterrupt
        return capture(self, *given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Lesson, "_capture", stopped)
        with pytest.raises(KeyboardInterrupt):
            lesson.captured(Recipe())
    before = len(drawn)
    assert 0 < before < len(every)
    assert learn(tiny_pipe, PROMPTS, **SETTINGS, store=tmp_path) == expected
    assert drawn == every
    assert learn(tiny_pipe, PROMPTS, **SETTINGS, store=tmp_path) == expected
    assert drawn == every


def test_two_processes_read_what_one_does(
    tiny_pipe: Any, expected: Concept, tmp_path: Path, drawn: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each its own batches, and together all; who comes to the end first waits for the other."""
    second, first = (Lesson(tiny_pipe, PROMPTS, **SETTINGS, store=tmp_path) for _ in range(2))
    waited: list[int] = []

    def other() -> None:
        waited.append(0)
        share = Share(1, 2, lambda: waited.append(1))
        monkeypatch.setitem(Lesson._capture.__globals__, "process_share", lambda **_: share)
        second.captured(Recipe())

    monkeypatch.setitem(Lesson._capture.__globals__, "process_share", lambda **_: Share(0, 2, other))
    assert first.learn() == expected
    assert waited == [0, 1]
    assert sorted(drawn) == sorted(text for texts in first.fitting.values() for text in texts)


def test_of_private_prompts_a_folder_holds_hashes_and_is_known_by_them(
    tiny_pipe: Any, tmp_path: Path, drawn: list[str]
) -> None:
    first, again, other = (
        Lesson(tiny_pipe, PROMPTS, **{**SETTINGS, **more}, store=tmp_path, keep_prompts="hash")
        for more in ({}, {}, {"seed": 6})
    )
    first.captured(Recipe())
    about = (tmp_path / "about.json").read_text()
    assert not [text for texts in first.fitting.values() for text in texts if text in about]
    drawn.clear()
    again.captured(Recipe())
    assert not drawn
    with pytest.raises(DSASError, match=r"holds what was read otherwise \(prompts, seed\)"):
        other.captured(Recipe())


@pytest.mark.parametrize(
    ("other", "named"), [({"seed": 6}, "prompts, seed"), ({"steps": 3}, "settings"), ({"sites": "text"}, "sites")]
)
def test_a_folder_of_something_else_is_refused(
    tiny_pipe: Any, tmp_path: Path, drawn: list[str], other: dict[str, Any], named: str
) -> None:
    Lesson(tiny_pipe, PROMPTS, **SETTINGS, store=tmp_path).captured(Recipe())
    drawn.clear()
    with pytest.raises(DSASError, match=rf"holds what was read otherwise \({named}\): choose another folder"):
        Lesson(tiny_pipe, PROMPTS, **{**SETTINGS, **other}, store=tmp_path).captured(Recipe())
    assert not drawn


def test_a_folder_that_holds_other_files_is_left_alone(tiny_pipe: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DSASError, match="is there and holds something else"):
        Lesson(tiny_pipe, PROMPTS, **SETTINGS, store=tmp_path).captured(Recipe())
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_another_scheduler_reads_otherwise(tiny_pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(self: Lesson, *_: Any, **__: Any) -> None:
        raise RuntimeError

    scheduler = tiny_pipe.scheduler
    monkeypatch.setattr(Lesson, "_capture", stopped)
    with pytest.raises(RuntimeError):
        Lesson(tiny_pipe, PROMPTS, **SETTINGS, store=tmp_path).captured(Recipe())
    monkeypatch.setattr(tiny_pipe, "scheduler", type(scheduler).from_config(scheduler.config, flow_shift=7.0))
    with pytest.raises(DSASError, match=r"holds what was read otherwise \(scheduler\)"):
        Lesson(tiny_pipe, PROMPTS, **SETTINGS, store=tmp_path).captured(Recipe())


@pytest.mark.parametrize(
    ("file", "refused"), [(".about.json.123", ""), ("about.json", "read otherwise"), ("notes.json", "something else")]
)
def test_a_folder_that_another_process_begins_to_write(file: str, refused: str, tmp_path: Path) -> None:
    """Whoever comes second may find its draft, or that of one that was stopped."""
    (tmp_path / file).write_text('["of somebody else')
    with pytest.raises(DSASError, match=refused) if refused else nullcontext():
        CaptureStore(tmp_path, {"seed": 0}, [])
    assert (tmp_path / "about.json").is_file() == (file != "notes.json")


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DSASError, match=r"cannot write into \S*file: File exists; choose another folder"):
        CaptureStore(tmp_path / "file", {}, [])


@pytest.mark.slow
def test_the_command_shares_it_among_processes(model: str, tmp_path: Path) -> None:
    """Two that torchrun starts learn the concept that one learns."""
    learned = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        command += ["-m", "dsas_diffusion.cli", "learn", "--model", model, "--from", "banana", "--to", "blurred banana"]
        command += ["--count", "8", "--steps", "2", "--sites", "denoiser", "--quiet", "--device", "cpu"]
        command += ["--store", str(folder / "read"), "--out", str(folder / "concept")]
        alone = {"OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]}
        subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **alone}, capture_output=True, timeout=300)
        learned[processes] = Concept.from_pretrained(folder / "concept")
        assert json.loads((folder / "read" / "about.json").read_text())["batch"] == 8
    for one, two in zip(learned[1].interventions, learned[2].interventions, strict=True):
        assert one.site == two.site
        for a, b in zip(one.probes, two.probes, strict=True):
            x = torch.randn(1, 64, a.tensors()[0].shape[-1])
            assert torch.allclose(a.score(x), b.score(x), atol=1e-4)
