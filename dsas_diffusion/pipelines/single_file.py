"""Checkpoints in one .safetensors file, in the layout of the model's authors, as most of the models people share come.

diffusers converts them (`from_single_file`). Such a file holds tensors alone: what the pipeline is made of comes from
another pipeline of the same architecture, which diffusers takes from the Hub, or which `config` names.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsas_core.errors import UnavailableError, UnsupportedError, quote
from dsas_core.model.loading import HUB_OPTIONS, reason_of

SUFFIX = ".safetensors"
#: settings of `from_single_file` that `from_pretrained` does not have
SINGLE_FILE_OPTIONS = ("config", "original_config")
#: all of its settings, beside those of the Hub
_OPTIONS = (*SINGLE_FILE_OPTIONS, "torch_dtype", "disable_mmap")
#: how tensors of a Stable Diffusion's denoiser are named; diffusers takes whatever it does not know for one
_STABLE_DIFFUSION = "model.diffusion_model."


def is_single_file(name: str | Path) -> bool:
    """Whether a name is that of a checkpoint in one file, be it there or not.

    Example:
        >>> is_single_file("models/sd15.safetensors"), is_single_file("user/name")
        (True, False)
    """
    return Path(name).suffix.lower() == SUFFIX and not Path(name).is_dir()


def load_single_file(path: Path, options: Mapping[str, Any]) -> Any:
    """Load a pipeline from a checkpoint in one file.

    Args:
        path: the file.
        options: of `from_single_file`; without `config`, diffusers tells the architecture by the tensors' names.

    Returns:
        The pipeline, where it was loaded.

    Raises:
        UnavailableError: no such file, a damaged one, or no configuration of its architecture.
        UnsupportedError: a file that is no checkpoint of a pipeline.
    """
    import diffusers

    tensors = _read(path)
    config = options.get("config") or _usual_config(path, tensors)
    hub = {key: value for key, value in options.items() if key in HUB_OPTIONS}
    try:
        index = diffusers.DiffusionPipeline.load_config(config, **hub)
        pipeline_class = getattr(diffusers, index["_class_name"])
        load = pipeline_class.from_single_file
    except Exception as error:  # the Hub and diffusers raise a dozen kinds here
        raise UnavailableError(
            f"cannot load {path}: it holds tensors alone, and {config} gives no configuration for them "
            f"({reason_of(error)[:120]}): pass config=FOLDER (--config FOLDER) of a pipeline of this architecture, "
            "saved by save_pretrained"
        ) from error
    taken = {*hub, *_OPTIONS, *inspect.signature(pipeline_class.__init__).parameters}
    if refused := [name for name in options if name not in taken]:
        raise UnsupportedError(
            f"option {quote(refused[0])} does not go with a checkpoint in one file, {path}: leave it out, or name the "
            "folder of a pipeline"
        )
    return load(str(path), **{**options, "config": str(config)})


def _read(path: Path) -> dict[str, Any]:
    """The tensors of a file, by name; they are mapped, not copied."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UnavailableError(f"no file {path}: check the path")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UnavailableError(
            f"{path} is no safetensors file, or cut short ({reason_of(error)[:120]}): download it again"
        ) from None
    if any("lora" in name.lower() for name in tensors):
        raise UnsupportedError(
            f"{path} is a LoRA, which changes a model and is none: load its model, and then pipe.load_lora_weights"
        )
    return tensors


def _usual_config(path: Path, tensors: Mapping[str, Any]) -> str:
    """The Hub name of the pipeline whose configuration suits a file, by the names and shapes of its tensors."""
    from diffusers.loaders import single_file_utils as diffusers_knows

    what = f"{path}, whose first tensor is {quote(min(tensors, default=''))},"
    way = "pass config=FOLDER (--config FOLDER) of a pipeline of its architecture, or name the folder of a pipeline"
    try:
        kind = diffusers_knows.infer_diffusers_model_type(tensors)
        config = diffusers_knows.DIFFUSERS_DEFAULT_PIPELINE_PATHS[kind]["pretrained_model_name_or_path"]
    except Exception as error:  # whatever a file of none of its kinds makes diffusers raise
        raise UnsupportedError(f"diffusers does not know {what} ({reason_of(error)[:80]}): {way}") from error
    is_default = kind == diffusers_knows.infer_diffusers_model_type({})
    if is_default and not any(name.startswith(_STABLE_DIFFUSION) for name in tensors):
        raise UnsupportedError(f"{what} holds no pipeline that diffusers knows: {way}")
    return str(config)
