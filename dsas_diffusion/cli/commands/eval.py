"""`dsas eval`: measure concepts against every arm, and write the evidence down."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from dsas_core import llm
from dsas_core.concept.concept import Concept
from dsas_core.errors import PromptError
from dsas_core.evaluation import ARMS, Plan, RunStore
from dsas_core.evaluation import report as reports
from dsas_core.learning.prompts.prompt_set import load_prompts
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
from ..argument_types import concept_alone, number, positive
from ..arguments import (
    CONCEPT,
    add_model,
    add_settings,
    language_model,
    pipeline,
    refuse_generation,
    share_of,
    shows_progress,
)
from ..output import table

#: options that only pictures know
PICTURES = ("judge", "clip", "features", "masks")
#: options that only language models know
TEXTS = ("tasks", "limit")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which concepts on which model, how much of it."""
    add_model(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--concept", "-c", action="append", type=concept_alone, metavar="FOLDER", help=f"{CONCEPT}; repeatable"
    )
    what.add_argument("--grid", metavar="FILE", help="learn and measure what a YAML file lists (see benchmarks/)")
    parser.add_argument("--prompts", metavar="FILE", help="prompt file to judge by (default: the concept's own)")
    parser.add_argument("--count", type=positive, metavar="N", help=f"prompts a side (default {Plan.count})")
    parser.add_argument("--seeds", type=positive, metavar="N", help=f"noise seeds (default {Plan.seeds})")
    parser.add_argument("--strengths", type=number, nargs="+", metavar="S", help="the grid, 1 among them")
    parser.add_argument(
        "--targets", type=number, nargs="+", metavar="P", help="probabilities: DSAS that chooses its strength (auto:P)"
    )
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), help="arms to measure (default: all)")
    parser.add_argument(
        "--judge", metavar="MODULE:FUNCTION", help="your own judge: pictures, prompts -> numbers in [0, 1]"
    )
    parser.add_argument("--clip", metavar="MODEL", help="a CLIP's folder or Hub name, for how well pictures fit")
    parser.add_argument(
        "--features",
        metavar="MODEL",
        help="an image model's folder or Hub name, or MODULE:FUNCTION (pictures -> numbers [n, d]), for FID and KID",
    )
    parser.add_argument(
        "--masks",
        metavar="MODULE:FUNCTION",
        help="where pictures show the thing: pictures -> masks [height, width] or None (default: the prompt file's "
        "masks:, else what the judge knows)",
    )
    parser.add_argument(
        "--tasks", nargs="+", metavar="TASK", help="of lm-evaluation-harness, names or YAML files, for language models"
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="questions of each task (default: all)")
    parser.add_argument("--quick", action="store_true", help="DSAS and always on only, no other settings")
    add_settings(parser)
    parser.add_argument("--out", "-o", required=True, metavar="FOLDER", help="reports and what they were made from")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, write the reports; where they are, and the figures."""
    began = time.monotonic()
    share, out, load = share_of(args), Path(args.out), _loader(args)
    refused: dict[str, str] = {}
    if args.grid:
        if args.prompts:
            args.usage("--grid names its prompt files itself: leave --prompts out")
        grid = EvaluationGrid.read(args.grid)
        title = grid.title
        kits = [_kit(entry, args) for entry in grid.entries]
        learned, refused = learn_grid(grid, load, out, share, shows_progress(args))
        chosen = [(kit, learned[kit.entry.name]) for kit in kits if kit.entry.name in learned]
    else:
        plan = _plan_of(args, Plan())
        concepts = [Concept.from_pretrained(name) for name in args.concept]
        title = ", ".join(concept.name for concept in concepts)
        chosen = [(_kit(_entry(concept, plan, args), args), concept) for concept in concepts]
    document = {
        "title": title,
        "concepts": [_measure(kit, concept, load, out, share, shows_progress(args)) for kit, concept in chosen],
        "refused": refused,
        "command": shlex.join(["dsas", *sys.argv[1:]]),
        "processes": share.processes,
        "seconds": round(time.monotonic() - began, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": versions("diffusers", "transformers", "torchmetrics"),
    }
    written = reports.write_report(out, document) if share.process == 0 else []
    share.wait()
    return {**document, "files": [str(path) for path in written], "first": share.process == 0}


def report(document: dict[str, Any]) -> None:
    """The arms of each concept, and where to read more."""
    if not document["first"]:
        return
    for concept in document["concepts"]:
        title, headings, rows = reports.tables(concept)[0]
        print(f"\n{concept['name']}")
        table(headings, rows)
        for line in reports.plain_words(concept):
            print(line)
    for line in reports.refusals(document):
        print(f"\n{line}")
    print(f"\n{document['seconds']:.0f} s; read {document['files'][-1]}")


def _loader(args: argparse.Namespace) -> LoadModel:
    """What loads models as the command line says, each once."""

    @cache
    def load(name: str) -> tuple[Any, ...]:
        if llm.is_language_model(name):
            return language_model(args, name)
        pipe = pipeline(_with_model(args, name))
        pipe.set_progress_bar_config(disable=True)
        return (pipe,)

    return load


def _with_model(args: argparse.Namespace, name: str) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(args), "model": name})


def _plan_of(args: argparse.Namespace, plan: Plan) -> Plan:
    """The plan, with what the command line says otherwise."""
    given = {key: getattr(args, key) for key in ("count", "seeds") if getattr(args, key) is not None}
    given |= {key: tuple(getattr(args, key)) for key in ("strengths", "targets", "arms") if getattr(args, key)}
    if args.quick:
        given = {"arms": ("dsas", "on"), **given, "robustness": False}
    return replace(plan, **given)


def _entry(concept: Concept, plan: Plan, args: argparse.Namespace) -> GridEntry:
    """What to measure a saved concept on."""
    prompts: str | Mapping[str, Any] | None = args.prompts or concept.provenance.get("prompts")
    if prompts is None:
        raise PromptError(f"concept {concept.name!r} does not tell its prompts: pass --prompts")
    return GridEntry(concept.name, args.model, load_prompts(prompts), concept.method, concept.gate, {}, None, plan)


def _check(entry: GridEntry, args: argparse.Namespace) -> GridEntry:
    """The entry with its plan settled; what the command line asks of it in vain is told before the long work."""
    if llm.is_language_model(entry.model):
        refuse_generation(_with_model(args, entry.model))
        if asked := next((name for name in PICTURES if getattr(args, name)), None):
            args.usage(f"--{asked} is about pictures: what judges a language model stands in its prompt file")
    elif asked := next((name for name in TEXTS if getattr(args, name)), None):
        args.usage(f"--{asked} is about language models: leave it out")
    if not entry.prompts.judges and not args.judge:
        raise PromptError(
            f"prompt file {entry.prompts.name!r} names no judge: add one, such as judge: {{builtin: {{things: [dog], "
            "style: grey}}, or pass --judge MODULE:FUNCTION"
        )
    return replace(entry, plan=_plan_of(args, entry.plan))


@dataclass(frozen=True)
class _Kit:
    """An entry and what it is judged with: made before the long work, so that what cannot be had is told at once."""

    entry: GridEntry
    judges: Sequence[Any]
    options: Mapping[str, Any]


def _kit(entry: GridEntry, args: argparse.Namespace) -> _Kit:
    entry = _check(entry, args)
    if llm.is_language_model(entry.model):
        if args.tasks:
            from dsas_core.llm.evaluation.lm_eval_harness import check_tasks

            check_tasks(args.tasks)
        text_judges = [text_judge_from(spec) for spec in entry.prompts.judges]
        return _Kit(entry, text_judges, {"tasks": args.tasks or (), "limit": args.limit})
    ssim([], [])  # raises where torchmetrics is missing
    judges = [CallableJudge(args.judge)] if args.judge else [judge_from(spec) for spec in entry.prompts.judges]
    options: dict[str, Any] = {key: getattr(args, key) for key in ("steps", "guidance", "size", "clip")}
    if args.masks or entry.prompts.masks:
        options["masks"] = CallableMasks(args.masks) if args.masks else masks_from(entry.prompts.masks)
    if args.features:
        options["features"] = import_function(args.features, "features") if ":" in args.features else args.features
    return _Kit(entry, judges, options)


def _measure(
    kit: _Kit, concept: Concept, load: LoadModel, out: Path, share: Share, show_progress: bool
) -> dict[str, Any]:
    """One concept with its figures."""
    entry = kit.entry
    model = load(entry.model)
    domain: Any = texts if llm.is_language_model(entry.model) else pictures
    identity = domain.identity(model[0], concept, entry.prompts)
    store = RunStore(out / entry.name / "run", identity, share, show_progress)
    figures = domain.evaluate(*model, concept, entry.prompts, kit.judges, store, entry.plan, **kit.options)
    about = {"name": entry.name, "task": entry.prompts.name, "recipe": dict(entry.recipe)}
    about |= {"method": concept.method, "gate": concept.gate, "model": entry.model, "plan": asdict(entry.plan)}
    return {**about, **figures, "unit": concept.unit, "evidence": dict(concept.evidence)}
