"""Loading a language model and its tokenizer: the built-in one, from a folder, a GGUF file, or from the Hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...errors import UnavailableError, UnsupportedError
from ...model.loading import (
    catch_load_errors,
    check_name,
    check_safetensors,
    check_variant,
    device_of,
    dtype_of,
    hub_options,
    is_hub_name,
    source_of,
    take_dtype,
)
from .gguf import is_gguf, load_gguf
from .layers import auto_class

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
#: options of `from_pretrained` that `load` cannot take -> what to use
REFUSED = {
    "output_loading_info": "it returns (model, tokenizer); call from_pretrained of transformers yourself",
    "gguf_file": "name the GGUF file itself, load('folder/model.gguf')",
    "from_tf": "convert the weights to safetensors",
    "from_flax": "convert the weights to safetensors",
}
BUILTIN = {"builtin:chat": Path(__file__).parents[1] / "builtin" / "model"}


def is_language_model(name: str | Path) -> bool:
    """Whether a name is that of a language model, not of a diffusers pipeline.

    Args:
        name: "builtin:chat", a folder, a GGUF file (no pipeline is one), or a Hub name. Without network, no Hub name
            is one.

    Example:
        >>> is_language_model("builtin:chat"), is_language_model("builtin:emoji")
        (True, False)
    """
    folder = Path(name)
    if str(name) in BUILTIN or is_gguf(name):
        return True
    if folder.is_dir():
        return (folder / "config.json").is_file() and not (folder / "model_index.json").is_file()
    if not is_hub_name(name):
        return False
    from huggingface_hub import file_exists

    try:
        return file_exists(str(name), "config.json") and not file_exists(str(name), "model_index.json")
    except Exception:  # no network, no such repository: loading it raises the error
        return False


def load(
    name: str | Path, *, device: str = "auto", dtype: str | torch.dtype = "auto", **options: Any
) -> tuple[Any, Any]:
    """Load a language model and its tokenizer.

    Args:
        name: "builtin:chat", a folder, a GGUF file (needs the package `gguf`; it is dequantised), or a Hub name
            (user/name).
        device: name of a device; "auto" is a GPU if there is one. Ignored where `options` has a device_map.
        dtype: "float32", "float16", "bfloat16", or a torch dtype; "auto" is bfloat16 on a GPU and float32 elsewhere.
        options: further arguments of `from_pretrained` (revision, token, device_map, variant, …); `tokenizer` for one
            of your own.

    Returns:
        (model, tokenizer), the model in evaluation mode.

    Raises:
        DSASError: an option that cannot be taken; the message says what to use.
        UnavailableError: there is no such model, or a part of it is missing or damaged.
        UnsupportedError: a GGUF file of an architecture that transformers does not read.

    Example:
        >>> model, tokenizer = load("builtin:chat", device="cpu")
        >>> type(model).__name__
        'LlamaForCausalLM'
    """
    check_name(name, "language model")
    device = device_of(device)
    dtype = dtype_of(take_dtype(dtype, options), device, torch.bfloat16)
    check_safetensors(options)
    for name_of_option, instead in REFUSED.items():
        if name_of_option in options:
            raise UnsupportedError(f"load takes no {name_of_option}: {instead}")
    own_tokenizer = options.pop("tokenizer", None)
    if is_gguf(name):
        with catch_load_errors(name, warns=True):
            model, tokenizer = load_gguf(name, dtype=dtype, **options)
            return _place(model, own_tokenizer or tokenizer, device, options)
    source = source_of(name, BUILTIN, "language model")
    folder = Path(source) / str(options.get("subfolder") or "")
    if Path(source).is_dir() and not (folder / "config.json").is_file():
        raise UnavailableError(f"{folder} is no language model: it has no config.json")
    has_tokenizer = any((folder / file).is_file() for file in TOKENIZER_FILES)
    if folder.is_dir() and own_tokenizer is None and not has_tokenizer:
        raise UnavailableError(
            f"cannot load {folder}: it has none of {', '.join(TOKENIZER_FILES)}; save the tokenizer there"
        )
    if "state_dict" not in options:
        check_variant(name, [folder], options.get("variant"))

    from transformers import AutoConfig, AutoTokenizer

    hub = hub_options(options)
    with catch_load_errors(name, warns=True):
        config = options.get("config") or AutoConfig.from_pretrained(source, **hub)
        model = auto_class(config).from_pretrained(source, dtype=dtype, use_safetensors=True, **options)
        tokenizer = own_tokenizer or AutoTokenizer.from_pretrained(source, **hub)
        return _place(model, tokenizer, device, options)


def _place(model: Any, tokenizer: Any, device: str, options: Mapping[str, Any]) -> tuple[Any, Any]:
    """The model on its device, in evaluation mode, and the tokenizer."""
    if options.get("device_map") is None:
        model = model.to(torch.device(device))
    return model.eval(), tokenizer
