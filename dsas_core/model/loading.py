"""Common to all loaders: where a model comes from, which device it goes to, and in which precision."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..errors import DSASError, UnavailableError, UnsupportedError, did_you_mean, quote

#: what the names of models and concepts that come with the package begin with
BUILTIN = "builtin:"
#: the dtypes that models are loaded in
DTYPES = {name: getattr(torch, name) for name in ("float32", "float16", "bfloat16", "float64")}
#: suffixes of files that are unpickled, and of all files that weights come in
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
FILES = (*PICKLES, ".safetensors", ".gguf")
#: what a model's config, tokenizer and processor are loaded with, like the model itself
HUB_OPTIONS = (
    *("revision", "token", "trust_remote_code", "cache_dir", "force_download", "local_files_only", "proxies"),
    *("subfolder", "code_revision"),
)


def device_of(device: str | torch.device) -> str:
    """The name of a device that can be used: "auto" is a GPU if there is one, else the CPU.

    Raises:
        UnavailableError: no such device here.

    Example:
        >>> device_of("cpu")
        'cpu'
    """
    if isinstance(device, str) and device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        if chosen.type == "cpu" and chosen.index:
            raise RuntimeError("there is one cpu")
        is_usable = torch.zeros(1, device=chosen).tolist() == [0.0]  # of meta, which holds no numbers, an error
    except Exception as error:  # each kind of device raises its own
        raise UnavailableError(
            f"device {quote(device)} cannot be used: {reason_of(error)[:200]}: expected auto, cpu or a GPU that is here"
        ) from None
    if not is_usable:
        raise UnavailableError(f"device {quote(device)} cannot be used: it does not compute: expected auto or cpu")
    return str(chosen)


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
    if isinstance(dtype, str) and dtype == "auto":
        return torch.float32 if device == "cpu" else half
    resolved = DTYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if not isinstance(resolved, torch.dtype) or resolved not in DTYPES.values():
        raise DSASError(f"dtype {quote(dtype)}: expected auto, float32, float16 or bfloat16")
    return resolved


def take_dtype(dtype: Any, options: dict[str, Any]) -> Any:
    """The dtype that is asked for: by `dtype`, or by its former name `torch_dtype`, which is taken out of the options.

    Raises:
        DSASError: both are given, and differ.

    Example:
        >>> take_dtype("auto", {"torch_dtype": torch.float16})
        torch.float16
    """
    former = options.pop("torch_dtype", None)
    if former is None:
        return "auto" if dtype is None else dtype
    if dtype not in (None, "auto", former, str(former).removeprefix("torch.")):
        raise DSASError(f"dtype {quote(dtype)} and torch_dtype {quote(former)} are one setting: give dtype alone")
    return former


def check_safetensors(options: dict[str, Any]) -> None:
    """Take `use_safetensors` out of the options of a loader, which reads nothing but safetensors.

    Raises:
        UnsupportedError: it asks for pickles.
    """
    if options.pop("use_safetensors", None) is False:
        raise UnsupportedError(
            "use_safetensors=False asks for pickled weights, and loading a pickle runs what is in it: leave it out, "
            "and convert the weights with save_pretrained(folder, safe_serialization=True) where they are trusted"
        )


def check_variant(name: str | Path, parts: Sequence[Path], variant: object) -> None:
    """Check that folders have the weights asked for; files have the variant in their names (model.fp16.safetensors).

    Args:
        name: of the model, for the message.
        parts: folders of its parts; those without weights do not count.
        variant: name of the variant, or None for the weights without one.

    Raises:
        UnavailableError: there are other weights only; the message names them.
    """
    found = [variants for part in parts if (variants := variants_of(part))]
    others = sorted({other for variants in found for other in variants if other})
    if variant is None and not all("" in variants for variants in found):
        way = f'pass variant="{others[0]}" (--variant {others[0]})'
        raise UnavailableError(
            f"cannot load {name}: its weights are there as variant {' or '.join(others)} only: {way}"
        )
    if variant is not None and found and not any(variant in variants for variants in found):
        known = f"there is {', '.join(others)}" if others else "its files have none: leave variant out"
        raise UnavailableError(f"cannot load {name}: no weights of variant {quote(variant)}; {known}")


def variants_of(folder: Path) -> set[str]:
    """Variants of the safetensors in a folder, "" for weights without one.

    Example:
        >>> variants_of(Path("nowhere"))
        set()
    """
    stems = [re.sub(r"-\d{5}-of-\d{5}", "", path.name) for path in folder.glob("*.safetensors")]
    return {".".join(stem.split(".")[1:-1]) for stem in stems}


def check_name(name: object, kind: str = "model") -> None:
    """Raise an UnavailableError where what should name a model cannot be a name, or a path here.

    Example:
        >>> check_name("")
        Traceback (most recent call last):
        dsas_core.errors.UnavailableError: model '': expected a folder, a Hub name (user/name), or builtin:NAME
    """
    try:
        Path(name).is_dir()  # type: ignore[arg-type]
        if str(name).strip():
            return
    except (OSError, TypeError, ValueError):  # too long; no text; a character that no path has
        pass
    raise UnavailableError(f"{kind} {quote(name)}: expected a folder, a Hub name (user/name), or {BUILTIN}NAME")


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
    check_name(name, kind)
    if str(name).startswith(BUILTIN):
        if str(name) not in builtin:
            raise UnavailableError(f"no built-in {kind} {name}; there is {known}{did_you_mean(name, builtin)}")
        return builtin[str(name)]
    if Path(name).is_file() or Path(name).suffix.lower() in FILES:
        raise UnavailableError(_why_no_file(Path(name), kind))
    if not Path(name).is_dir() and not is_hub_name(name):
        raise UnavailableError(
            f"no model {name}: no such folder, no Hub name (user/name), and not built in ({known})"
            f"{did_you_mean(name, builtin)}"
        )
    return name


def _why_no_file(path: Path, kind: str) -> str:
    """Why a file is no model to load, in one line."""
    if path.suffix.lower() in PICKLES:
        return (
            f"{path} is a pickle, and loading a pickle runs what is in it: take the model as safetensors, or convert "
            "it where it is trusted"
        )
    if not path.is_file():
        return f"no {kind} {path}: no such file"
    return f"{path} is a file, which does not tell what {kind} its weights are of: name the folder that holds it"


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
    """Whether a name has the form of a Hub repository's, user/name, and not that of a file of weights in a folder.

    Example:
        >>> is_hub_name("user/banana"), is_hub_name("./banana"), is_hub_name("models/banana.gguf")
        (True, False, False)
    """
    text = str(name)
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text, re.ASCII)) and Path(text).suffix.lower() not in FILES


def hub_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a model's `from_pretrained` that its config, tokenizer and processor take, too.

    Example:
        >>> hub_options({"revision": "main", "dtype": "auto"})
        {'revision': 'main'}
    """
    return {key: value for key, value in options.items() if key in HUB_OPTIONS}


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
