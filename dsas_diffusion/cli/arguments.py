"""Options that several commands share, and the model that they name."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from dsas_core import llm
from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError, UnavailableError
from dsas_core.steering.steering import COMBINE, WITHIN
from dsas_core.steering.strengths import Auto, Strength
from dsas_core.utils.processes import Share, process_share
from dsas_core.utils.progress import progress_bar

from ..generation.settings import Settings
from ..pipelines.adapter import PipelineAdapter
from ..pipelines.batch_layout import BRANCHES
from ..pipelines.load import load_pipeline
from ..steering.steer import ATTACH
from .argument_types import concept_and_strength, name_and_word, natural, number, positive, schedule

GATES = {"own": None, "on": "on", "off": "off"}
#: what a concept may be given by
CONCEPT = "a concept's folder, its Hub name, or builtin:NAME"
DTYPES = ("auto", "float32", "float16", "bfloat16")


def add_model(parser: argparse.ArgumentParser) -> None:
    """--model, --device, --dtype."""
    parser.add_argument("--model", default="builtin:emoji", help="builtin:emoji (default), a folder, or a Hub name")
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """--device, --dtype."""
    parser.add_argument(
        "--device", default="auto", help="auto (default: a GPU if there is one), cpu, cuda, cuda:1, mps"
    )
    parser.add_argument(
        "--dtype", default="auto", choices=DTYPES, help="auto is half precision on a GPU, float32 elsewhere"
    )


def add_concepts(parser: argparse.ArgumentParser) -> None:
    """--concept, --combine, --within, --gate."""
    parser.add_argument(
        "--concept",
        "-c",
        action="append",
        default=[],
        type=concept_and_strength,
        metavar="FOLDER=STRENGTH",
        help=f"{CONCEPT}; strength 1 by default, negative goes the other way, auto (or auto:P) "
        "as far as the probe's probability is above P (default 0.5); repeatable",
    )
    parser.add_argument(
        "--combine",
        choices=COMBINE,
        default="sum",
        help="several concepts at one place: sum: all that each changes (default); blend: as much as one alone would",
    )
    add_within(parser)
    add_gate(parser)


def add_within(parser: argparse.ArgumentParser) -> None:
    """--within."""
    parser.add_argument(
        "--within",
        choices=[kind for kind in WITHIN if kind],
        help="target: only as much of each strength as keeps activations among those of the concept's targets, for "
        "concepts learned with --cloud",
    )


def add_schedule(parser: argparse.ArgumentParser) -> None:
    """--schedule, --interpolate-bins."""
    parser.add_argument(
        "--schedule",
        type=schedule,
        metavar="KIND:A:B",
        help="strength over the timestep, from 1000 (noise) to 0: linear:FIRST:LAST and cosine:FIRST:LAST are factors "
        "there, window:START:STOP is 1 between two timesteps, constant:F the same everywhere, table:T=F,T=F linear "
        "between its points",
    )
    parser.add_argument(
        "--interpolate-bins",
        action="store_true",
        help="let probes and maps of several timestep bins go over into one another, not change at the bins' edges",
    )


def add_attaching(parser: argparse.ArgumentParser) -> None:
    """--rows, --attach."""
    parser.add_argument(
        "--rows",
        choices=BRANCHES,
        default="conditional",
        help="of classifier-free guidance: the prompt's rows (default), those of the negative prompt, or both",
    )
    parser.add_argument(
        "--attach",
        choices=ATTACH,
        default="hooks",
        help="how the denoiser's attention layers are got at: by hooks (default) or by attention processors",
    )


def add_gate(parser: argparse.ArgumentParser) -> None:
    """--gate."""
    parser.add_argument(
        "--gate", choices=tuple(GATES), default="own", help="own: each concept's; on: steer everything; off: nothing"
    )


def add_words(parser: argparse.ArgumentParser) -> None:
    """--words."""
    parser.add_argument(
        "--words",
        action="append",
        default=[],
        type=name_and_word,
        metavar="NAME=WORD",
        help="steer the concept of that name only where the picture looks at a word (or phrase) of the prompt, and not "
        "at all where the prompt lacks it; for concepts of the denoiser; repeatable",
    )


def words_by_name(given: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """What --words gave, by concept."""
    return {name: [word for other, word in given if other == name] for name, _ in given}


def add_generation(parser: argparse.ArgumentParser) -> None:
    """--seed, --steps, --guidance, --size."""
    parser.add_argument("--seed", type=natural, default=0, metavar="N", help="of the noise (default 0)")
    add_settings(parser)


def add_settings(parser: argparse.ArgumentParser, default: str = "as suits the model") -> None:
    """--steps, --guidance, --size."""
    parser.add_argument("--steps", type=positive, metavar="N", help=f"denoising steps (default: {default})")
    parser.add_argument("--guidance", type=number, metavar="SCALE", help=f"guidance scale (default: {default})")
    parser.add_argument("--size", type=positive, metavar="PIXELS", help=f"of a picture's side (default: {default})")


def generation_record(args: argparse.Namespace, adapter: PipelineAdapter, settings: Settings) -> dict[str, Any]:
    """Seed, settings, device and precision of pictures, to draw the same ones again."""
    return {
        "seed": args.seed,
        "steps": settings.steps,
        "guidance": settings.guidance,
        "size": settings.size,
        "device": str(adapter.pipe.device),
        "dtype": str(adapter.pipe.dtype).removeprefix("torch."),
    }


def refuse_generation(args: argparse.Namespace) -> None:
    """A usage error where a language model is given what only pictures are made with."""
    if any(value is not None for value in (args.steps, args.guidance, args.size)):
        args.usage(f"{args.model} is a language model: it takes neither --steps nor --guidance nor --size")


def read_concepts(given: Sequence[tuple[str, float | Auto]]) -> dict[Concept, Strength]:
    """Read concepts before anything slow begins; a strength beyond a concept's range is told of, and taken."""
    concepts: dict[Concept, Strength] = {}
    for name, strength in given:
        concept = Concept.from_pretrained(name)
        if concept.name in (other.name for other in concepts):
            raise DSASError(f"two concepts are named {concept.name!r}: give one strength to one concept")
        concepts[concept] = strength
        if concept.range is not None and not isinstance(strength, Auto):
            low, high = concept.range
            if not low <= strength <= high:
                warnings.warn(
                    f"strength {strength:g} of {concept.name!r} is beyond its range, {low:g} to {high:g}: results may "
                    "fall apart, or no longer change",
                    stacklevel=1,
                )
    return concepts


def share_of(args: argparse.Namespace) -> Share:
    """What this process is among those that were started together, by where --device has them compute."""
    return process_share(on_cpu=args.device == "cpu" or not torch.cuda.is_available())


def shows_progress(args: argparse.Namespace) -> bool:
    """Whether progress bars are wanted."""
    return not (args.json or args.quiet)


def pipeline(args: argparse.Namespace, *, steps_bar: bool = False) -> Any:
    """The pipeline of --model, --device and --dtype; with a bar over its denoising steps where asked.

    Raises:
        DSASError: no such model or device.
    """
    pipe = _load(args, args.model, load_pipeline)
    if steps_bar and shows_progress(args):
        pipe.set_progress_bar_config(desc="denoising", leave=False)
    return pipe


def language_model(args: argparse.Namespace, name: str | None = None) -> tuple[Any, Any]:
    """The language model of --model (or of another name), --device and --dtype, and its tokenizer.

    Raises:
        DSASError: no such model or device.
    """
    model, tokenizer = _load(args, name or args.model, llm.load)
    return model, tokenizer


def _load(args: argparse.Namespace, name: str, load: Callable[..., Any]) -> Any:
    try:
        torch.empty(0, device=None if args.device == "auto" else args.device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UnavailableError(f"device {args.device!r} cannot be used: {str(error).splitlines()[0]}") from None
    with progress_bar(1, f"loading {name}", shows_progress(args)) as bar:
        if not shows_progress(args):
            from huggingface_hub.utils import disable_progress_bars

            disable_progress_bars()
        model = load(name, device=args.device, dtype=args.dtype)
        bar.update()
    return model
