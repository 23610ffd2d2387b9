"""`dsas eval`: measure concepts against every arm, and write the evidence down."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dsas_core import llm
from dsas_core.concept import Concept
from dsas_core.errors import DSASError
from dsas_core.evaluate import ARMS, Plan, Run
from dsas_core.evaluate import report as reports
from dsas_core.llm import evaluate as texts
from dsas_core.prompts import read
from dsas_core.provenance import versions

from .. import evaluate as pictures
from ..grid import Entry, Grid
from ..judges import CallableJudge, imported, judge_from
from ..learn import Lesson
from ..masks import CallableMasks, masks_from, masks_of
from ..similarity import ssim
from .argument_types import concept_alone, number, positive
from .arguments import (
    CONCEPT,
    add_model,
    add_settings,
    language_model,
    pipeline,
    refuse_generation,
    share_of,
    shows_progress,
)
from .output import table

#: in the folder of a concept that cannot be learned: why
REFUSED = "refused.txt"
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
    share = share_of(args)
    process, processes, wait = share.process, share.processes, share.wait
    out = Path(args.out)
    models = _Models(args)
    if args.grid:
        if args.prompts:
            args.usage("--grid names its prompt files itself: leave --prompts out")
        grid = Grid.read(args.grid)
        title = grid.title
        chosen = [_checked(entry, args) for entry in grid.entries]
        kits = [_kit(entry, args) for entry in chosen]
        learned, refused = _learned(grid, models, out, process, processes, wait, args)
        kits = [kit for entry, kit in zip(chosen, kits, strict=True) if entry.name in learned]
        chosen = [entry for entry in chosen if entry.name in learned]
        concepts = [learned[entry.name] for entry in chosen]
    else:
        refused = {}
        plan = _planned(args, Plan())
        concepts = [Concept.from_pretrained(name) for name in args.concept]
        title = ", ".join(concept.name for concept in concepts)
        chosen = [_checked(_entry(concept, plan, args), args) for concept in concepts]
        kits = [_kit(entry, args) for entry in chosen]
    found = []
    sharing = {"process": process, "processes": processes, "wait": wait, "show_progress": shows_progress(args)}
    for entry, concept, kit in zip(chosen, concepts, kits, strict=True):
        figures = _measured(entry, concept, kit, models, out, sharing)
        about: dict[str, Any] = {"name": entry.name, "task": entry.prompts.name, "recipe": dict(entry.recipe)}
        about |= {"method": concept.method, "gate": concept.gate}
        found.append({**about, "model": entry.model, "plan": asdict(entry.plan), **figures})
    document = {
        "title": title,
        "concepts": found,
        "refused": refused,
        "command": shlex.join(["dsas", *sys.argv[1:]]),
        "processes": processes,
        "seconds": round(time.monotonic() - began, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": versions("diffusers", "transformers", "torchmetrics"),
    }
    written = reports.write(out, document) if process == 0 else []
    wait()
    return {**document, "files": [str(path) for path in written], "first": process == 0}


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


class _Models:
    """Pipelines and language models by name, loaded when they are first asked for."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._pipelines: dict[str, Any] = {}
        self._texts: dict[str, tuple[Any, Any]] = {}

    def pipeline(self, name: str) -> Any:
        if name not in self._pipelines:
            self._pipelines[name] = pipeline(_of_model(self._args, name))
            self._pipelines[name].set_progress_bar_config(disable=True)
        return self._pipelines[name]

    def text(self, name: str) -> tuple[Any, Any]:
        if name not in self._texts:
            self._texts[name] = language_model(_of_model(self._args, name))
        return self._texts[name]


def _of_model(args: argparse.Namespace, name: str) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(args), "model": name})


def _planned(args: argparse.Namespace, plan: Plan) -> Plan:
    """The plan, with what the command line says otherwise."""
    given = {key: getattr(args, key) for key in ("count", "seeds") if getattr(args, key) is not None}
    given |= {key: tuple(getattr(args, key)) for key in ("strengths", "targets", "arms") if getattr(args, key)}
    if args.quick:
        given = {"arms": ("dsas", "on"), **given, "robustness": False}
    return replace(plan, **given)


def _entry(concept: Concept, plan: Plan, args: argparse.Namespace) -> Entry:
    """What to measure a saved concept on."""
    prompts: str | Mapping[str, Any] | None = args.prompts or concept.provenance.get("prompts")
    if prompts is None:
        raise DSASError(f"concept {concept.name!r} does not tell its prompts: pass --prompts")
    return Entry(concept.name, args.model, read(prompts), concept.method, concept.gate, {}, None, plan)


def _checked(entry: Entry, args: argparse.Namespace) -> Entry:
    """The entry with its plan settled; what the command line asks of it in vain is told before the long work."""
    if llm.is_language_model(entry.model):
        refuse_generation(_of_model(args, entry.model))
        if asked := next((name for name in PICTURES if getattr(args, name)), None):
            args.usage(f"--{asked} is about pictures: what judges a language model stands in its prompt file")
    elif asked := next((name for name in TEXTS if getattr(args, name)), None):
        args.usage(f"--{asked} is about language models: leave it out")
    if not entry.prompts.judges and not args.judge:
        raise DSASError(
            f"prompt file {entry.prompts.name!r} names no judge: add one, such as judge: {{builtin: {{things: [dog], "
            "style: grey}}, or pass --judge MODULE:FUNCTION"
        )
    return replace(entry, plan=_planned(args, entry.plan))


@dataclass(frozen=True)
class _Kit:
    """What an entry is judged with: made before the long work, so that what cannot be had is told at once."""

    judges: Sequence[Any]
    options: Mapping[str, Any]


def _kit(entry: Entry, args: argparse.Namespace) -> _Kit:
    if llm.is_language_model(entry.model):
        if args.tasks:
            from dsas_core.llm.harness import check_tasks

            check_tasks(args.tasks)
        text_judges = [texts.judge_from(spec) for spec in entry.prompts.judges]
        return _Kit(text_judges, {"tasks": args.tasks or (), "limit": args.limit})
    ssim([], [])  # raises where torchmetrics is missing
    judges = [CallableJudge(args.judge)] if args.judge else [judge_from(spec) for spec in entry.prompts.judges]
    told: dict[str, Any] = {key: getattr(args, key) for key in ("steps", "guidance", "size", "clip")}
    if args.masks or entry.prompts.masks:
        told["masks"] = CallableMasks(args.masks) if args.masks else masks_from(entry.prompts.masks)
    if args.features:
        told["features"] = imported(args.features, "features") if ":" in args.features else args.features
    return _Kit(judges, told)


def _learned(
    grid: Grid,
    models: _Models,
    out: Path,
    process: int,
    processes: int,
    wait: Callable[[], object],
    args: argparse.Namespace,
) -> tuple[dict[str, Concept], dict[str, str]]:
    """The concepts of a grid, learned where they are not there yet, each by one process; why others cannot be.

    Raises:
        DSASError: none can be learned.
    """
    lessons = _Lessons(models, {**grid.learn, "show_progress": shows_progress(args)})
    for i, entry in enumerate(sorted(grid.entries, key=lambda entry: str(lessons.key_of(entry)))):
        folder = out / entry.name / "concept"
        if i % processes != process or _stands(folder, entry, grid):
            continue
        if shows_progress(args):
            print(f"learning {entry.name}", file=sys.stderr, flush=True)
        (folder.parent / REFUSED).unlink(missing_ok=True)
        lesson = lessons.of(entry)
        try:
            concept = lesson.learn(entry.method, entry.gate, recipe=entry.recipe)
        except DSASError as error:  # what a method or a gate says of this concept; the others may do
            folder.parent.mkdir(parents=True, exist_ok=True)
            (folder.parent / REFUSED).write_text(str(error), encoding="utf-8")
        else:
            concept.save_pretrained(folder, overwrite=True)
    wait()
    folders = {entry.name: out / entry.name for entry in grid.entries}
    refused = {
        name: (folder / REFUSED).read_text(encoding="utf-8")
        for name, folder in folders.items()
        if (folder / REFUSED).is_file()
    }
    if len(refused) == len(folders):
        raise DSASError(f"no concept of the grid can be learned; {next(iter(refused))}: {next(iter(refused.values()))}")
    return {
        name: Concept.from_pretrained(folder / "concept") for name, folder in folders.items() if name not in refused
    }, refused


class _Lessons:
    """Lessons of a grid: concepts of the same prompts at the same sites are fitted on one reading of them."""

    def __init__(self, models: _Models, settings: Mapping[str, Any]) -> None:
        self._models, self._settings = models, settings
        self._key: tuple[Any, ...] = ()
        self._lesson: Any = None

    def key_of(self, entry: Entry) -> tuple[Any, ...]:
        """What entries of one lesson have in common; last, whether pictures are masked."""
        told = not llm.is_language_model(entry.model) and entry.recipe.get("supervision") == "positions"
        return entry.model, str(entry.prompts.to_dict()), str(entry.sites), told

    def of(self, entry: Entry) -> Any:
        """The lesson of an entry; the last one is kept, as those of large models fill the memory."""
        key = self.key_of(entry)
        if key != self._key:
            self._key, self._lesson = (), None
            settings = {**self._settings, "sites": entry.sites}
            if llm.is_language_model(entry.model):
                settings = {key: value for key, value in settings.items() if key not in ("steps", "size")}
                self._lesson = llm.Lesson(*self._models.text(entry.model), entry.prompts, **settings)
            else:
                masks = masks_of(entry.prompts) if key[-1] else None
                self._lesson = Lesson(self._models.pipeline(entry.model), entry.prompts, masks=masks, **settings)
            self._key = key
        return self._lesson


def _stands(folder: Path, entry: Entry, grid: Grid) -> bool:
    """Whether a concept was learned from these prompts in this way already."""
    if not folder.is_dir():
        return False
    concept = Concept.from_pretrained(folder)
    prompts = concept.provenance.get("prompts")
    same = prompts == entry.prompts.to_dict() and (concept.method, concept.gate) == (entry.method, entry.gate)
    wanted = {key: grid.learn[key] for key in ("seed", "count") if key in grid.learn}
    same = same and all(concept.provenance.get(key) == value for key, value in wanted.items())
    recipe = concept.provenance.get("recipe", {})
    if not same or any(recipe.get(key) != value for key, value in entry.recipe.items()):
        raise DSASError(
            f"{folder} holds a concept that was learned otherwise (prompts, method, gate, recipe, seed or count): "
            "choose another --out"
        )
    return True


def _measured(
    entry: Entry,
    concept: Concept,
    kit: _Kit,
    models: _Models,
    out: Path,
    sharing: Mapping[str, Any],
) -> dict[str, Any]:
    """One concept's figures."""
    folder = out / entry.name / "run"
    if llm.is_language_model(entry.model):
        model, tokenizer = models.text(entry.model)
        kept = Run(folder, texts.identity(model, concept, entry.prompts), **sharing)
        figures = texts.evaluate(model, tokenizer, concept, entry.prompts, kit.judges, kept, entry.plan, **kit.options)
    else:
        pipe = models.pipeline(entry.model)
        kept = Run(folder, pictures.identity(pipe, concept, entry.prompts), **sharing)
        figures = pictures.evaluate(pipe, concept, entry.prompts, kit.judges, kept, entry.plan, **kit.options)
    return {**figures, "unit": concept.unit, "evidence": dict(concept.evidence)}
