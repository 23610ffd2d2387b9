"""`dsas learn`: learn a concept from a prompt file, or from two phrases."""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from dsas_core import llm
from dsas_core.concept.concept import Concept
from dsas_core.concept.format import FILES
from dsas_core.errors import PromptError
from dsas_core.learning.illustrate import try_illustrate
from dsas_core.learning.prompts.draft import draft, is_name
from dsas_core.learning.prompts.hints import hints
from dsas_core.learning.prompts.prompt_set import COUNT, PromptSet, load_prompts
from dsas_core.learning.recipe import Recipe, recipe_of
from dsas_core.llm.model.conversations import turns
from dsas_core.maps.envelope import RANK
from dsas_core.utils.files import replace_folder

from ...learning.illustrate import illustrate
from ...learning.learn import Lesson
from ...pipelines.prompt_check import unknown_words
from ...vision.segmentation import Masks, segmenter_for
from .. import arguments
from ..argument_types import edges, name_and_value, positive
from ..concept_report import describe_concept, report_evidence
from ..output import free_folder, warn_unknown_words

#: the drafted prompt file, in the concept's folder
PROMPTS = "prompts.yaml"
#: files of a concept's folder that may be overwritten
OURS = "|".join(map(re.escape, (*FILES, PROMPTS)))
#: fields of a recipe that have no option of their own
RECIPE = [field.name for field in fields(Recipe) if field.name not in ("method", "gate", "options", "seed")]

#: gives a concept samples for its card
Draw = Callable[[Concept], Concept]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """From what, by which method, and where to."""
    arguments.add_model(parser)
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompts", metavar="FILE", help="a prompt file (YAML, see prompts/)")
    prompts.add_argument("--from", dest="source", metavar="PHRASE", help='what to change, for example "banana"')
    parser.add_argument("--to", dest="target", metavar="PHRASE", help='what into, for example "blurred banana"')
    parser.add_argument("--name", help="of the concept (default: what the prompt file says)")
    _add_recipe(parser)
    parser.add_argument("--count", type=positive, default=COUNT, metavar="N", help=f"source prompts (default {COUNT})")
    arguments.add_generation(parser)
    parser.add_argument(
        "--store",
        metavar="FOLDER",
        help="keep what is read of the model there, not in memory: an interrupted run goes on, and processes that "
        "`accelerate launch` starts share it",
    )
    parser.add_argument("--out", "-o", required=True, metavar="FOLDER", help="where to save the concept")
    parser.add_argument(
        "--no-strip",
        action="store_true",
        help="leave samples out of its card: a strip of pictures of a held-out source prompt and a control prompt, of "
        "language models the answers to them",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a concept that is there")


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    """--method, --gate, --option, --recipe, --masks, --sites, --cloud, --edges."""
    parser.add_argument("--method", default="caa", help="how to change, see `dsas methods` (default caa)")
    parser.add_argument("--gate", help="when to change, see `dsas methods` (default: the method's own, or dsas)")
    values: dict[str, Any] = {"action": "append", "type": name_and_value, "metavar": "NAME=VALUE"}
    parser.add_argument("--option", default=[], **values, help="of the method, see `dsas methods`; repeatable")
    recipe_help = f"how it is fitted: {', '.join(RECIPE)} (dsas_core.learning.recipe.Recipe); repeatable"
    parser.add_argument("--recipe", default=[], **values, help=recipe_help)
    parser.add_argument(
        "--masks",
        metavar="MODULE:FUNCTION",
        help="where pictures show the thing, for gates that learn from patches: pictures -> masks [height, width] or "
        "None (with --recipe supervision=positions alone: the prompt file's masks:, else what its judge knows)",
    )
    parser.add_argument(
        "--sites",
        action="append",
        metavar="PATTERN",
        help="a group (text, cross, self, block, denoiser; for language models block, attention, mlp, norm, heads) or "
        "a regular expression on module paths; repeatable",
    )
    parser.add_argument(
        "--cloud",
        action="store_true",
        help="also learn where activations of targets are, so that steering can stay there (--within target)",
    )
    parser.add_argument(
        "--edges",
        type=edges,
        metavar="T[,T…]",
        help="timesteps, ascending, that separate bins with a probe and map of their own (default: 500), or none, "
        "as for models that take one step",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Learn and save; what `dsas show` tells of the concept, and where it is."""
    if (args.source is None) != (args.target is None):
        args.usage("--from and --to go together")
    # All that can be wrong is found before the long work begins.
    folder = free_folder(args.out, OURS, args.overwrite)
    text = llm.is_language_model(args.model)
    _check_model(args, text)
    prompts, drafted = _prompts(args)
    advice = hints(prompts.draw(args.count, args.seed))
    recipe: dict[str, Any] = {"options": dict(args.option), "cloud": RANK if args.cloud else 0} | dict(args.recipe)
    checked = recipe_of({"method": args.method, "gate": args.gate, **recipe})
    masks = None if text or not (args.masks or checked.supervised) else segmenter_for(prompts, args.masks)
    _print(args, *([drafted] if drafted else []), *(f"hint: {hint}" for hint in advice))

    share = arguments.share_of(args)
    if share.processes > 1 and args.store is None:
        args.usage("several processes share what they read in a folder: pass --store")
    lesson, draw = _text_lesson(args, prompts) if text else _picture_lesson(args, prompts, masks)
    if share.process > 0:  # the first goes on with what all have read
        lesson.captured(checked)
        share.wait()
        return {"first": False}
    concept = lesson.learn(args.method, args.gate, recipe=recipe)
    concept = replace(concept, provenance={**concept.provenance, "command": args.command})
    if not args.no_strip:
        concept = try_illustrate(concept, draw)
    with replace_folder(folder) as unfinished:
        concept.save_pretrained(unfinished)
        if drafted:
            (unfinished / PROMPTS).write_text(drafted, encoding="utf-8")
    share.wait()
    return {"first": True, "out": args.out, "drafted": bool(drafted), **describe_concept(concept, folder)}


def report(document: dict[str, Any]) -> None:
    """The evidence, and where the concept is."""
    if not document["first"]:
        return
    report_evidence(document)
    print(f"\nsaved {document['name']} in {document['out']}")
    if document["drafted"]:
        print(f"its prompts were drafted: edit {document['out']}/{PROMPTS} and pass it as --prompts to do better")


def _check_model(args: argparse.Namespace, text: bool) -> None:
    """Refuse what a model of pictures, or one of texts, does not take."""
    if not text:
        if args.prompts is not None and turns(load_prompts(args.prompts).expanded("source")[0]):
            raise PromptError(
                f"{args.prompts} holds conversations, but {args.model} draws pictures: pass --model builtin:chat, or "
                "another language model"
            )
        return
    arguments.refuse_generation(args)
    for value, reason in (
        (args.source, ": it learns from --prompts, not from two phrases"),
        (args.masks, ": name spans in the prompt file, not --masks"),
        (args.store, ", what it shows stays in memory: leave --store out"),
        (args.edges, ", which has no timesteps: leave --edges out"),
    ):
        if value is not None:
            args.usage(f"{args.model} is a language model{reason}")


def _text_lesson(args: argparse.Namespace, prompts: PromptSet) -> tuple[Lesson | llm.Lesson, Draw]:
    """Prompts to learn from with a language model, and what makes samples for the card."""
    model, tokenizer = arguments.language_model(args)
    sites = args.sites[0] if args.sites and len(args.sites) == 1 else args.sites
    lesson = llm.Lesson(
        model,
        tokenizer,
        prompts,
        sites=sites,
        seed=args.seed,
        count=args.count,
        show_progress=arguments.shows_progress(args),
    )
    return lesson, partial(llm.illustrate, model, tokenizer)


def _picture_lesson(
    args: argparse.Namespace, prompts: PromptSet, masks: Masks | None
) -> tuple[Lesson | llm.Lesson, Draw]:
    """Prompts to learn from with a pipeline, and what makes samples for the card."""
    pipe = arguments.pipeline(args)
    sides = prompts.draw(args.count, args.seed)
    unknown = unknown_words(pipe, [prompt for side in sides.values() for prompt in side])
    _print(args, *([f"hint: {warn_unknown_words(unknown)}"] if unknown else []))
    names = ("sites", "seed", "count", "steps", "guidance", "size", "edges", "store")
    settings = {name: getattr(args, name) for name in names}
    lesson = Lesson(pipe, prompts, masks=masks, show_progress=arguments.shows_progress(args), **settings)
    return lesson, partial(illustrate, pipe, show_progress=arguments.shows_progress(args))


def _print(args: argparse.Namespace, *lines: str) -> None:
    """Print lines for people, unless --json."""
    if not args.json:
        for line in lines:
            print(line, flush=True)


def _prompts(args: argparse.Namespace) -> tuple[PromptSet, str]:
    """The prompts to learn from, and the text of the prompt file if it had to be drafted."""
    if args.prompts is not None:
        prompts = load_prompts(args.prompts)
        return (replace(prompts, name=args.name) if args.name else prompts), ""
    content = draft(args.source, args.target, args.name or _name_of(Path(args.out)))
    drafted = _as_yaml(content)
    return replace(load_prompts(content), sha256=hashlib.sha256(drafted.encode()).hexdigest()), drafted


def _name_of(folder: Path) -> str | None:
    """The name of the folder that a concept goes to, by which people will call it; None where it is no name."""
    name = folder.expanduser().resolve().name
    return name if is_name(name) else None


def _as_yaml(content: dict[str, Any]) -> str:
    """A prompt file with its templates one to a line."""
    import yaml

    lines = ["# Drafted by `dsas learn`. Edit it, and pass it as --prompts.\n"]
    for key, value in content.items():
        style = None if key == "placeholders" else False
        lines.append(yaml.safe_dump({key: value}, default_flow_style=style, indent=2, width=1000, allow_unicode=True))
    return "".join(lines)
