"""The picture that the page begins with: drawn ahead with the built-in model, and shipped (`make example`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ...pipelines.prompt_check import check_prompt
from .drawing import Drawing, GateReading, Order
from .picture_service import PictureService

FOLDER = Path(__file__).parents[1] / "example"
RECORD, BASE, STEERED = "example.json", "base.png", "steered.png"


def load_example(service: PictureService, order: Order, folder: Path = FOLDER) -> Drawing | None:
    """The drawing that ships; None where this model, these concepts or this order are not those that it was made with.

    Args:
        service: whose model and concepts they are.
        order: what the page asks for when it is loaded.
        folder: where the files are.
    """
    if not service.adapter.is_builtin or not (folder / RECORD).is_file():
        return None
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    if record["order"] != _describe(service, order):
        return None
    gates = tuple(GateReading(**{**gate, "words": tuple(gate["words"])}) for gate in record["gates"])
    base, steered = (Image.open(folder / name).convert("RGB") for name in (BASE, STEERED))
    known: dict[str, Any] = {"moved": record["moved"], "area": record["area"], "gates": gates, "ahead": True}
    return Drawing(order, check_prompt(service.adapter, order.prompt), base, 0.0, False, steered, **known)


def save_example(service: PictureService, order: Order, folder: Path = FOLDER) -> Drawing:
    """Draw an order, and write it as `load_example` reads it; returns the drawing."""
    *_, drawing = service.draw(order, service.concepts)
    assert drawing.steered is not None
    names = ("concept", "strength", "mean_h", "highest_h", "words")
    gates = [{name: getattr(gate, name) for name in names} for gate in drawing.gates]
    record = {"order": _describe(service, order), "gates": gates, "moved": drawing.moved, "area": drawing.area}
    folder.mkdir(exist_ok=True)
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for name, picture in ((BASE, drawing.base), (STEERED, drawing.steered)):
        picture.save(folder / name, optimize=True)
    return drawing


def _describe(service: PictureService, order: Order) -> Mapping[str, Any]:
    """An order as plain data, with the concepts' digests: another concept of the same name draws something else."""
    strengths = {name: strength for name, strength in order.strengths.items() if strength}
    concepts = {name: service.concepts[name].digest for name in strengths}
    plain = {name: value for name, value in vars(order).items() if isinstance(value, str | int | bool)}
    sites = list(order.sites)
    return {**plain, "sites": sites, "settings": vars(order.settings), "strengths": strengths, "concepts": concepts}
