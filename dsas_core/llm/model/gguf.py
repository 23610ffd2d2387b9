"""Language models in GGUF files, the format of llama.cpp: dequantised, they are models like any other."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ...errors import UnavailableError, UnsupportedError
from ...model.loading import catch_load_errors, reason_of
from .layers import auto_class

SUFFIX, MAGIC = ".gguf", b"GGUF"
#: what transformers leaves on a model whose weights were quantised, by which saving refuses it
_MARKS = ("hf_quantizer", "is_quantized", "quantization_method")
_CONFIG_MARKS = ("quantization_config", "_is_quantized")


def is_gguf(name: str | Path) -> bool:
    """Whether a name is that of a GGUF file: by its suffix, be it there or not, or by its first bytes.

    Args:
        name: as the user gave it.

    Example:
        >>> is_gguf("models/SmolLM2.Q4_1.gguf"), is_gguf("user/name")
        (True, False)
    """
    return Path(name).suffix.lower() == SUFFIX or _begins_with_magic(Path(name))


def load_gguf(path: str | Path, *, dtype: torch.dtype, **options: Any) -> tuple[Any, Any]:
    """Load a language model and its tokenizer from a GGUF file; no weight stays quantised, so that both can be saved.

    Args:
        path: the file.
        dtype: of the weights.
        options: further arguments of the model's `from_pretrained` (device_map, …).

    Returns:
        (model, tokenizer).

    Raises:
        UnavailableError: there is no such file, it is no GGUF or damaged, or the package `gguf` is missing.
        UnsupportedError: transformers does not read the model's architecture from GGUF.

    Example:
        >>> load_gguf("nowhere.gguf", dtype=torch.float32)
        Traceback (most recent call last):
        dsas_core.errors.UnavailableError: no GGUF file nowhere.gguf: check the path
    """
    path = Path(path)
    _check(path)
    from transformers import AutoConfig, AutoTokenizer

    source: dict[str, Any] = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    with catch_load_errors(path, warns=True), _explained(path), _silent_reader():
        config = AutoConfig.from_pretrained(**source)
        settings = {"dtype": dtype, **_dequantizing(), **options}
        model = auto_class(config).from_pretrained(**source, **settings)
        tokenizer = AutoTokenizer.from_pretrained(**source)
    _forget_quantization(model)
    model.config._name_or_path = model.name_or_path = tokenizer.name_or_path = str(path)
    return model, tokenizer


def _check(path: Path) -> None:
    """Raise an UnavailableError where a file cannot be a GGUF file, or nothing here could read it."""
    if not path.is_file():
        problem = f"{path} is a folder" if path.is_dir() else f"no GGUF file {path}"
        raise UnavailableError(f"{problem}: check the path")
    if not _begins_with_magic(path):
        raise UnavailableError(f"{path} is no GGUF file: it does not begin with {MAGIC.decode()}; download it again")
    from transformers.utils import is_gguf_available

    if not is_gguf_available():
        raise UnavailableError(f"reading {path} needs the package gguf: pip install 'dsas-diffusion[gguf]'")


def _begins_with_magic(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Tell files that are cut short, and architectures that transformers does not read, from other errors."""
    try:
        yield
    except (struct.error, IndexError, ValueError, NotImplementedError) as error:
        reason = reason_of(error)
        if isinstance(error, struct.error | IndexError) or "cannot reshape" in reason:
            raise UnavailableError(f"{path} is damaged or cut short ({reason}); download it again") from error
        if "not supported" not in reason and "nknown" not in reason:
            raise
        import transformers

        raise UnsupportedError(
            f"{path}: transformers {transformers.__version__} does not read it ({reason}): take the model's "
            "safetensors, or a later transformers"
        ) from error


@contextmanager
def _silent_reader() -> Iterator[None]:
    """Give the GGUF reader of transformers the progress bar of its other loaders, which can be switched off."""
    from transformers import modeling_gguf_pytorch_utils as reader
    from transformers.utils import logging

    own = vars(reader).get("tqdm")
    if own is None:  # a version whose reader has no bar of its own
        yield
        return
    reader.tqdm = logging.tqdm  # type: ignore[assignment]
    try:
        yield
    finally:
        reader.tqdm = own


def _dequantizing() -> Mapping[str, Any]:
    """The argument by which transformers dequantises all weights; versions without it do so anyway."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def _forget_quantization(model: Any) -> None:
    """Remove what says that weights are quantised, which they no longer are."""
    for holder, marks in ((model, _MARKS), (model.config, _CONFIG_MARKS)):
        for mark in set(marks) & set(vars(holder)):
            delattr(holder, mark)
