"""`dsas generate`: draw pictures, steered by concepts."""

from __future__ import annotations

import argparse
import json
import mimetypes
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dsas_core.errors import DSASError
from dsas_core.utils.saving.folders import save_folder

from ...drawing.draw import check_words, draw_each
from ...drawing.picture_files import IMAGE_FORMATS, encode_picture, read_all_settings
from ...drawing.picture_settings import PICTURE, HowSteered, PictureSettings, as_document
from ...drawing.shelf import Shelf
from ...generation import strips
from ...pipelines.adapter import PipelineAdapter
from ...pipelines.sites import has_patches
from ...steering.schedule import Schedule
from ...steering.steer import PipelineSteering
from .. import arguments
from ..output import (
    check_output_files,
    check_output_folder,
    encode_settings,
    recognise_pictures,
    write_files,
)
from ..picture_arguments import open_for_pictures, plan_pictures, warn_of_changes, warn_of_words

#: names of files in a folder of pictures: the settings, and the grid of --compare
SETTINGS = "generate.json"
COMPARISON = "compare.png"
OURS = rf"{re.escape(SETTINGS)}|{re.escape(COMPARISON)}|\d{{3,}}(-[\w.-]+)?\.png"


def presets(args: argparse.Namespace) -> dict[str, Any]:
    """What --from says, as defaults of the other options; no seed, as the file has that of its noise."""
    if args.drawn is None:
        return {}
    first = read_all_settings(args.drawn)[0]
    schedule = None if first.how.schedule is None else Schedule(first.how.schedule)
    how = {name: value for name, value in asdict(first.how).items() if name != "words"} | {"schedule": schedule}
    origin = {name: value for name, value in asdict(first.origin).items() if name in ("dtype", "variant", "config")}
    told = {**arguments.values_of(first, "model", "negative_prompt", "preserve"), **how, **origin}
    return {**told, "dtype": origin["dtype"] or "auto", "seed": None}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Draw pictures and write them.

    Returns:
        The settings, and the files of every picture.
    """
    if not args.prompt and args.drawn is None:
        args.usage("give a --prompt, or a picture to draw again with --from")
    out = Path(args.out).expanduser()
    suffix = out.suffix.lower()
    recorded = [] if args.drawn is None else read_all_settings(args.drawn)
    _read_diverse(args, recorded)
    planned, shelf = plan_pictures(args, recorded)
    if args.compare and args.diverse and shelf.concepts:
        args.usage("--compare maps each picture by itself: with --diverse leave it out, or the concepts")
    if not shelf.concepts:
        for option, why in _NEED_CONCEPT.items():
            if getattr(args, option) and not (option == "compare" and args.diverse):
                args.usage(why)
    check_words(planned)
    if suffix in IMAGE_FORMATS:
        check_output_files([out, out.with_suffix(".json")], args.overwrite)
    elif suffix in Image.registered_extensions() or mimetypes.guess_type(out.name)[0] is not None:
        raise DSASError(f"{out}: pictures are written as {', '.join(IMAGE_FORMATS)}; without a suffix, into a folder")
    else:
        check_output_folder(out, OURS, args.overwrite)
    mask = arguments.read_preserve(args.preserve)

    adapter, pictures = open_for_pictures(args, planned, (*arguments.SETTINGS, "scheduler") if recorded else ())
    if recorded:
        warn_of_changes(args.drawn, recorded, pictures)
    warn_of_words(adapter, pictures)
    columns, masks = _draw(adapter, args, pictures, shelf, mask)
    document = {**as_document(pictures), "compare": args.compare}
    for entry, seen in zip(document["pictures"], masks, strict=True):
        if seen is not None:
            entry["seen"] = bool(seen.any())
    if suffix in IMAGE_FORMATS:
        single = len(pictures) == 1 and not args.compare
        picture = columns[PICTURE][0] if single else _grid(columns, pictures, args.diverse or args.count)
        settings_file = encode_settings(document)
        document = json.loads(settings_file)
        # settings first: whatever happens in between, there is no picture without them
        write_files({out.with_suffix(".json"): settings_file, out: encode_picture(picture, document, suffix)})
    else:
        files = _files(columns, pictures, document)
        if args.compare:
            files[COMPARISON] = encode_picture(_grid(columns, pictures, args.diverse or args.count), document)
        files[SETTINGS] = encode_settings(document)
        document = json.loads(files[SETTINGS])
        save_folder(out, files, recognise_pictures, obsolete=lambda name: re.fullmatch(OURS, name) is not None)
    return {"out": args.out, **document}


def _read_diverse(args: argparse.Namespace, recorded: Sequence[PictureSettings]) -> None:
    """--diverse as the fields `diverse` and `apart` of `HowSteered`; usage errors where other options contradict it."""
    given = isinstance(args.diverse, tuple)
    if given and recorded:
        args.usage("--diverse draws anew: leave --from out")
    if args.diverse and args.preserve:
        args.usage("--preserve leaves all but the --concept's, and --diverse changes all: leave one out")
    if args.diverse and args.count > 1:
        args.usage("--diverse N draws N pictures of each prompt: leave --count out")
    if args.diverse and not given and (args.prompt or args.seed is not None):
        args.usage("--from shows pictures that were drawn together (--diverse): they keep their prompts and seeds")
    if given:
        args.diverse, args.apart = args.diverse
        args.count = args.diverse
    args.diverse = args.diverse or 0


#: options that have no effect without a concept -> what a usage error says
_NEED_CONCEPT = {
    "compare": "--compare needs a --concept to compare with",
    "words": "--words are of a --concept: give one",
    "preserve": "--preserve leaves what is not a --concept's: give one",
}


def report(document: dict[str, Any]) -> None:
    """Print where the pictures are, and the seed of each where there are several."""
    pictures = document["pictures"]
    count = len(pictures)
    out = Path(document["out"])
    settings = out.with_suffix(".json") if out.suffix.lower() in IMAGE_FORMATS else out / SETTINGS
    for i, entry in enumerate(pictures if count > 1 else ()):
        seed = entry["noise_seed"] if entry["seed"] is None else entry["seed"]
        print(f"{entry.get('files', {}).get(PICTURE, i + 1)}: seed {seed}, {entry['prompt']}")
    if unseen := sum(not entry.get("seen", True) for entry in pictures):
        print(f"{unseen} of {count} pictures stay as they are: nothing that is steered is seen in them")
    print(f"wrote {count} picture{'s' if count > 1 else ''} to {out}, settings to {settings}")


def _draw(
    adapter: PipelineAdapter, args: argparse.Namespace, pictures: Sequence[PictureSettings], shelf: Shelf, mask: Any
) -> tuple[dict[str, list[Image.Image]], list[np.ndarray | None]]:
    """Pictures by kind: "picture" (steered, where there are concepts); and the mask of what was preserved, or None.

    With --compare also "base", a map of h for each concept, and "changed" and "mask" where the rest is preserved.
    """
    denoiser = adapter.family.denoiser
    mapped = [name for name, it in shelf.concepts.items() if any(has_patches(site, denoiser) for site in it.sites)]
    columns: dict[str, list[Image.Image]] = {"base": [], PICTURE: [], **{f"where {name}": [] for name in mapped}}
    masks: list[np.ndarray | None] = []
    drawn = draw_each(adapter, pictures, shelf.concepts, mask, trace=args.compare)
    for made, steering in drawn:
        image = made.images[0]
        columns[PICTURE].append(image)
        masks.append(None if made.masks is None else made.masks[0])
        columns["base"] += made.unsteered or []
        for name in mapped if args.compare else ():
            columns[f"where {name}"].append(_where(steering, name, image))
    if not args.compare:
        return {PICTURE: columns[PICTURE]}, masks
    if len(columns["base"]) < len(pictures):
        plain = [_unsteered(picture) for picture in pictures]
        columns["base"] = [made.images[0] for made, _ in draw_each(adapter, plain, {})]
    if args.preserve:
        pairs = zip(columns["base"], columns[PICTURE], strict=True)
        columns["changed"] = [strips.difference(*pair) for pair in pairs]
        shown = [
            np.zeros(base.size[::-1]) if it is None else it for base, it in zip(columns["base"], masks, strict=True)
        ]
        if any(it is not None for it in masks):
            columns["mask"] = [strips.overlay(*pair) for pair in zip(columns["base"], shown, strict=True)]
    return columns, masks


def _where(steering: PipelineSteering | None, name: str, image: Image.Image) -> Image.Image:
    """The map of h over a picture: dark where another concept steers, or probes read none of the steps."""
    if steering is not None and name in steering.strengths and steering.trace.patch_sites(name):
        return steering.trace.heatmap(name, image)
    return strips.overlay(image, np.zeros(image.size[::-1]))


def _unsteered(picture: PictureSettings) -> PictureSettings:
    return replace(picture, concepts=(), how=HowSteered(), preserve=False)


def _files(
    columns: Mapping[str, Sequence[Image.Image]], pictures: Sequence[PictureSettings], document: dict[str, Any]
) -> dict[str, bytes]:
    """A file for each picture of each kind, with the settings that draw it alone; their names go into the document."""
    files: dict[str, bytes] = {}
    for i, (picture, entry) in enumerate(zip(pictures, document["pictures"], strict=True)):
        entry["files"] = {kind: _file_name(i, kind) for kind in columns}
        for kind, images in columns.items():
            # an unsteered picture is one of its own; maps and masks are none
            drawn = _unsteered(picture) if kind == "base" else picture
            record = {**as_document([drawn]), "kind": PICTURE if kind == "base" else kind}
            record["pictures"] = [entry]
            files[_file_name(i, kind)] = encode_picture(images[i], record)
    return files


def _file_name(index: int, kind: str) -> str:
    """001.png for the picture itself, 001-base.png and the like for the other kinds."""
    suffix = "" if kind == PICTURE else "-" + re.sub(r"[^\w.-]+", "-", kind)
    return f"{index + 1:03d}{suffix}.png"


def _grid(columns: Mapping[str, Sequence[Image.Image]], pictures: Sequence[PictureSettings], count: int) -> Image.Image:
    """A row for each picture, a column for each kind; of one kind, a row for each prompt, a column for each seed."""
    cell = min(512, max(160, columns[PICTURE][0].width))
    if len(columns) == 1:
        rows = [columns[PICTURE][i : i + count] for i in range(0, len(pictures), count)]
        headings = [f"seed {picture.seed}" for picture in pictures[:count]] if count > 1 else [""]
        return strips.grid(rows, headings, [picture.prompt for picture in pictures[::count]], cell)
    headings = ["steered" if kind == PICTURE else kind if len(kind) <= 18 else f"{kind[:17]}…" for kind in columns]
    captions = [f"{picture.prompt}, seed {picture.seed}" if count > 1 else picture.prompt for picture in pictures]
    return strips.grid(list(zip(*columns.values(), strict=True)), headings, captions, cell)
