"""Getting a pipeline: the built-in model, a folder, or a Hub name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dsas_core.errors import DSASError

BUILTIN = {"builtin:emoji": Path(__file__).parent / "builtin" / "model"}


def load_pipeline(name: str | Path, *, device: str = "auto", dtype: str | torch.dtype = "auto", **options: Any) -> Any:
    """Load a text-to-image pipeline.

    Args:
        name: "builtin:emoji", a folder, or a Hub name (user/name).
        device: "auto" takes a GPU when there is one.
        dtype: "auto" is float16 on a GPU and float32 elsewhere; or "float32", "float16", "bfloat16".
        options: further arguments of `DiffusionPipeline.from_pretrained` (revision, token, …).

    Raises:
        DSASError: no such model, or a part of it is missing or damaged.
    """
    from diffusers import DiffusionPipeline

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if dtype == "auto":
        dtype = torch.float32 if device == "cpu" else torch.float16
    if isinstance(dtype, str):
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise DSASError(f"dtype {dtype!r}: expected auto, float32, float16 or bfloat16")
        dtype = getattr(torch, dtype)
    source: str | Path = name
    if str(name).startswith("builtin:"):
        if str(name) not in BUILTIN:
            raise DSASError(f"no built-in model {name}; there is {', '.join(BUILTIN)}")
        source = BUILTIN[str(name)]
    folder = Path(source)
    if not folder.is_dir() and (str(name).count("/") != 1 or str(name).startswith((".", "/", "~"))):
        known = ", ".join(BUILTIN)
        raise DSASError(f"no model {name}: no such folder, no Hub name (user/name), and not built in ({known})")
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        raise DSASError(f"{folder} is no pipeline: it has no model_index.json")
    try:
        pipe = DiffusionPipeline.from_pretrained(source, torch_dtype=dtype, use_safetensors=True, **options)
    except Exception as error:  # diffusers, transformers and the Hub raise a dozen kinds here
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DSASError(f"cannot load {name}: {reason}") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)
