"""The model and the concepts that a command's arguments name, and what records say of its arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dsas_core import llm
from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError
from dsas_core.steering.strengths import Auto, Strength, warn_beyond_range
from dsas_core.utils.processes import Share, process_share
from dsas_core.utils.progress import progress_bar

from ..generation.settings import Settings, settings_of
from ..pipelines.adapter import PipelineAdapter, adapt
from ..pipelines.load import load_pipeline
from ..steering.blending import read_masks

#: options that only pictures are drawn with; fields of Settings as well
SETTINGS = ("steps", "guidance", "size")


def values_of(source: object, *names: str) -> dict[str, Any]:
    """Attributes by name: options of a command, or fields of a record.

    Example:
        >>> values_of(argparse.Namespace(seed=3, steps=None, out="x"), "seed", "steps")
        {'seed': 3, 'steps': None}
    """
    return {name: getattr(source, name) for name in names}


def words_by_concept(pairs: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """The values of --words, by concept.

    Example:
        >>> words_by_concept([("blur", "banana"), ("grey", "dog"), ("blur", "fruit")])
        {'blur': ['banana', 'fruit'], 'grey': ['dog']}
    """
    return {name: [word for other, word in pairs if other == name] for name, _ in pairs}


def read_preserve(given: bool | str) -> Any:
    """The value of --preserve as `generate` takes it: a picture file as a mask.

    Raises:
        DSASError: no such file, or no mask.
    """
    if given is True or given is False or given == "latents":
        return given
    try:
        with Image.open(given) as picture:
            return read_masks(picture)
    except OSError:
        found = "no picture" if Path(given).is_file() else "no such file"
        raise DSASError(
            f"--preserve {given}: {found}: expected no value, latents, or a grey picture file, white where the picture "
            "may change"
        ) from None
    except DSASError as error:
        raise DSASError(f"--preserve {given}: {error}") from None


def generation_record(args: argparse.Namespace, adapter: PipelineAdapter, settings: Settings) -> dict[str, Any]:
    """Seed, settings, device and precision of pictures, to draw the same ones again."""
    device = {"device": str(adapter.pipe.device), "dtype": str(adapter.pipe.dtype).removeprefix("torch.")}
    return {"seed": args.seed, **values_of(settings, *SETTINGS), **device}


def refuse_generation(args: argparse.Namespace, model: str) -> None:
    """Exit with a usage error where a language model is given settings of pictures."""
    if any(value is not None for value in values_of(args, *SETTINGS).values()):
        args.usage(f"{model} is a language model: it takes neither --steps nor --guidance nor --size")


def read_concepts(pairs: Sequence[tuple[str, float | Auto]]) -> dict[Concept, Strength]:
    """Read concepts before anything slow begins, and warn of strengths beyond a concept's range.

    Args:
        pairs: each concept's folder, Hub name or builtin:NAME, and its strength.

    Returns:
        The strength by concept.

    Raises:
        DSASError: no such concept, or two of one name.
    """
    concepts: dict[Concept, Strength] = {}
    for source, strength in pairs:
        concept = Concept.from_pretrained(source)
        if concept.name in (other.name for other in concepts):
            raise DSASError(f"two concepts are named {concept.name!r}: give one strength to one concept")
        concepts[concept] = strength
        if not isinstance(strength, Auto):
            warn_beyond_range(concept.name, strength, concept.range)
    return concepts


def share_of(args: argparse.Namespace) -> Share:
    """This process among those that were started together, by where --device has them compute."""
    return process_share(on_cpu=args.device == "cpu" or not torch.cuda.is_available())


def shows_progress(args: argparse.Namespace) -> bool:
    """Whether progress bars are wanted."""
    return not (args.json or args.quiet)


def open_model(args: argparse.Namespace, name: str | None = None) -> tuple[Any, ...]:
    """Load the model of --model, or of another name.

    Returns:
        (pipeline,) or (language model, tokenizer).

    Raises:
        DSASError: no such model or device.
    """
    is_text = llm.is_language_model(name or args.model)
    return open_language_model(args, name) if is_text else (open_pipeline(args, name),)


def open_for_drawing(args: argparse.Namespace) -> tuple[PipelineAdapter, Settings]:
    """Load the pipeline of --model, with a progress bar over denoising steps unless --quiet or --json.

    Returns:
        The adapter of the pipeline, and the settings of its pictures by --steps, --guidance and --size.

    Raises:
        DSASError: no such model or device.
        UnsupportedError: a pipeline that draws from more than a text.
    """
    adapter = adapt(open_pipeline(args))
    if shows_progress(args):
        adapter.pipe.set_progress_bar_config(desc="denoising", leave=False)
    return adapter, settings_of(adapter, **values_of(args, *SETTINGS))


def open_pipeline(args: argparse.Namespace, name: str | None = None) -> Any:
    """Load the pipeline of --model, or of another name, by --device and --dtype.

    Raises:
        DSASError: no such model or device.
    """
    return _load(args, name, load_pipeline)


def open_language_model(args: argparse.Namespace, name: str | None = None) -> tuple[Any, Any]:
    """Load the language model of --model, or of another name, and its tokenizer, by --device and --dtype.

    Raises:
        DSASError: no such model or device.
    """
    return _load(args, name, llm.load)


def _load(args: argparse.Namespace, name: str | None, load: Callable[..., Any]) -> Any:
    chosen = name or args.model
    options = {"device": args.device, "dtype": args.dtype}
    if chosen == args.model:  # other models that a command loads have their files named in another way
        options |= {key: value for key in ("variant", "config") if (value := getattr(args, key, None)) is not None}
    with progress_bar(1, f"loading {chosen}", shows_progress(args)) as bar:
        if not shows_progress(args):
            from huggingface_hub.utils import disable_progress_bars

            disable_progress_bars()
        model = load(chosen, **options)
        bar.update()
    return model
