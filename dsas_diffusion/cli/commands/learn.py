"""`dsas learn`: learn a concept from a prompt file, or from two phrases."""

from __future__ import annotations

import argparse
import hashlib
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from dsas_core import llm
from dsas_core.concept.concept import Concept
from dsas_core.concept.format import FILES, save_concept
from dsas_core.concept.storage.own_files import recognise_concept
from dsas_core.errors import ArtifactError, PromptError
from dsas_core.learning.illustrate import try_illustrate
from dsas_core.learning.joint.checkpoint import check_trains
from dsas_core.learning.prompts.draft import draft, is_name
from dsas_core.learning.prompts.hints import hints
from dsas_core.learning.prompts.prompt_file import load_prompts
from dsas_core.learning.prompts.prompt_set import PromptSet
from dsas_core.learning.recipe import Recipe, recipe_of
from dsas_core.llm.model.conversations import is_conversation
from dsas_core.maps.envelope import RANK
from dsas_core.utils.processes import Share
from dsas_core.utils.saving.folders import names_in

from ...learning.drafting import draft as draft_for
from ...learning.illustrate import illustrate
from ...learning.learn import Lesson
from ...pipelines.adapter import adapt
from ...pipelines.prompt_check import unknown_words
from ...vision.segmentation import Masks, segmenter_for
from ..arguments import SETTINGS, open_model, refuse_generation, share_of, shows_progress, values_of
from ..concept_report import describe_concept, report_evidence
from ..flas import METHOD, learn_flas, report_network
from ..output import check_output_folder, unknown_words_message

#: the drafted prompt file, in the concept's folder
PROMPTS = "prompts.yaml"
#: files of a concept's folder that may be overwritten
OURS = "|".join(map(re.escape, (*FILES, PROMPTS)))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Learn a concept and save it.

    Returns:
        The concept as `dsas show` has it, and where it is; {"first": False} in all processes but the first.
    """
    if args.method == METHOD or args.concepts is not None or args.network is not None:
        return learn_flas(args)
    if (args.source is None) != (args.target is None):
        args.usage("--from and --to go together")
    if args.source is not None and args.keep_prompts is not None:
        args.usage("--keep-prompts goes with --prompts; a drafted prompt file lies beside the concept")
    # Every mistake is found before the long work begins.
    known = partial(recognise_concept, overwrite=args.overwrite)
    folder = check_output_folder(args.out, OURS, args.overwrite, known)
    is_text = llm.is_language_model(args.model)
    _check_model(args, is_text)
    prompts, drafted = _prompts(args)
    recipe = {"options": dict(args.option), "cloud": RANK if args.cloud else 0} | _nested(args.recipe)
    checked = recipe_of({"method": args.method, "gate": args.gate, **recipe})
    masks = None if is_text or not (args.masks or checked.supervised) else segmenter_for(prompts, args.masks)
    share = share_of(args)
    _check_shared(args, checked, share, is_text)
    model = open_model(args)
    if drafted:
        prompts, drafted = _prompts(args, model[0])
    advice = hints(prompts.draw(args.count, args.seed), pictures=not is_text)
    _print(args, *([drafted] if drafted else []), *(f"hint: {hint}" for hint in advice))
    lesson = _lesson(args, model, prompts, masks)
    lesson.share = share
    if share.process > 0:  # the first goes on with what all have read
        lesson.join(args.method, args.gate, recipe=recipe)
        share.wait()
        return {"first": False}
    concept = lesson.learn(args.method, args.gate, recipe=recipe)
    concept = replace(concept, provenance={**concept.provenance, "command": args.command})
    if not args.no_strip:
        concept = add_samples(args, model, concept)
    beside = {PROMPTS: drafted.encode()} if drafted else {}
    saved = save_or_evade(concept, folder, args.overwrite, beside)
    out = args.out if saved == folder else str(saved)
    share.wait()
    return {"first": True, "out": out, "drafted": bool(drafted), **describe_concept(concept, saved)}


def _check_shared(args: argparse.Namespace, recipe: Recipe, share: Share, is_text: bool) -> None:
    """Raise an error for processes that have nothing to share, or share it nowhere."""
    trains = recipe.mode == "joint"
    if share.processes > 1 and is_text and not trains:
        args.usage("of a language model, several processes share a training alone: choose a method that trains, or one")
    if share.processes > 1 and not is_text and args.store is None:
        args.usage("several processes share what they read in a folder: pass --store")
    check_trains(args.checkpoint, recipe)


def _nested(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Fields of a recipe by name; those of a field's own names, as training.steps, together.

    Example:
        >>> _nested([("form", "token"), ("training.steps", 10)])
        {'form': 'token', 'training': {'steps': 10}}
    """
    found: dict[str, Any] = {}
    for name, value in pairs:
        field, _, part = name.partition(".")
        if part and isinstance(found.setdefault(field, {}), dict):
            found[field][part] = value
        else:
            found[name] = value
    return found


def save_or_evade(concept: Concept, folder: Path, overwrite: bool, beside: Mapping[str, bytes]) -> Path:
    """Save a concept; where something else has appeared in its folder meanwhile, in another one, with a warning."""
    for number in range(1, 100):
        place = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            save_concept(concept, place, overwrite=overwrite and number == 1, beside=beside)
        except ArtifactError:
            if not names_in(place):
                raise
            continue
        if number > 1:
            warnings.warn(f"{folder} was taken meanwhile: the concept is saved in {place}", stacklevel=2)
        return place
    raise ArtifactError(f"{folder} was taken meanwhile, and so are all names like it: choose another folder")


def add_samples(args: argparse.Namespace, model: tuple[Any, ...], concept: Concept) -> Concept:
    """Add samples to a concept for its card; where that fails, leave them out with a warning.

    Args:
        args: the arguments of the command.
        model: (pipeline,) or (language model, tokenizer).
        concept: the concept; it is not changed.
    """
    if llm.is_language_model(args.model):
        return try_illustrate(concept, partial(llm.illustrate, *model))
    return try_illustrate(concept, partial(illustrate, *model, show_progress=shows_progress(args)))


def report(document: dict[str, Any]) -> None:
    """Print the evidence, and where the concept is."""
    if not document["first"]:
        return
    if "network" in document:
        report_network(document)
        return
    report_evidence(document)
    print(f"\nsaved {document['name']} in {document['out']}")
    if document["drafted"]:
        print(f"its prompts were drafted: edit {document['out']}/{PROMPTS} and pass it as --prompts to do better")


def _why_no_text_model(name: str) -> str:
    known = name.startswith("builtin:") or Path(name).is_dir()
    return "draws pictures" if known else "is no folder here, and no language model of the Hub that could be reached"


def _check_model(args: argparse.Namespace, is_text: bool) -> None:
    """Raise an error for options that a picture model, or a language model, does not take."""
    if not is_text:
        if args.prompts is not None and is_conversation(load_prompts(args.prompts).expanded("source")[0]):
            raise PromptError(
                f"{args.prompts} holds conversations, but {args.model} {_why_no_text_model(args.model)}: pass --model "
                "builtin:chat, or another language model (`make real-models` fetches two into models/)"
            )
        return
    refuse_generation(args, args.model)
    for value, reason in (
        (args.source, ": it learns from --prompts, not from two phrases"),
        (args.masks, ": name spans in the prompt file, not --masks"),
        (args.store, ", what it shows stays in memory: leave --store out"),
        (args.edges, ", which has no timesteps: leave --edges out"),
    ):
        if value is not None:
            args.usage(f"{args.model} is a language model{reason}")


def _lesson(args: argparse.Namespace, model: tuple[Any, ...], prompts: PromptSet, masks: Masks | None) -> Any:
    """The lesson of a language model, or of a pipeline, with a hint on words that it does not know."""
    settings = {
        **values_of(args, "sites", "seed", "count", "keep_prompts", "checkpoint"),
        "show_progress": shows_progress(args),
    }
    if llm.is_language_model(args.model):
        if args.sites and len(args.sites) == 1:
            settings["sites"] = args.sites[0]
        language_model, tokenizer = model
        return llm.Lesson(language_model, tokenizer, prompts, **settings)
    (pipe,) = model
    sides = prompts.draw(args.count, args.seed)
    if unknown := unknown_words(adapt(pipe), [prompt for side in sides.values() for prompt in side]):
        _print(args, f"hint: {unknown_words_message(unknown)}")
    return Lesson(pipe, prompts, masks=masks, **settings, **values_of(args, "edges", "store", *SETTINGS))


def _print(args: argparse.Namespace, *lines: str) -> None:
    """Print lines for people, unless --json."""
    if not args.json:
        for line in lines:
            print(line, flush=True)


def _prompts(args: argparse.Namespace, pipe: Any = None) -> tuple[PromptSet, str]:
    """The prompts to learn from, and the text of the prompt file if it was drafted from two phrases, for a pipeline."""
    if args.prompts is not None:
        prompts = load_prompts(args.prompts)
        return (replace(prompts, name=args.name) if args.name else prompts), ""
    name = args.name or _name_of(Path(args.out))
    content = draft(args.source, args.target, name)  # what is wrong with them shows before the model is loaded
    if pipe is not None:
        content = draft_for(pipe, args.source, args.target, name, seed=args.seed)
    drafted = _as_yaml(content)
    return replace(load_prompts(content), sha256=hashlib.sha256(drafted.encode()).hexdigest()), drafted


def _name_of(folder: Path) -> str | None:
    """The name of the folder that a concept is saved in; None where it is no valid name of a concept."""
    name = folder.expanduser().resolve().name
    return name if is_name(name) else None


def _as_yaml(content: dict[str, Any]) -> str:
    """A prompt file as YAML, one template a line."""
    lines = ["# Drafted by `dsas learn`. Edit it, and pass it as --prompts.\n"]
    for key, value in content.items():
        style = None if key == "placeholders" else False
        lines.append(yaml.safe_dump({key: value}, default_flow_style=style, indent=2, width=1000, allow_unicode=True))
    return "".join(lines)
