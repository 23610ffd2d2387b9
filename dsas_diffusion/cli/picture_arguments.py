"""The pictures that a command's arguments ask for: prompts with tags, seeds, and settings that a file tells."""

from __future__ import annotations

import argparse
import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dsas_core.errors import quote
from dsas_core.utils.numbers import number
from dsas_core.utils.versions import versions

from .. import __version__
from ..drawing.picture_settings import HowSteered, Origin, PictureSettings
from ..drawing.prompt_tags import refuse_tags
from ..drawing.shelf import Shelf
from ..generation.pictures import model_key, seed_at
from ..generation.settings import Settings, settings_of
from ..pipelines.adapter import PipelineAdapter, adapt
from ..pipelines.prompt_check import unknown_words
from .arguments import SETTINGS, open_pipeline, shows_progress, values_of, words_by_concept
from .output import unknown_words_message

#: takes the place of settings until the model is there, which tells what suits it
_UNSET = Settings(1, 1.0)


def plan_pictures(args: argparse.Namespace, recorded: Sequence[PictureSettings] = ()) -> tuple[list[Any], Shelf]:
    """The pictures that arguments ask for, but for settings and origin, which the model has to be there for.

    Args:
        args: with prompt, seed, count, concept, words, negative_prompt, preserve, and those of `HowSteered`.
        recorded: of --from, what the options do not override.

    Returns:
        `PictureSettings`, in the order of the prompts, those of one prompt by seed; and their concepts.

    Raises:
        DSASError: what a prompt's tags or concepts cannot be.
    """
    shelf = Shelf(args.concept)
    kept = {one.name: one for picture in recorded for one in picture.concepts if one.name not in shelf.drawn}
    for concept in kept.values():
        shelf.read(concept.concept, concept.name)
    options = common_options(args)
    if recorded and not args.words:
        options["how"] = replace(options["how"], words=recorded[0].how.words)
    planned = []
    for first in _first_pictures(args, recorded):
        clean, concepts, _ = shelf.read_prompt(first.prompt) if args.prompt else (first.prompt, shelf.given, set())
        own = [shelf.describe(one.name, one.strength) for one in first.concepts if one.name in kept]
        concepts = tuple({one.name: one for one in (*own, *concepts)}.values())
        picture = replace(first, prompt=clean, concepts=concepts, **options)
        planned += [picture if k == 0 else _count_on(picture, k) for k in range(args.count)]
    return planned, shelf


def common_options(args: argparse.Namespace) -> dict[str, Any]:
    """What options say of all pictures, as fields of `PictureSettings`.

    Raises:
        DSASError: a tag in the negative prompt.
    """
    if args.negative_prompt is not None:
        refuse_tags(args.negative_prompt, "the negative prompt")
    given = {name: getattr(args, name) for name in HowSteered.__dataclass_fields__ if hasattr(args, name)}
    schedule = None if given.get("schedule") is None else given["schedule"].points
    how = HowSteered(**{**given, "schedule": schedule, "words": words_by_concept(args.words)})
    return {**values_of(args, "model", "negative_prompt", "preserve"), "how": how}


def first_picture(args: argparse.Namespace, prompt: str) -> PictureSettings:
    """The picture of a single prompt, tags and all, but for concepts, settings and origin."""
    return seeded(PictureSettings(prompt=prompt, noise_seed=0, settings=_UNSET, **common_options(args)), args.seed)


def _first_pictures(args: argparse.Namespace, recorded: Sequence[PictureSettings]) -> list[PictureSettings]:
    """The first picture of each prompt."""
    if not recorded:
        unplaced = [PictureSettings(args.model, prompt, 0, _UNSET) for prompt in args.prompt]
        return [seeded(picture, args.seed, place) for place, picture in enumerate(unplaced)]
    chosen = list(recorded)
    if args.prompt:
        if len(recorded) not in (1, len(args.prompt)):
            args.usage(
                f"--from shows {len(recorded)} pictures, and there are {len(args.prompt)} prompts: give as many, or "
                "the file of one picture"
            )
        several = chosen * len(args.prompt) if len(chosen) == 1 else chosen
        chosen = [replace(one, prompt=prompt) for one, prompt in zip(several, args.prompt, strict=True)]
    if args.seed is not None:
        chosen = [seeded(one, args.seed, i if one.place is None else one.place) for i, one in enumerate(chosen)]
    elif args.count > 1 and any(one.seed is None or one.place is None for one in chosen):
        args.usage("--from tells no seed to count on from: give --seed as well")
    return chosen


def seeded(picture: PictureSettings, seed: int, place: int = 0) -> PictureSettings:
    """The picture at a place of a run with this seed."""
    return replace(picture, seed=number("seed", seed), place=place, noise_seed=seed_at(seed, place))


def _count_on(picture: PictureSettings, more: int) -> PictureSettings:
    """The picture at the same place of a run whose seed is higher by so much."""
    assert picture.seed is not None
    assert picture.place is not None
    return seeded(picture, picture.seed + more, picture.place)


def open_for_pictures(
    args: argparse.Namespace, planned: Sequence[PictureSettings], own: Sequence[str]
) -> tuple[PipelineAdapter, list[PictureSettings]]:
    """Load the pipeline of --model, and complete the settings and origin of pictures.

    Args:
        args: the command's.
        planned: as `plan_pictures` returns them.
        own: settings that they have themselves, which options override.

    Raises:
        DSASError: no such model, or a size that it does not draw.
    """
    adapter = adapt(open_pipeline(args))
    if shows_progress(args):
        adapter.pipe.set_progress_bar_config(desc="denoising", leave=False)
    given = {name: value for name, value in values_of(args, *SETTINGS, "scheduler").items() if value is not None}
    origin = origin_of(args, adapter)
    completed = []
    for picture in planned:
        told = values_of(picture.settings, *own) | given
        scheduler = told.pop("scheduler", None)
        chosen = replace(settings_of(adapter, **told), scheduler=scheduler)
        completed.append(replace(picture, settings=chosen, origin=origin))
    return adapter, completed


def origin_of(args: argparse.Namespace, adapter: PipelineAdapter) -> Origin:
    """What pictures are drawn with."""
    key = model_key(adapter)
    mask = None
    if isinstance(args.preserve, str) and Path(args.preserve).is_file():
        mask = hashlib.sha256(Path(args.preserve).read_bytes()).hexdigest()[:16]
    return Origin(
        str(adapter.pipe.device),
        str(adapter.pipe.dtype).removeprefix("torch."),
        args.variant,
        args.config,
        f"{key['model']}-{key['scheduler']}",
        mask,
        {"dsas": __version__, **versions("diffusers", "transformers")},
    )


def warn_of_changes(file: str, recorded: Sequence[PictureSettings], drawn: Sequence[PictureSettings]) -> None:
    """Warn, in one line, of what makes pictures of a file come out otherwise: versions, weights, concepts."""
    told = list(recorded[0].origin.differences(drawn[0].origin)) if recorded[0].model == drawn[0].model else []
    digests = {one.name: one.digest for picture in drawn for one in picture.concepts}
    for name, digest in {one.name: one.digest for picture in recorded for one in picture.concepts}.items():
        if None not in (digest, digests.get(name)) and digest != digests[name]:
            told.append(f"concept {quote(name)} has changed")
    if told:
        warnings.warn(f"{file} was drawn otherwise, and pixels may differ: {'; '.join(told)}", stacklevel=2)


def warn_of_words(adapter: PipelineAdapter, pictures: Sequence[PictureSettings]) -> None:
    """Warn of words of prompts and negative prompts that the model does not know."""
    texts = [text for picture in pictures for text in (picture.prompt, picture.negative_prompt or "")]
    if unknown := unknown_words(adapter, list(dict.fromkeys(texts))):
        warnings.warn(unknown_words_message(unknown), stacklevel=2)
