"""Loading pipelines: what is missing or damaged is said in one line."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dsas_core import DSASError
from dsas_diffusion import load_pipeline
from dsas_diffusion.pipelines import load
from tests.fixtures.models import latents
from tests.fixtures.single_file import build_checkpoint_pipe, save_single_file
from tests.fuzz.campaign import check_message


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


# ---- options of from_pretrained --------------------------------------------------------------------------------------

#: options that pass through, on a saved pipeline
PLAUSIBLE: dict[str, Any] = {
    **{"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False, "image_encoder": None},
    **{"torch_dtype": torch.float16, "use_safetensors": True, "local_files_only": True, "low_cpu_mem_usage": False},
    **{"revision": "main", "cache_dir": "cache", "token": None, "force_download": False, "proxies": None},
    **{"variant": None, "device_map": None, "quantization_config": None, "max_memory": None, "use_onnx": False},
    **{"trust_remote_code": False, "custom_revision": None, "offload_state_dict": None, "mirror": None},
}


@pytest.mark.parametrize("option", PLAUSIBLE)
def test_options_pass_through(saved: Path, option: str) -> None:
    pipe = load_pipeline(saved, device="cpu", **{option: PLAUSIBLE[option]})
    assert pipe.unet.dtype == (torch.float16 if option == "torch_dtype" else torch.float32)


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder", "tokenizer", "scheduler"])
def test_parts_of_ones_own_take_the_place_of_those_in_the_folder(
    saved: Path, tiny_pipe: Any, tmp_path: Path, part: str
) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(saved, folder)
    shutil.rmtree(folder / part)
    own = getattr(tiny_pipe, part)
    assert getattr(load_pipeline(folder, device="cpu", **{part: own}), part) is own


def test_a_part_may_be_left_out(saved: Path) -> None:
    assert load_pipeline(saved, device="cpu", text_encoder=None).text_encoder is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"safety_cheker": None}, "option 'safety_cheker' .* has no such part"),
        ({"subfolder": "x"}, "option 'subfolder'"),
        ({"output_loading_info": True}, "option 'output_loading_info'"),
        ({"dtype": "float16", "torch_dtype": torch.float32}, "are one setting: give dtype alone"),
        ({"torch_dtype": "float8"}, "dtype 'float8': expected auto"),
        ({"dtype": torch.int8}, "expected auto, float32"),
        ({"dtype": {"unet": "float8"}}, "expected auto, float32"),
        ({"use_safetensors": False}, "asks for pickled weights"),
        ({"variant": "fp16"}, "no weights of variant 'fp16'; its files have none: leave variant out"),
        ({"device_map": "nowhere"}, "cannot load .*nowhere"),
        ({"device_map": 3}, "cannot load"),
        ({"vae": 3}, "cannot load"),
        ({"quantization_config": 3}, "cannot load"),
        ({"custom_pipeline": "./none"}, "cannot load"),
        ({"config": "x"}, "config= is of checkpoints in one file"),
        ({"device": "meta"}, "device 'meta' cannot be used"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used"),
        ({"device": "cpu:3"}, "device 'cpu:3' cannot be used: there is one cpu"),
        ({"device": 10**400}, "cannot be used"),
        ({"device": None}, "cannot be used"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_options_that_cannot_be_taken_say_what_to_use(saved: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DSASError, match=message) as error:
        load_pipeline(saved, **{"device": "cpu", **options})
    check_message(str(error.value))


def test_weights_of_a_variant_are_named(saved: Path, tiny_pipe: Any, tmp_path: Path) -> None:
    tiny_pipe.save_pretrained(tmp_path / "half", variant="fp16")
    with pytest.raises(DSASError, match=r"as variant fp16 only: pass variant=.fp16. \(--variant fp16\)"):
        load_pipeline(tmp_path / "half", device="cpu")
    with pytest.raises(DSASError, match="no weights of variant 'ema'; there is fp16"):
        load_pipeline(tmp_path / "half", device="cpu", variant="ema")
    pipe = load_pipeline(tmp_path / "half", device="cpu", variant="fp16")
    assert torch.equal(latents(pipe, "a banana"), latents(tiny_pipe, "a banana"))


@pytest.mark.parametrize("pair", [[], [None], ["diffusers"], [3, 4], ["a", "b", "c"], [None, "x"]], ids=str)
def test_an_index_that_names_no_class_is_damaged(saved: Path, tmp_path: Path, pair: list[Any]) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(saved, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "vae": pair}))
    with pytest.raises(DSASError, match=r"model_index.json is damaged: vae is") as error:
        load_pipeline(folder, device="cpu")
    check_message(str(error.value))


@pytest.mark.parametrize(
    "name", ["", " ", None, 3, "x" * 5000, "a\0b", "x.ckpt", "m/x.pt", "m/x.safetensors"], ids=repr
)
def test_what_is_no_model_is_refused_in_one_line(name: Any) -> None:
    with pytest.raises(DSASError) as error:
        load_pipeline(name, device="cpu")
    check_message(str(error.value))


def test_every_setting_of_from_pretrained_is_known() -> None:
    from diffusers import DiffusionPipeline

    source = inspect.getsource(DiffusionPipeline.from_pretrained)
    settings = set(re.findall(r'kwargs\.pop\(\s*"(\w+)"', source))
    assert len(settings) > 20
    assert settings - set(load.OPTIONS) == {"torch_dtype", "dtype", "use_safetensors"} & settings


# ---- checkpoints in one file -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint in one file, and the folder of the pipeline that it is of."""
    folder = tmp_path_factory.mktemp("checkpoint")
    pipe = build_checkpoint_pipe(folder / "tokenizer")
    pipe.save_pretrained(folder / "pipeline")
    return save_single_file(pipe, folder / "model.safetensors"), folder / "pipeline"


def test_a_checkpoint_in_one_file_is_the_pipeline_it_was_saved_from(checkpoint: tuple[Path, Path]) -> None:
    file, folder = checkpoint
    one, other = load_pipeline(file, device="cpu", config=folder), load_pipeline(folder, device="cpu")
    assert type(one) is type(other)
    assert torch.equal(latents(one, "a banana"), latents(other, "a banana"))
    half = load_pipeline(str(file), device="cpu", config=str(folder), torch_dtype=torch.bfloat16, safety_checker=None)
    assert half.unet.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"local_files_only": True}, "gives no configuration for them .*: pass config=FOLDER"),
        ({"config": "./none"}, "none gives no configuration for them"),
        ({"config": "FOLDER", "variant": "fp16"}, "option 'variant' does not go with a checkpoint in one file"),
        ({"config": "FOLDER", "nonsense": 1}, "option 'nonsense' does not go with"),
    ],
    ids=str,
)
def test_what_a_checkpoint_lacks_is_said(checkpoint: tuple[Path, Path], options: dict[str, Any], message: str) -> None:
    file, folder = checkpoint
    given = {key: str(folder) if value == "FOLDER" else value for key, value in options.items()}
    with pytest.raises(DSASError, match=message) as error:
        load_pipeline(file, device="cpu", **given)
    check_message(str(error.value))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"unet.lora_A.weight": torch.ones(1)}, "is a LoRA"),
        ({"nothing": torch.ones(1)}, "holds no pipeline that diffusers knows"),
        ({}, "holds no pipeline that diffusers knows"),
        (None, "no safetensors file, or cut short"),
    ],
    ids=["lora", "unknown", "empty", "damaged"],
)
def test_a_file_that_is_no_pipeline(tmp_path: Path, tensors: dict[str, torch.Tensor] | None, message: str) -> None:
    file = tmp_path / "x.safetensors"
    if tensors is None:
        file.write_bytes(b"\xff" * 100)
    else:
        save_file(tensors, file)
    with pytest.raises(DSASError, match=message) as error:
        load_pipeline(file, device="cpu")
    check_message(str(error.value))
