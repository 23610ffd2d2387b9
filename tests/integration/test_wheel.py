"""What is built and handed on works where the repository is not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.common.records import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PACKAGES = ("dsas_core", "dsas_diffusion")
#: what a build reads
SOURCES = (*PACKAGES, "prompts", "pyproject.toml", "setup.py", "README.md", "LICENSE")
MESSAGE = "you useless clown! my washer does not start."


def run(*command: object, cwd: Path, **environment: str) -> str:
    """What a command prints; it must succeed."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**kept, "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, and the wheel that was built from it; of a copy, as building writes."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("built")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=ignored)
        else:
            shutil.copy(source, copy / name)
    run("-m", "build", "--no-isolation", "--outdir", out, copy, cwd=out)
    return out


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder with the wheel in it."""
    (wheel,) = built.glob("*.whl")
    target = tmp_path_factory.mktemp("installed")
    run("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel, cwd=built)
    return target


def test_nothing_is_missing(built: Path) -> None:
    """Every file of the packages, the prompts among them, is in both."""
    files = [file for name in PACKAGES for file in (ROOT / name).rglob("*") if file.is_file()]
    ours = {str(file.relative_to(ROOT)) for file in files if "__pycache__" not in file.parts}
    prompts = {file.name for file in (ROOT / "prompts").glob("*.yaml")}
    assert {f"{name}/py.typed" for name in PACKAGES} <= ours
    assert prompts
    (wheel,), (source,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    assert (ours | {f"dsas_diffusion/prompts/{name}" for name in prompts}) - inside == set()
    assert [name for name in inside if name.split("/")[0] not in PACKAGES and ".dist-info/" not in name] == []
    with tarfile.open(source) as tar:
        inside = {name.partition("/")[2] for name in tar.getnames()}
    assert (ours | {f"prompts/{name}" for name in prompts}) - inside == set()


def test_metadata(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
    for line in ("License-Expression: Apache-2.0", "Project-URL: Paper, https://arxiv.org/abs/2512.03661"):
        assert line in metadata.splitlines()
    assert "# DSAS: steer a concept, leave the rest alone" in metadata


def test_it_draws_and_talks_elsewhere(installed: Path, tmp_path: Path) -> None:
    """A picture with a concept that ships, and an answer, by the command line."""
    here = {"cwd": tmp_path, "PYTHONPATH": str(installed)}
    told = run("-c", "import dsas_core, dsas_diffusion; print(dsas_core.__file__, dsas_diffusion.__file__)", **here)
    assert all(Path(path).is_relative_to(installed) for path in told.split())
    drawing = ("-p", "a banana on the grass", "--concept", "builtin:banana-blur=1", "--steps", 4, "--seed", 7)
    run("-m", "dsas_diffusion.cli", "generate", *drawing, "--compare", "--out", "drawn", "--quiet", **here)
    pictures = [np.asarray(Image.open(file)) for file in sorted((tmp_path / "drawn").rglob("*.png"))]
    assert len(pictures) >= 2
    assert all(picture.std() > 10 for picture in pictures)
    talking = ("--concept", "builtin:rudeness=1", "--compare", "--json", "--message", MESSAGE)
    (answer,) = json.loads(run("-m", "dsas_diffusion.cli", "chat", *talking, **here))["answers"]
    assert answer["base"] != answer["answer"]
    assert "i am sorry about the washer" in answer["answer"]
