"""Loading language models: every option of from_pretrained reaches it, or is refused in one line."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from dsas_core import DSASError, llm
from tests.fuzz.campaign import check_message


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model, saved."""
    path = tmp_path_factory.mktemp("language-model")
    for part in llm.load("builtin:chat", device="cpu"):
        part.save_pretrained(path)
    return path


@pytest.mark.parametrize(
    "options",
    [
        {"torch_dtype": torch.float32},
        {"torch_dtype": "float32", "dtype": "float32"},
        {"use_safetensors": True},
        {"use_safetensors": None, "local_files_only": True, "revision": "main", "token": None},
        {"low_cpu_mem_usage": True, "trust_remote_code": False, "attn_implementation": "eager"},
        {"device_map": None, "variant": None, "subfolder": "", "quantization_config": None, "cache_dir": None},
    ],
    ids=str,
)
def test_options_pass_through(folder: Path, options: dict[str, Any]) -> None:
    model, tokenizer = llm.load(folder, device="cpu", **options)
    assert (model.dtype, model.training) == (torch.float32, False)
    assert tokenizer("hello").input_ids


def test_parts_of_ones_own_are_taken(folder: Path) -> None:
    model, tokenizer = llm.load("builtin:chat", device="cpu")
    again, own = llm.load(folder, device="cpu", tokenizer=tokenizer, config=model.config)
    assert own is tokenizer
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_subfolder_holds_model_and_tokenizer(folder: Path) -> None:
    model, _ = llm.load(folder.parent, device="cpu", subfolder=folder.name)
    assert type(model).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"torch_dtype": torch.float16, "dtype": "float32"}, "are one setting: give dtype alone"),
        ({"use_safetensors": False}, "asks for pickled weights"),
        ({"output_loading_info": True}, "load takes no output_loading_info: it returns"),
        ({"gguf_file": "x.gguf"}, "name the GGUF file itself"),
        ({"from_tf": True}, "convert the weights to safetensors"),
        ({"variant": "fp16"}, "no weights of variant 'fp16'"),
        ({"subfolder": "nowhere"}, "nowhere"),
        ({"nonsense": 1}, "cannot load .*nonsense"),
        ({"device_map": "nowhere"}, "cannot load"),
        ({"quantization_config": 3}, "cannot load"),
        ({"attn_implementation": "nowhere"}, "cannot load"),
        ({"device": "meta"}, "device 'meta' cannot be used"),
        ({"dtype": "float8_e4m3fn"}, "expected auto, float32"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_options_that_cannot_be_taken_say_what_to_use(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DSASError, match=message) as error:
        llm.load(folder, **{"device": "cpu", **options})
    check_message(str(error.value))


def test_every_named_parameter_of_from_pretrained_works_or_is_refused(folder: Path) -> None:
    from transformers import PreTrainedModel

    parameters = inspect.signature(PreTrainedModel.from_pretrained).parameters.values()
    named = [p for p in parameters if p.kind is p.KEYWORD_ONLY or (p.default is not p.empty and p.name != "config")]
    assert len(named) >= 6
    for parameter in named:
        try:
            llm.load(folder, device="cpu", **{parameter.name: parameter.default})
        except DSASError as error:
            check_message(str(error))


def test_weights_of_a_variant_are_named(tmp_path: Path) -> None:
    model, tokenizer = llm.load("builtin:chat", device="cpu")
    model.save_pretrained(tmp_path, variant="fp16")
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(DSASError, match=r"as variant fp16 only: pass variant="):
        llm.load(tmp_path, device="cpu")
    assert llm.load(tmp_path, device="cpu", variant="fp16")[0].dtype == torch.float32


@pytest.mark.parametrize("name", ["", None, 3, "x" * 5000, "x.safetensors", "m/x.bin"], ids=repr)
def test_what_is_no_model_is_refused_in_one_line(name: Any) -> None:
    with pytest.raises(DSASError) as error:
        llm.load(name, device="cpu")
    check_message(str(error.value))
