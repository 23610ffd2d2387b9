"""Loading a pipeline: the built-in model, a folder, or a Hub name."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from dsas_core.errors import UnavailableError
from dsas_core.model.loading import device_of, dtype_of, reason_of, source_of

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model")
BUILTIN = {"builtin:emoji": Path(__file__).parents[1] / "builtin" / "model"}


def load_pipeline(name: str | Path, *, device: str = "auto", dtype: str | torch.dtype = "auto", **options: Any) -> Any:
    """Load a text-to-image pipeline.

    Args:
        name: "builtin:emoji", a folder, or a Hub name (user/name).
        device: "auto" takes a GPU when there is one.
        dtype: "auto" is float16 on a GPU and float32 elsewhere; or "float32", "float16", "bfloat16".
        options: further arguments of `DiffusionPipeline.from_pretrained` (revision, token, …).

    Returns:
        The pipeline, on the device.

    Raises:
        DSASError: no such device or number format.
        UnavailableError: a model or a part of it that is missing or damaged.

    Example:
        >>> pipe = load_pipeline("builtin:emoji", device="cpu")
        >>> type(pipe).__name__
        'StableDiffusionPipeline'
    """
    from diffusers import DiffusionPipeline

    device = device_of(device)
    dtype = dtype_of(dtype, device, torch.float16)
    source = source_of(name, BUILTIN)
    folder = Path(source)
    if folder.is_dir():
        _check_parts(folder)
    try:
        with _quiet_libraries():
            pipe = DiffusionPipeline.from_pretrained(source, torch_dtype=dtype, use_safetensors=True, **options)
    except Exception as error:  # diffusers, transformers and the Hub raise a dozen kinds here
        raise UnavailableError(f"cannot load {name}: {reason_of(error)}") from error
    pipe.set_progress_bar_config(disable=True)
    with _quiet_libraries():
        return pipe.to(device)


def _check_parts(folder: Path) -> None:
    """Raise an UnavailableError when a part that the folder's index names is missing; some libraries ignore that."""
    if not (folder / "model_index.json").is_file():
        raise UnavailableError(f"{folder} is no pipeline: it has no model_index.json")
    try:
        index = json.loads((folder / "model_index.json").read_text())
        parts = [name for name, value in index.items() if isinstance(value, list) and value[0] is not None]
    except (ValueError, AttributeError, OSError) as error:
        raise UnavailableError(f"cannot load {folder}: model_index.json is damaged: {error}") from None
    for name in parts:
        if not (folder / name).is_dir() or not any((folder / name).iterdir()):
            raise UnavailableError(f"cannot load {folder}: its {name} is missing; download or save the pipeline again")
        if "tokenizer" in name and not any((folder / name / file).is_file() for file in TOKENIZER_FILES):
            raise UnavailableError(
                f"cannot load {folder}: {name} has none of {', '.join(TOKENIZER_FILES)}; download it again"
            )


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
