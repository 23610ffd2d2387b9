"""Common to all loaders: where a model comes from, which device it goes to, and in which precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..errors import DSASError, UnavailableError

#: what the names of models and concepts that come with the package begin with
BUILTIN = "builtin:"


def device_of(device: str) -> str:
    """The name of a device: "auto" is a GPU if there is one, else the CPU.

    Example:
        >>> device_of("cpu")
        'cpu'
    """
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def dtype_of(dtype: str | torch.dtype, device: str, half: torch.dtype) -> torch.dtype:
    """The dtype to load in: "auto" is float32 on the CPU and `half` elsewhere.

    Args:
        dtype: "auto", the name of a dtype, or a dtype.
        device: name of the device that the model goes to.
        half: the 16-bit dtype that "auto" is on a GPU.

    Raises:
        DSASError: a name that is no dtype.

    Example:
        >>> dtype_of("auto", "cpu", torch.float16)
        torch.float32
    """
    if dtype == "auto":
        return torch.float32 if device == "cpu" else half
    resolved = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(resolved, torch.dtype):
        raise DSASError(f"dtype {dtype!r}: expected auto, float32, float16 or bfloat16")
    return resolved


def source_of(name: str | Path, builtin: Mapping[str, Path], kind: str = "model") -> str | Path:
    """The argument for `from_pretrained`: the folder of a built-in model, another folder, or a Hub name (user/name).

    Args:
        name: as the user gave it.
        builtin: folders of the built-in models by name.
        kind: what the models are called in messages.

    Raises:
        UnavailableError: no such built-in model, no such folder, and no Hub name.

    Example:
        >>> source_of("builtin:chat", {"builtin:chat": Path("chat")}).name
        'chat'
    """
    known = ", ".join(builtin)
    if str(name).startswith(BUILTIN):
        if str(name) not in builtin:
            raise UnavailableError(f"no built-in {kind} {name}; there is {known}")
        return builtin[str(name)]
    if not Path(name).is_dir() and not is_hub_name(name):
        raise UnavailableError(f"no model {name}: no such folder, no Hub name (user/name), and not built in ({known})")
    return name


def name_of(model: Any, builtin: Mapping[str, Path]) -> str:
    """The name that a loaded model was loaded by: a built-in one's, else its `name_or_path`, else its class's.

    Args:
        model: the model.
        builtin: folders of the built-in models by name.

    Example:
        >>> name_of(torch.nn.Linear(2, 2), {})
        'Linear'
    """
    source = str(getattr(model, "name_or_path", "") or type(model).__name__)
    return next((name for name, folder in builtin.items() if str(folder) == source), source)


def is_hub_name(name: str | Path) -> bool:
    """Whether a name has the form of a Hub repository's, user/name, and not that of a GGUF file in a folder.

    Example:
        >>> is_hub_name("user/banana"), is_hub_name("./banana"), is_hub_name("models/banana.gguf")
        (True, False, False)
    """
    text = str(name)
    return text.count("/") == 1 and not text.startswith((".", "/", "~")) and not text.endswith(".gguf")


def hub_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a model's `from_pretrained` that its config, tokenizer and processor take, too.

    Example:
        >>> hub_options({"revision": "main", "dtype": "auto"})
        {'revision': 'main'}
    """
    return {key: value for key, value in options.items() if key in ("revision", "token", "trust_remote_code")}


@contextmanager
def catch_load_errors(
    name: str | Path, error_class: type[DSASError] = UnavailableError, *, warns: bool = False
) -> Iterator[None]:
    """Load from transformers without progress bars, and turn any error into one line.

    Args:
        name: of what is loaded, for the message.
        error_class: the class of the error.
        warns: let warnings of transformers through.

    Raises:
        DSASError: of class `error_class`, whatever went wrong in the block, unless that is a DSASError itself.

    Example:
        >>> with catch_load_errors("user/model"):
        ...     raise KeyError("weight")
        Traceback (most recent call last):
        dsas_core.errors.UnavailableError: cannot load user/model: 'weight'
    """
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    if not warns:
        logging.set_verbosity_error()
    try:
        yield
    except DSASError:  # one line already
        raise
    except Exception as error:  # transformers and the Hub raise a dozen classes here
        raise error_class(f"cannot load {name}: {reason_of(error)}") from error
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def load_pretrained(
    name: str | Path, model_class: str, processor_class: str, device: str, kind: str = "model", **options: Any
) -> tuple[Any, Any, list[str]]:
    """A model of transformers in float32 with its processor, and the names of weights that its files lack.

    Args:
        name: a folder or Hub name; weights are read from safetensors only.
        model_class: name of a class of transformers, such as "AutoModel".
        processor_class: the same, such as "AutoImageProcessor".
        device: as in `device_of`.
        kind: what the model is called in messages.
        options: further arguments of `from_pretrained` (revision, token, …).

    Raises:
        UnavailableError: no such model, or it cannot be loaded.
    """
    folder = Path(name)
    if not str(name):
        raise UnavailableError(f"no {kind} is named")
    if not folder.is_dir() and (str(name).count("/") > 1 or str(name).startswith((".", "/", "~"))):
        raise UnavailableError(f"no {kind} {name}: no such folder, and no Hub name (user/name)")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UnavailableError(f"{folder} is no {kind}: it has no config.json")

    import transformers

    settings = {"dtype": torch.float32, "use_safetensors": True, **options}
    with catch_load_errors(name):  # missing weights are reported by the caller
        loader = getattr(transformers, model_class)
        model, report = loader.from_pretrained(name, output_loading_info=True, **settings)
        processor = getattr(transformers, processor_class).from_pretrained(name, **hub_options(options))
    return model.eval().to(torch.device(device_of(device))), processor, sorted(report["missing_keys"])


def reason_of(error: Exception) -> str:
    """The message of another library's error in one line of at most 300 characters; its class where there is none.

    Example:
        >>> reason_of(OSError("no   such file")), reason_of(KeyError())
        ('no such file', 'KeyError')
    """
    return " ".join(str(error).split())[:300] or type(error).__name__
