"""`dsas calibrate`: find a concept's unit of strength, and the useful ends of its slider."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from dsas_core import llm
from dsas_core.concept.concept import Concept
from dsas_core.concept.format import save_concept
from dsas_core.concept.storage.own_files import recognise_concept
from dsas_core.errors import DSASError
from dsas_core.learning.calibration.slider_range import prompts_of

from ...learning.calibrate import calibrate
from ..arguments import SETTINGS, open_model, refuse_generation, shows_progress, values_of
from ..concept_report import describe_concept, report_range
from ..output import check_output_folder, check_writable
from .learn import OURS, PROMPTS, add_samples, save_or_evade


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Calibrate a concept and save it.

    Returns:
        The concept as `dsas show` has it, and where it is.
    """
    if args.in_place and args.overwrite:
        args.usage("--overwrite goes with --out; --in-place writes into the concept's own folder")
    if args.count is not None and args.prompts is None:
        args.usage("--count goes with --prompts; a concept's own prompts are drawn as learning drew them")
    # Every mistake is found before the long work begins.
    concept, own = Concept.from_pretrained(args.concept), Path(args.concept).expanduser().resolve()
    if not args.in_place:
        known = partial(recognise_concept, overwrite=args.overwrite)
        folder = check_output_folder(args.out, OURS, args.overwrite, known)
    elif own.is_dir():
        folder = own
        check_writable(folder / "any")
    else:
        raise DSASError(f"{args.concept} is no folder here to write into: pass --out")
    prompts_of(concept, args.prompts, args.count, args.seed)
    calibrated = _calibrate(args, concept)
    if args.in_place:
        saved = save_concept(calibrated, folder, overwrite=True)
    else:
        drafted = own / PROMPTS
        beside = {PROMPTS: drafted.read_bytes()} if drafted.is_file() and own != folder else {}
        saved = save_or_evade(calibrated, folder, args.overwrite, beside)
    out = args.out if not args.in_place and saved == folder else str(saved)
    return {"out": str(out), **describe_concept(calibrated, saved)}


def _calibrate(args: argparse.Namespace, concept: Concept) -> Concept:
    """The concept with a new unit and range, and new samples on its card where it had some."""
    is_text = llm.is_language_model(args.model)
    names = ["count", "seed", *(["drift"] if args.drift is not None else [])]
    if is_text:
        refuse_generation(args, args.model)
    else:
        names += SETTINGS
    model = open_model(args)
    settings = {**values_of(args, *names), "show_progress": shows_progress(args)}
    find_unit_and_range: Callable[..., Concept] = llm.calibrate if is_text else calibrate
    calibrated = find_unit_and_range(*model, concept, args.prompts, **settings)
    # samples are by strength, whose unit and ends may be others now
    return calibrated if concept.samples is None else add_samples(args, model, calibrated)


def report(document: dict[str, Any]) -> None:
    """Print the strengths that were tried, the unit and range, and where the concept is."""
    report_range(document)
    print(f"\nsaved {document['name']} in {document['out']}")
