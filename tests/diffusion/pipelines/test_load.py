"""Loading pipelines: what is missing or damaged is said in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dsas_core import DSASError
from dsas_diffusion import load_pipeline
from tests.fixtures.models import latents


@pytest.fixture(scope="module")
def saved(tiny_pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    tiny_pipe.save_pretrained(folder)
    return folder


def test_a_folder_is_loaded_as_it_was_saved(saved: Path, tiny_pipe: Any) -> None:
    pipe = load_pipeline(saved, device="cpu")
    assert type(pipe) is type(tiny_pipe)
    assert pipe.unet.dtype == torch.float32
    assert torch.equal(latents(pipe, "a banana"), latents(tiny_pipe, "a banana"))
    assert load_pipeline(str(saved), device="cpu", dtype="bfloat16").unet.dtype == torch.bfloat16


def test_loading_leaves_the_libraries_as_talkative_as_they_were(saved: Path) -> None:
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    def voices() -> list[Any]:
        return [
            (library.get_verbosity(), library.is_progress_bar_enabled()) for library in (of_diffusers, of_transformers)
        ]

    before = voices()
    load_pipeline(saved, device="cpu")
    with pytest.raises(DSASError):
        load_pipeline(saved, device="cpu", dtype="float33")
    assert voices() == before


def cut(path: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        whole = (folder / path).read_bytes()
        (folder / path).write_bytes(whole[: len(whole) // 2])

    return damage


def without(path: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (shutil.rmtree if (folder / path).is_dir() else Path.unlink)(folder / path)

    return damage


def unknown_class(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "NoSuchPipeline"}))


def pickled(folder: Path) -> None:
    """Weights that could only be unpickled."""
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({}, folder / "unet" / "diffusion_pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("model_index.json"), "is no pipeline: it has no model_index.json"),
        (without("unet"), "cannot load"),
        (without("unet/config.json"), "cannot load"),
        (without("text_encoder/model.safetensors"), "cannot load"),
        (without("tokenizer"), "cannot load"),
        (cut("unet/diffusion_pytorch_model.safetensors"), "cannot load"),
        (cut("text_encoder/model.safetensors"), "cannot load"),
        (cut("model_index.json"), "cannot load"),
        (cut("unet/config.json"), "cannot load"),
        (unknown_class, "cannot load .*NoSuchPipeline"),
        (pickled, "cannot load"),
    ],
    ids=[
        "no index",
        "no denoiser",
        "no config",
        "no weights",
        "no tokenizer",
        "cut weights",
        "cut text weights",
        "cut index",
        "cut config",
        "unknown class",
        "pickled weights",
    ],
)
def test_what_is_missing_or_damaged_is_said_in_one_line(
    saved: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(saved, folder)
    damage(folder)
    with pytest.raises(DSASError, match=message) as error:
        load_pipeline(folder, device="cpu")
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("builtin:nothing", "no built-in model builtin:nothing; there is builtin:emoji"),
        ("no-such-model", r"no model no-such-model: no such folder, no Hub name \(user/name\), and not built in"),
        ("./no/such", "no such folder"),
        ("/no/such", "no such folder"),
        ("a/b/c", "no such folder"),
    ],
)
def test_an_unknown_model_is_not_asked_for(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import DiffusionPipeline

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", forbidden)
    with pytest.raises(DSASError, match=message):
        load_pipeline(name)


def test_a_hub_name_is_passed_on(monkeypatch: pytest.MonkeyPatch, tiny_pipe: Any) -> None:
    from diffusers import DiffusionPipeline

    asked: list[Any] = []

    def from_pretrained(name: str, **options: Any) -> Any:
        asked.append((name, options))
        return tiny_pipe

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", from_pretrained)
    assert load_pipeline("user/model", device="cpu", revision="v1") is tiny_pipe
    assert asked == [("user/model", {"torch_dtype": torch.float32, "use_safetensors": True, "revision": "v1"})]


@pytest.mark.parametrize("dtype", ["float33", "nn"])
def test_an_unknown_dtype(saved: Path, dtype: str) -> None:
    with pytest.raises(DSASError, match=f"dtype '{dtype}': expected auto, float32, float16 or bfloat16"):
        load_pipeline(saved, dtype=dtype)
