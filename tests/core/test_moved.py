"""Stubs of programs that are now in the repository only: they run there, and say so elsewhere."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dsas_core.utils import moved

STUBS = ("dsas_core.llm.builtin.training", "dsas_diffusion.builtin.concepts", "dsas_diffusion.builtin.training")


@pytest.mark.parametrize("stub", STUBS)
def test_a_stub_runs_the_program_of_the_repository(
    stub: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [stub, "--help"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(stub, run_name="__main__")
    assert not ended.value.code
    assert "--out" in capsys.readouterr().out


def test_without_a_repository_there_is_one_clear_line(tmp_path: Path) -> None:
    """The helper alone, where nothing else is."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    shutil.copy(moved.__file__, tmp_path / "a" / "b" / "moved.py")
    code = "from moved import run_in_repository; run_in_repository('benchmarks.builtin_models.concepts')"
    environment = {**os.environ, "PYTHONPATH": "a/b"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "benchmarks/builtin_models/concepts.py" in line
    assert "python -m benchmarks.builtin_models.concepts" in line
