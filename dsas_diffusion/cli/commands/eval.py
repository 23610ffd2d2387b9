"""`dsas eval`: measure concepts against every arm, and write the evidence down."""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from dsas_core import llm
from dsas_core.concept.concept import Concept
from dsas_core.errors import PromptError
from dsas_core.evaluation import Plan, RunStore
from dsas_core.evaluation import report as reports
from dsas_core.learning.prompts.kept import prompts_are_missing
from dsas_core.learning.prompts.prompt_file import load_prompts
from dsas_core.llm.evaluation import evaluate as texts
from dsas_core.llm.evaluation.judges import judge_from as text_judge_from
from dsas_core.utils.processes import Share
from dsas_core.utils.versions import versions

from ...evaluation import evaluate as pictures
from ...evaluation.grid_file import EvaluationGrid, GridEntry
from ...evaluation.grid_learning import LoadModel, learn_grid
from ...vision.judges import judge_from
from ...vision.picture_judge import CallableJudge, import_function
from ...vision.segmentation import CallableMasks, masks_from
from ...vision.similarity import ssim
from ..arguments import SETTINGS, open_model, refuse_generation, share_of, shows_progress, values_of
from ..output import print_table

#: options that only pictures know
PICTURES = ("judge", "clip", "features", "masks")
#: options that only language models know
TEXTS = ("tasks", "limit")
#: prompts a side of --quick, at most: with a built-in model that takes less than three minutes on two quiet cores
QUICK = 8


@dataclass(frozen=True)
class _Job:
    """A concept to measure.

    Args:
        entry: model, prompts and plan.
        judges: the judges of the prompt file, or of --judge.
        options: further arguments of `evaluate`.
    """

    entry: GridEntry
    judges: Sequence[Any]
    options: Mapping[str, Any]


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the concepts and write the reports.

    Returns:
        The figures, how they were measured, and the files.
    """
    began = time.monotonic()
    share, out, load = share_of(args), Path(args.out), cache(partial(open_model, args))
    refused: dict[str, str] = {}
    if args.grid:
        if args.prompts:
            args.usage("--grid names its prompt files itself: leave --prompts out")
        grid = EvaluationGrid.read(args.grid)
        title = grid.title
        jobs = [_job(entry, args) for entry in grid.entries]
        learned, refused = learn_grid(grid, load, out, share, shows_progress(args))
        measured = [(job, learned[job.entry.name]) for job in jobs if job.entry.name in learned]
    else:
        concepts = [Concept.from_pretrained(name) for name in args.concept]
        title = ", ".join(concept.name for concept in concepts)
        measured = [(_job(_entry(concept, args), args), concept) for concept in concepts]
    document = {
        "title": title,
        "concepts": [_measure(job, concept, load, out, share, shows_progress(args)) for job, concept in measured],
        "refused": refused,
        "command": args.command,
        "processes": share.processes,
        "seconds": round(time.monotonic() - began, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": versions("diffusers", "transformers", "torchmetrics"),
    }
    written = reports.write_report(out, document) if share.process == 0 else []
    share.wait()
    return {**document, "files": [str(path) for path in written], "first": share.process == 0}


def report(document: dict[str, Any]) -> None:
    """Print the arms of each concept, and where to read more."""
    if not document["first"]:
        return
    for concept in document["concepts"]:
        title, headings, rows = reports.tables(concept)[0]
        print(f"\n{concept['name']}")
        print_table(headings, rows)
        for line in reports.plain_words(concept):
            print(line)
    for line in reports.refusals(document):
        print(f"\n{line}")
    print(f"\n{document['seconds']:.0f} s; read {document['files'][-1]}")


def _entry(concept: Concept, args: argparse.Namespace) -> GridEntry:
    """A saved concept as an entry of a grid."""
    prompts: str | Mapping[str, Any] | None = args.prompts or concept.provenance.get("prompts")
    if prompts is None:
        raise prompts_are_missing(concept)
    return GridEntry(concept.name, args.model, load_prompts(prompts), concept.method, concept.gate, {}, None, Plan())


def _job(entry: GridEntry, args: argparse.Namespace) -> _Job:
    """Get ready to measure an entry, so that every mistake is found before the long work."""
    entry, is_text = replace(entry, plan=_override(entry.plan, args)), llm.is_language_model(entry.model)
    if is_text:
        refuse_generation(args, entry.model)
        if entry.plan.preserve:
            args.usage(f"preserve is about pictures, and {entry.model} is a language model: leave it out")
        if option := next((name for name in PICTURES if getattr(args, name)), None):
            args.usage(f"--{option} is about pictures: what judges a language model stands in its prompt file")
    elif option := next((name for name in TEXTS if getattr(args, name)), None):
        args.usage(f"--{option} is about language models: leave it out")
    if not entry.prompts.judges and not args.judge:
        raise PromptError(
            f"prompt file {entry.prompts.name!r} names no judge: add one, such as judge: {{builtin: {{things: [dog], "
            "style: grey}}, or pass --judge MODULE:FUNCTION"
        )
    return _text_job(entry, args) if is_text else _picture_job(entry, args)


def _override(plan: Plan, args: argparse.Namespace) -> Plan:
    """The plan, with the options of the command line in place of its own."""
    options = {key: value for key, value in values_of(args, "count", "seeds", "preserve").items() if value is not None}
    options |= {key: tuple(value) for key, value in values_of(args, "strengths", "targets", "arms").items() if value}
    if args.quick:
        options = {"arms": ("dsas", "on"), "count": min(plan.count, QUICK), **options, "robustness": False}
    return replace(plan, **options)


def _text_job(entry: GridEntry, args: argparse.Namespace) -> _Job:
    if args.tasks:
        from dsas_core.llm.evaluation.lm_eval_harness import check_tasks

        check_tasks(args.tasks)
    judges = [text_judge_from(spec) for spec in entry.prompts.judges]
    return _Job(entry, judges, {"tasks": args.tasks or (), "limit": args.limit})


def _picture_job(entry: GridEntry, args: argparse.Namespace) -> _Job:
    ssim([], [])  # raises where torchmetrics is missing
    judges = [CallableJudge(args.judge)] if args.judge else [judge_from(spec) for spec in entry.prompts.judges]
    options = values_of(args, *SETTINGS, "clip")
    if args.masks or entry.prompts.masks:
        options["masks"] = CallableMasks(args.masks) if args.masks else masks_from(entry.prompts.masks)
    if args.features:
        options["features"] = import_function(args.features, "features") if ":" in args.features else args.features
    return _Job(entry, judges, options)


def _measure(
    job: _Job, concept: Concept, load: LoadModel, out: Path, share: Share, show_progress: bool
) -> dict[str, Any]:
    """The figures of one concept."""
    entry = job.entry
    model = load(entry.model)
    domain: Any = texts if llm.is_language_model(entry.model) else pictures
    identity = domain.identity(model[0], concept, entry.prompts)
    store = RunStore(out / entry.name / "run", identity, share, show_progress)
    figures = domain.evaluate(*model, concept, entry.prompts, job.judges, store, entry.plan, **job.options)
    description = {"name": entry.name, "task": entry.prompts.name, "recipe": dict(entry.recipe)}
    description |= {"method": concept.method, "gate": concept.gate, "model": entry.model, "plan": asdict(entry.plan)}
    return {**description, **figures, "unit": concept.unit, "evidence": dict(concept.evidence)}
