"""`dsas grid`: draw a prompt over strengths, seeds, concepts, prompts, steps or guidance, on one labelled sheet."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from dsas_core import llm
from dsas_core.errors import DSASError
from dsas_core.steering.strengths import Auto
from dsas_core.utils.progress import progress_bar

from ...drawing.draw import check_words
from ...drawing.grid import Axis, draw_cells, plan_cells, read_axes
from ...drawing.picture_files import IMAGE_FORMATS, encode_picture
from ...drawing.picture_settings import as_document
from ...drawing.shelf import Shelf
from ..arguments import read_preserve, shows_progress
from ..output import check_output_files, encode_settings, write_files
from ..picture_arguments import first_picture, open_for_pictures, seeded, warn_of_words


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Draw every picture of a grid, and write the sheet and the settings of each.

    Returns:
        The settings of the pictures, block by block and row by row, and the axes.
    """
    axes = _axes(args)
    out = Path(args.out).expanduser()
    if out.suffix.lower() not in IMAGE_FORMATS:
        raise DSASError(f"{out}: a grid is written as {', '.join(IMAGE_FORMATS)}")
    check_output_files([out, out.with_suffix(".json")], args.overwrite)
    if llm.is_language_model(args.model):
        args.usage(f"{args.model} is a language model, which draws nothing: use `dsas chat`")
    mask = read_preserve(args.preserve)
    args.seed = args.seed or 0
    shelf = Shelf(args.concept)
    sides = read_axes(axes, shelf)
    cells = plan_cells(first_picture(args, args.prompt[0]), sides, shelf, seeded)
    flat = [cell for block in cells for row in block for cell in row]
    check_words(flat)

    adapter, drawn = open_for_pictures(args, flat, [kind for kind in ("steps", "guidance") if kind in axes])
    warn_of_words(adapter, drawn)
    adapter.pipe.set_progress_bar_config(disable=True)  # there is one for all pictures
    remaining = iter(drawn)
    cells = [[[next(remaining) for _ in row] for row in block] for block in cells]
    with progress_bar(len(flat), "pictures", shows_progress(args)) as bar:
        grid = draw_cells(adapter, sides, cells, shelf, mask, lambda *_: bar.update())
    document = {**as_document(grid.flat()), "axes": [_describe(axis) for axis in sides]}
    settings = encode_settings(document)
    document = json.loads(settings)
    write_files({out.with_suffix(".json"): settings, out: encode_picture(grid.sheet(), document, out.suffix.lower())})
    return {"out": str(out), **document}


def report(document: dict[str, Any]) -> None:
    """Print the axes and where the sheet is."""
    for side, axis in zip(("columns", "rows", "blocks"), document["axes"], strict=False):
        print(f"{side}: {axis['axis']} {', '.join(map(str, axis['values']))}")
    count, out = len(document["pictures"]), Path(document["out"])
    print(f"wrote {count} picture{'s' if count > 1 else ''} to {out}, settings to {out.with_suffix('.json')}")


def _axes(args: argparse.Namespace) -> dict[str, list[Any]]:
    """The axes by what varies, in the order of columns, rows and blocks; exits where options contradict them."""
    given = [axis for axis in (args.x, args.y, args.z) if axis is not None]
    if args.z is not None and args.y is None:
        args.usage("--z has blocks of rows: give --y, too")
    axes = {key: args.prompt if key == "prompt" else values for key, values in given}
    if len(axes) < len(given):
        (twice, _), *_ = Counter(key for key, _ in given).most_common(1)
        args.usage(f"two axes are of {twice}: make them one, or leave one out")
    if (len(args.prompt) > 1) != ("prompt" in axes):
        args.usage("several prompts are an axis, and one is none: --y prompt --prompt … --prompt …")
    for kind in ("seed", "steps", "guidance"):
        if kind in axes and getattr(args, kind) is not None:
            args.usage(f"--{kind} is an axis already: leave one of the two out")
    return axes


def _describe(axis: Axis) -> dict[str, Any]:
    values = [str(value) if isinstance(value, Auto) else value for value in axis.values]
    return {"axis": axis.kind if axis.concept is None else f"{axis.kind}:{axis.concept}", "values": values}
