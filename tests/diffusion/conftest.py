"""A tiny pipeline in a folder, a concept learned on it, and a way to run commands; a tiny CLIP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsas_diffusion import cli
from tests.fixtures.judges import random_banana_with_place
from tests.fixtures.models import build_flow_pipe
from tests.fixtures.vision_models import save_clip

PHRASES = ("--from", "banana", "--to", "blurred banana")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a pipeline."""
    folder = tmp_path_factory.mktemp("model")
    pipe = build_flow_pipe(folder / "tokenizer")
    pipe.save_pretrained(folder / "pipeline")
    return str(folder / "pipeline")


@pytest.fixture(scope="session")
def concept(model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a concept that was learned from two phrases."""
    folder = tmp_path_factory.mktemp("concepts") / "banana"
    learned = ["learn", "--model", model, *PHRASES, "--out", str(folder), "--steps", "2", "--count", "12", "--quiet"]
    assert cli.main(learned) == 0
    return str(folder)


@pytest.fixture
def one_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learning tries a single unit: for tests of what has nothing to do with how it is chosen."""
    for module in ("dsas_core.learning.held_out_trial", "dsas_diffusion.learning.trial.held_out_trial"):
        monkeypatch.setattr(f"{module}.units_of", lambda _: (1.0,))


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny CLIP."""
    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder)
    return folder


@pytest.fixture
def dsas(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command: its exit code, and what it put on standard output and standard error."""

    def run(*argv: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main([str(argument) for argument in argv])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="session")
def placed(tiny_pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a concept that is seen in a part of each picture."""
    return str(random_banana_with_place(tiny_pipe).save_pretrained(tmp_path_factory.mktemp("placed") / "b"))
