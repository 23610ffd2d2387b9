"""The options of every command, from `options.yaml` to argparse."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from string import Template
from typing import Any

import yaml

from dsas_core.evaluation import ARMS, Plan
from dsas_core.learning.joint.settings import TrainingSettings
from dsas_core.learning.prompts.kept import KEEP
from dsas_core.learning.prompts.prompt_set import COUNT
from dsas_core.learning.recipe import Recipe
from dsas_core.steering.steering import COMBINE, WITHIN
from dsas_core.utils.numbers import KINDS

from ..drawing.picture_settings import GATES
from ..pipelines.batch_layout import BRANCHES
from ..steering.steer import ATTACH
from . import argument_types

#: fields of a recipe that have options of their own, or names of their own within `--recipe`
_OTHERS = ("method", "gate", "options", "seed", "training")
#: what `options.yaml` names as $NAME
VALUES: Mapping[str, Any] = {
    "ARMS": tuple(ARMS),
    "ATTACH": ATTACH,
    "AXIS": (
        "what varies: strength=-1,0,1 (of the only concept; strength:NAME=… of one of several), seed=1,2,3, "
        "concept=FOLDER,FOLDER (each at strength 1, or that of --concept), prompt (those of --prompt), steps=4,12, "
        "guidance=1,3"
    ),
    "BRANCHES": BRANCHES,
    "COMBINE": COMBINE,
    "CONCEPT": "a concept's folder, its Hub name, or builtin:NAME",
    "COUNT": COUNT,
    "GATES": tuple(GATES),
    "KEEP_PROMPTS": KEEP,
    "PROMPT": "what to draw; <dsas:NAME:0.5> in it sets the strength of a concept for this prompt",
    "PLAN_COUNT": Plan.count,
    "PLAN_SEEDS": Plan.seeds,
    "RECIPE": ", ".join(f.name for f in fields(Recipe) if f.name not in _OTHERS),
    "TRAINING": ", ".join(f.name for f in fields(TrainingSettings)),
    "WITHIN": [kind for kind in WITHIN if kind],
}

_FILE = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
#: command -> its options, in the order of `dsas --help`
COMMANDS: Mapping[str, Sequence[Any]] = _FILE["commands"]


def add_options(parser: argparse._ActionsContainer, options: Sequence[Any]) -> None:
    """Add options to a parser.

    Args:
        parser: the parser of a command, or a group of it.
        options: as `options.yaml` lists them: a group's name, `{"one of": {…}}`, or `{"--long -s": settings}`.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> add_options(parser, ["seed", {"--prompt -p": {"help": "what to draw"}}])
        >>> parser.parse_args(["-p", "a dog"])
        Namespace(seed=0, prompt='a dog')
    """
    for item in options:
        if isinstance(item, str):
            add_options(parser, _FILE["groups"][item])
        elif "one of" in item:
            add_options(parser.add_mutually_exclusive_group(required=True), [item["one of"]])
        else:
            for flags, settings in item.items():
                parser.add_argument(*flags.split(), **_resolve(settings))


def _resolve(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of one option, its type and what stands for values replaced by these."""
    resolved = {**settings, "help": Template(settings["help"]).substitute(VALUES)}
    if "action" not in settings or settings["action"] == "append":
        kind = settings.get("type", "filled")
        is_number = kind in KINDS
        resolved["type"] = argument_types.number_type(kind) if is_number else getattr(argument_types, kind)
    for key in ("choices", "default"):
        if str(settings.get(key)).startswith("$"):
            resolved[key] = VALUES[settings[key][1:]]
    return resolved
