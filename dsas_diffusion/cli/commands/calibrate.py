"""`dsas calibrate`: find a concept's unit of strength, and the useful ends of its slider."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from dsas_core import llm
from dsas_core.concept.concept import Concept
from dsas_core.concept.format import FILES
from dsas_core.errors import DSASError
from dsas_core.learning.calibration.slider_range import prompts_of
from dsas_core.learning.illustrate import try_illustrate
from dsas_core.utils.files import replace_folder

from ...learning.calibrate import calibrate
from ...learning.illustrate import illustrate
from ..argument_types import concept_alone, natural, not_negative, positive
from ..arguments import CONCEPT, add_model, add_settings, language_model, pipeline, refuse_generation, shows_progress
from ..concept_report import describe_concept, report_range
from ..output import check_writable, free_folder
from .learn import OURS, PROMPTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which concept, on which model and prompts, and where to."""
    add_model(parser)
    parser.add_argument("--concept", "-c", required=True, type=concept_alone, metavar="FOLDER", help=CONCEPT)
    parser.add_argument("--prompts", metavar="FILE", help="a prompt file (default: what the concept was learned from)")
    parser.add_argument("--count", type=positive, metavar="N", help="source prompts of --prompts (default: as learned)")
    parser.add_argument(
        "--drift",
        type=not_negative,
        metavar="LIMIT",
        help="how much control prompts may drift: the share of pictures that change (default 0.05); of texts, nats per "
        "token (default 0.01)",
    )
    parser.add_argument(
        "--seed",
        type=natural,
        metavar="N",
        help="of the noise, and of the choice among --prompts (default: as learned)",
    )
    add_settings(parser, "as learned")
    out = parser.add_mutually_exclusive_group(required=True)
    out.add_argument("--out", "-o", metavar="FOLDER", help="where to save the calibrated concept")
    out.add_argument("--in-place", action="store_true", help="write unit and range into the concept's own folder")
    parser.add_argument("--overwrite", action="store_true", help="replace a concept that is in --out")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Calibrate and save; what `dsas show` tells of the concept, and where it is."""
    if args.in_place and args.overwrite:
        args.usage("--overwrite goes with --out; --in-place writes into the concept's own folder")
    if args.count is not None and args.prompts is None:
        args.usage("--count goes with --prompts; a concept's own prompts are drawn as learning drew them")
    # All that can be wrong is found before the long work begins.
    concept, own = Concept.from_pretrained(args.concept), Path(args.concept).expanduser().resolve()
    if args.in_place:
        if not own.is_dir():
            raise DSASError(f"{args.concept} is no folder here to write into: pass --out")
        folder = own
        check_writable(folder)
    else:
        folder = free_folder(args.out, OURS, args.overwrite)
    prompts_of(concept, args.prompts, args.count, args.seed)
    calibrated, draw = _calibrate(args, concept)
    if concept.samples is not None:  # they are by strength, whose unit and ends may be others now
        calibrated = try_illustrate(calibrated, draw)
    with replace_folder(folder) as unfinished:
        calibrated.save_pretrained(unfinished)
        _copy_other_files(own, unfinished, everything=args.in_place)
    return {"out": str(own if args.in_place else args.out), **describe_concept(calibrated, folder)}


def _calibrate(args: argparse.Namespace, concept: Concept) -> tuple[Concept, Callable[[Concept], Concept]]:
    """The calibrated concept, and what draws samples for its card."""
    names = ("count", "seed", "drift") if args.drift is not None else ("count", "seed")
    settings: dict[str, Any] = {name: getattr(args, name) for name in names}
    settings["show_progress"] = shows_progress(args)
    if llm.is_language_model(args.model):
        refuse_generation(args)
        model, tokenizer = language_model(args)
        draw = partial(llm.illustrate, model, tokenizer)
        return llm.calibrate(model, tokenizer, concept, args.prompts, **settings), draw
    settings |= {name: getattr(args, name) for name in ("steps", "guidance", "size")}
    pipe = pipeline(args)
    draw = partial(illustrate, pipe, show_progress=shows_progress(args))
    return calibrate(pipe, concept, args.prompts, **settings), draw


def report(document: dict[str, Any]) -> None:
    """What was tried, the unit and the ends, and where the concept is."""
    report_range(document)
    print(f"\nsaved {document['name']} in {document['out']}")


def _copy_other_files(own: Path, unfinished: Path, *, everything: bool) -> None:
    """What lies beside a concept's own files: its prompt file, or, where its folder is replaced, all that is there."""
    for path in sorted(own.iterdir()) if own.is_dir() else ():
        if path.name in FILES or not (everything or path.name == PROMPTS):
            continue
        (shutil.copytree if path.is_dir() else shutil.copy2)(path, unfinished / path.name)
