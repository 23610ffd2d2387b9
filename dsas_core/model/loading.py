"""What every loader asks first: where the model comes from, where it goes, and in which precision."""

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
    """The name of a device: "auto" is a GPU where there is one, else the CPU.

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
        device: where the model goes.
        half: of 16 bits, what "auto" is on a GPU.

    Raises:
        DSASError: a name that is no dtype.

    Example:
        >>> dtype_of("auto", "cpu", torch.float16)
        torch.float32
    """
    if dtype == "auto":
        return torch.float32 if device == "cpu" else half
    if isinstance(dtype, str):
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise DSASError(f"dtype {dtype!r}: expected auto, float32, float16 or bfloat16")
        dtype = getattr(torch, dtype)
    assert isinstance(dtype, torch.dtype)
    return dtype


def source_of(name: str | Path, builtin: Mapping[str, Path], kind: str = "model") -> str | Path:
    """What `from_pretrained` is to be given: the folder of a built-in model, another folder, or a Hub name (user/name).

    Args:
        name: what was asked for.
        builtin: folders of the built-in models by name.
        kind: what the models are called in the message.

    Raises:
        UnavailableError: no such built-in model, no such folder, and no Hub name.
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
    """What a loaded model was asked for by: a built-in one's name, else its `name_or_path`, else that of its class."""
    source = str(getattr(model, "name_or_path", "") or type(model).__name__)
    return next((name for name, folder in builtin.items() if str(folder) == source), source)


def is_hub_name(name: str | Path) -> bool:
    """Whether a name has the form of a repository on the Hub, user/name.

    Example:
        >>> is_hub_name("user/banana"), is_hub_name("./banana")
        (True, False)
    """
    return str(name).count("/") == 1 and not str(name).startswith((".", "/", "~"))


def hub_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a model's `from_pretrained` arguments that its config, tokenizer or processor take, too."""
    return {key: value for key, value in options.items() if key in ("revision", "token", "trust_remote_code")}


@contextmanager
def loading(name: str | Path, raises: type[DSASError] = UnavailableError, *, warns: bool = False) -> Iterator[None]:
    """Load from transformers without its progress bars; whatever it raises inside becomes one line.

    Args:
        name: what is loaded, for the message.
        raises: the class of the error.
        warns: let warnings of transformers through.
    """
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    if not warns:
        logging.set_verbosity_error()
    try:
        yield
    except Exception as error:  # transformers and the Hub raise a dozen kinds here
        raise raises(f"cannot load {name}: {reason_of(error)}") from error
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def load_pretrained(
    name: str | Path, model_class: str, processor_class: str, device: str, kind: str = "model", **options: Any
) -> tuple[Any, Any, list[str]]:
    """A model of transformers in float32 with its processor, and the names of the weights that it lacks.

    Args:
        name: a folder or Hub name; weights are read from safetensors only.
        model_class, processor_class: of transformers, such as "AutoModel" and "AutoImageProcessor".
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
    with loading(name, UnavailableError):  # what is missing is told by whoever asked
        loader = getattr(transformers, model_class)
        model, report = loader.from_pretrained(name, output_loading_info=True, **settings)
        processor = getattr(transformers, processor_class).from_pretrained(name, **hub_options(options))
    return model.eval().to(torch.device(device_of(device))), processor, sorted(report["missing_keys"])


def reason_of(error: Exception) -> str:
    """What an error of another library says, in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
