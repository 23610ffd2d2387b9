"""`dsas generate`: draw pictures, steered by concepts."""

from __future__ import annotations

import argparse
import json
import mimetypes
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError
from dsas_core.steering.strengths import Auto, Strength
from dsas_core.utils.saving.folders import save_folder
from dsas_core.utils.versions import versions

from ... import __version__
from ...generation import strips
from ...generation.pictures import pictures_of, seeds_for
from ...generation.settings import Settings
from ...pipelines.adapter import PipelineAdapter
from ...pipelines.prompt_check import unknown_words
from ...steering.drawing import generate_batches
from ...steering.steer import steer
from .. import arguments
from ..options import GATES
from ..output import (
    IMAGE_FORMATS,
    check_output_files,
    check_output_folder,
    encode_picture,
    encode_settings,
    recognise_pictures,
    unknown_words_message,
    write_files,
)

#: names of files in a folder of pictures: the settings, and the grid of --compare
SETTINGS = "generate.json"
COMPARISON = "compare.png"
OURS = rf"{re.escape(SETTINGS)}|{re.escape(COMPARISON)}|\d{{3,}}(-[\w.-]+)?\.png"


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Draw pictures and write them.

    Returns:
        The settings, and the files of every picture.
    """
    if args.compare and not args.concept:
        args.usage("--compare needs a --concept to compare with")
    if args.words and not args.concept:
        args.usage("--words are of a --concept: give one")
    if args.preserve and not args.concept:
        args.usage("--preserve leaves what is not a --concept's: give one")
    out = Path(args.out).expanduser()
    suffix = out.suffix.lower()
    if suffix in IMAGE_FORMATS:
        check_output_files([out, out.with_suffix(".json")], args.overwrite)
    elif suffix in Image.registered_extensions() or mimetypes.guess_type(out.name)[0] is not None:
        raise DSASError(f"{out}: pictures are written as {', '.join(IMAGE_FORMATS)}; without a suffix, into a folder")
    else:
        check_output_folder(out, OURS, args.overwrite)
    concepts, preserve = arguments.read_concepts(args.concept), arguments.read_preserve(args.preserve)

    adapter, settings = arguments.open_for_drawing(args)
    if unknown := unknown_words(adapter, args.prompt):
        warnings.warn(unknown_words_message(unknown), stacklevel=2)
    columns, masks = _draw(adapter, args, concepts, settings, preserve)
    document = _document(adapter, args, concepts, settings)
    for entry, mask in zip(document["pictures"], masks, strict=False):  # no masks where nothing is preserved
        entry["seen"] = bool(mask.any())
    if suffix in IMAGE_FORMATS:
        single = len(args.prompt) == 1 and not args.compare
        picture = columns["picture"][0] if single else _grid(columns, args.prompt)
        settings_file = encode_settings(document)
        document = json.loads(settings_file)
        # settings first: whatever happens in between, there is no picture without them
        write_files({out.with_suffix(".json"): settings_file, out: encode_picture(picture, document, suffix)})
    else:
        files: dict[str, bytes] = {}
        for i, entry in enumerate(document["pictures"]):
            entry["files"] = {kind: _file_name(i, kind) for kind in columns}
            record = {**document, "pictures": [entry]}
            files |= {_file_name(i, kind): encode_picture(pictures[i], record) for kind, pictures in columns.items()}
        if args.compare:
            files[COMPARISON] = encode_picture(_grid(columns, args.prompt), document)
        files[SETTINGS] = encode_settings(document)
        document = json.loads(files[SETTINGS])
        save_folder(out, files, recognise_pictures, obsolete=lambda name: re.fullmatch(OURS, name) is not None)
    return {"out": args.out, **document}


def report(document: dict[str, Any]) -> None:
    """Print where the pictures are."""
    count = len(document["pictures"])
    out = Path(document["out"])
    settings = out.with_suffix(".json") if out.suffix.lower() in IMAGE_FORMATS else out / SETTINGS
    if unseen := sum(not entry.get("seen", True) for entry in document["pictures"]):
        print(f"{unseen} of {count} pictures stay as they are: nothing that is steered is seen in them")
    print(f"wrote {count} picture{'s' if count > 1 else ''} to {out}, settings to {settings}")


def _steering(args: argparse.Namespace) -> dict[str, Any]:
    """The options on how to steer, by their names in the settings that are written."""
    options = ("gate", "combine", "within", "schedule", "interpolate_bins", "rows", "attach")
    return {**arguments.values_of(args, *options), "words": arguments.words_by_concept(args.words)}


def _draw(
    adapter: PipelineAdapter,
    args: argparse.Namespace,
    concepts: Mapping[Concept, Strength],
    settings: Settings,
    preserve: Any,
) -> tuple[dict[str, list[Image.Image]], list[np.ndarray]]:
    """Pictures by kind: "picture" (steered, where there are concepts); and the masks of what was preserved, or none.

    With --compare also "base", a map of h for each concept, and "changed" and "mask" where the rest is preserved.
    """
    seeds = seeds_for(args.prompt, args.seed)
    if not concepts:
        return {"picture": pictures_of(adapter, args.prompt, seeds, settings)}, []
    base: list[Image.Image] = []
    masks: list[np.ndarray] = []
    columns: dict[str, list[Image.Image]] = {"picture": []}
    # a site in the text encoder has no patches to map
    denoiser = adapter.family.denoiser
    mapped = [concept.name for concept in concepts if any(site.root == denoiser for site in concept.sites)]
    options = {**_steering(args), "gate": GATES[args.gate], "trace": args.compare}
    options["branch"] = options.pop("rows")
    with steer(adapter, dict(concepts), **options) as steering:
        for made in generate_batches(steering, args.prompt, seeds, settings, preserve):
            columns["picture"] += made.images
            base += made.unsteered or []
            masks += made.masks or []
            if not steering.traced:
                continue
            for name in mapped:
                maps = [steering.trace.heatmap(name, picture, image=i) for i, picture in enumerate(made.images)]
                columns.setdefault(f"where {name}", []).extend(maps)
    if args.compare:
        columns = {"base": base or pictures_of(adapter, args.prompt, seeds, settings), **columns}
        if args.preserve:
            pairs = zip(columns["base"], columns["picture"], strict=True)
            columns["changed"] = [strips.difference(*pair) for pair in pairs]
        if masks:
            columns["mask"] = [strips.overlay(*pair) for pair in zip(columns["base"], masks, strict=True)]
    return columns, masks


def _document(
    adapter: PipelineAdapter, args: argparse.Namespace, concepts: Mapping[Concept, Strength], settings: Settings
) -> dict[str, Any]:
    """All that is needed to draw the same pictures again."""
    seeds = seeds_for(args.prompt, args.seed)
    return {
        "model": args.model,
        "concepts": [
            {
                "concept": source,
                "name": concept.name,
                "strength": str(strength) if isinstance(strength, Auto) else strength,
                "unit": concept.unit,
            }
            for (source, _), (concept, strength) in zip(args.concept, concepts.items(), strict=True)
        ],
        **_steering(args),
        "preserve": args.preserve,
        "schedule": None if args.schedule is None else args.schedule.points,
        **arguments.generation_record(args, adapter, settings),
        "pictures": [{"prompt": prompt, "noise_seed": seed} for prompt, seed in zip(args.prompt, seeds, strict=True)],
        "versions": {"dsas": __version__, **versions("diffusers", "transformers")},
    }


def _file_name(index: int, kind: str) -> str:
    """001.png for the picture itself, 001-base.png and the like for the other kinds."""
    suffix = "" if kind == "picture" else "-" + re.sub(r"[^\w.-]+", "-", kind)
    return f"{index + 1:03d}{suffix}.png"


def _grid(columns: Mapping[str, Sequence[Image.Image]], prompts: Sequence[str]) -> Image.Image:
    """A row for each prompt, a column for each kind of picture."""
    cell = min(512, max(160, columns["picture"][0].width))
    headings = ["steered" if kind == "picture" else kind if len(kind) <= 18 else f"{kind[:17]}…" for kind in columns]
    return strips.grid(list(zip(*columns.values(), strict=True)), headings if len(columns) > 1 else [""], prompts, cell)
