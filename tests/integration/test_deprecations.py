"""Import paths that the README or the docs named before the modules moved: they work for one release, and warn."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings

import pytest

#: old module -> new module, and names that people imported from it
MOVED = {
    "dsas_core.llm.data": ("dsas_core.llm.learning.datasets", ["prompt_set", "read_scored"]),
    "dsas_core.llm.toxicity": ("dsas_core.llm.evaluation.toxicity", ["scorer"]),
    "dsas_core.llm.evaluate": ("dsas_core.llm.evaluation.evaluate", ["evaluate"]),
    "dsas_diffusion.evaluate": ("dsas_diffusion.evaluation.evaluate", ["evaluate"]),
}


@pytest.mark.parametrize(("old", "name"), [(old, name) for old, (_, names) in MOVED.items() for name in names])
def test_the_old_path_gives_the_same_object_and_warns(old: str, name: str) -> None:
    new, _ = MOVED[old]
    with pytest.warns(DeprecationWarning, match=rf"{old}.{name} is {new}.{name} now"):
        value = getattr(importlib.import_module(old), name)
    assert value is getattr(importlib.import_module(new), name)


def test_what_was_never_there_is_an_ordinary_error() -> None:
    with pytest.raises(ImportError), warnings.catch_warnings():
        from dsas_core.llm.data import no_such_name  # type: ignore[attr-defined]  # noqa: F401


def test_the_harness_runs_by_its_old_name() -> None:
    pytest.importorskip("lm_eval")
    command = [sys.executable, "-m", "dsas_core.llm.harness", "--help"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr
    assert "lm_eval_harness now" in run.stderr
