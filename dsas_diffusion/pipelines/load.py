"""Loading a pipeline: the built-in model, a folder, a Hub name, or a checkpoint in one file."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from dsas_core.errors import DSASError, UnavailableError, UnsupportedError, quote
from dsas_core.model.loading import (
    check_name,
    check_safetensors,
    check_variant,
    device_of,
    dtype_of,
    reason_of,
    source_of,
    take_dtype,
)

from .single_file import SINGLE_FILE_OPTIONS, is_single_file, load_single_file

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model")
#: settings of `DiffusionPipeline.from_pretrained` and `from_single_file`; anything else is a part of the pipeline
OPTIONS = (
    *("cache_dir", "custom_pipeline", "custom_revision", "device_map", "disable_mmap", "force_download"),
    *("load_connected_pipeline", "local_files_only", "low_cpu_mem_usage", "max_memory", "mirror", "offload_folder"),
    *("offload_state_dict", "provider", "provider_options", "proxies", "quantization_config", "revision"),
    *("sess_options", "token", "trust_remote_code", "use_flashpack", "use_onnx", "variant"),
    *SINGLE_FILE_OPTIONS,
)
BUILTIN = {"builtin:emoji": Path(__file__).parents[1] / "builtin" / "model"}


def load_pipeline(name: str | Path, *, device: str = "auto", dtype: Any = "auto", **options: Any) -> Any:
    """Load a text-to-image pipeline.

    Args:
        name: "builtin:emoji", a folder, a Hub name (user/name), or a checkpoint in one .safetensors file.
        device: "auto" takes a GPU when there is one. Ignored where `options` has a device_map.
        dtype: "auto" is float16 on a GPU and float32 elsewhere; or "float32", "float16", "bfloat16", or a torch dtype;
            or part -> dtype, "default" among them.
        options: further arguments of `DiffusionPipeline.from_pretrained` (revision, variant, token, …), and parts
            that take the place of the pipeline's own (`vae=…`, `safety_checker=None`). For a checkpoint in one file,
            those of `from_single_file`: `config`, a pipeline's folder or Hub name, tells what the file does not.

    Returns:
        The pipeline, on the device.

    Raises:
        DSASError: no such device, number format or option.
        UnavailableError: a model or a part of it that is missing or damaged.

    Example:
        >>> pipe = load_pipeline("builtin:emoji", device="cpu", safety_checker=None)
        >>> type(pipe).__name__
        'StableDiffusionPipeline'
    """
    from diffusers import DiffusionPipeline

    check_name(name)
    device = device_of(device)
    chosen = _dtypes_of(take_dtype(dtype, options), device)
    check_safetensors(options)
    mapped = options.get("device_map") is not None
    try:
        with _quiet_libraries():
            if is_single_file(name):
                pipe = load_single_file(Path(name), {"torch_dtype": chosen, **options})
            else:
                source = source_of(name, BUILTIN)
                if "config" in options:
                    raise UnsupportedError(f"config= is of checkpoints in one file, and {name} is none: leave it out")
                if Path(source).is_dir():
                    _check_parts(Path(source), options)
                pipe = DiffusionPipeline.from_pretrained(source, torch_dtype=chosen, use_safetensors=True, **options)
            _check_options(pipe, options)
            if str(name) in BUILTIN and "vae" not in options:
                from ..builtin.autoencoder import accept

                accept(pipe)
            pipe.set_progress_bar_config(disable=True)
            return pipe if mapped else pipe.to(device)
    except DSASError:
        raise
    except Exception as error:  # diffusers, transformers and the Hub raise a dozen kinds here
        hint = (
            "; weights that are named by a variant need variant= (--variant)" if "no file named" in str(error) else ""
        )
        raise UnavailableError(f"cannot load {name}: {reason_of(error)}{hint}") from error


def _dtypes_of(dtype: Any, device: str) -> torch.dtype | dict[str, torch.dtype]:
    """One dtype, or one by part, as diffusers takes them."""
    if not isinstance(dtype, Mapping):
        return dtype_of(dtype, device, torch.float16)
    return {str(part): dtype_of(own, device, torch.float16) for part, own in dtype.items()}


def _check_options(pipe: Any, options: Mapping[str, Any]) -> None:
    """Raise a DSASError where diffusers has ignored an option; it does so without a word."""
    parts = inspect.signature(type(pipe).__init__).parameters
    if unknown := [name for name in options if name not in parts and name not in OPTIONS]:
        known = ", ".join(name for name in parts if name != "self")
        raise DSASError(
            f"option {quote(unknown[0])} of load_pipeline: {type(pipe).__name__} has no such part (it has {known}), "
            "and loading pipelines no such setting"
        )


def _check_parts(folder: Path, options: Mapping[str, Any]) -> None:
    """Raise an UnavailableError when a part that the folder's index names is missing; some libraries ignore that.

    Parts that the user gives in their place, or leaves out by None, need not be there.
    """
    if not (folder / "model_index.json").is_file():
        raise UnavailableError(f"{folder} is no pipeline: it has no model_index.json")
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        listed = {name: value for name, value in index.items() if isinstance(value, list) and value != [None, None]}
    except (ValueError, AttributeError, OSError, RecursionError) as error:
        raise UnavailableError(f"cannot load {folder}: model_index.json is damaged: {error}") from None
    parts = [name for name in listed if name not in options]
    for name in parts:
        pair = listed[name]
        if len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise UnavailableError(
                f"cannot load {folder}: model_index.json is damaged: {name} is {quote(pair)}, expected [library, class]"
            )
        if not (folder / name).is_dir() or not any((folder / name).iterdir()):
            raise UnavailableError(
                f"cannot load {folder}: its {name} is missing; download or save the pipeline again, or pass {name}= of "
                "your own"
            )
        if "tokenizer" in name and not any((folder / name / file).is_file() for file in TOKENIZER_FILES):
            raise UnavailableError(
                f"cannot load {folder}: {name} has none of {', '.join(TOKENIZER_FILES)}; download it again"
            )
    check_variant(folder, [folder / name for name in parts], options.get("variant"))


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Silence warnings and loading bars of both libraries until the block ends; downloads keep their bars."""
    from diffusers.utils import logging as of_diffusers
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as of_transformers

    downloads = disable_progress_bars if are_progress_bars_disabled() else enable_progress_bars
    with warnings.catch_warnings(), ExitStack() as undo:
        undo.callback(downloads)  # transformers switches those along with its own
        for library in (of_diffusers, of_transformers):
            undo.callback(library.set_verbosity, library.get_verbosity())
            if library.is_progress_bar_enabled():
                undo.callback(library.enable_progress_bar)
            library.set_verbosity_error()
            library.disable_progress_bar()
        downloads()
        warnings.simplefilter("ignore", FutureWarning)  # torch_dtype, which older diffusers want, is now dtype
        yield
