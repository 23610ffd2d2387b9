"""The settings in the pictures that the page gives out, and those in a picture that a visitor brings."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dsas_core.concept.builtin import shipped
from dsas_core.errors import DSASError, quote
from dsas_core.model.loading import BUILTIN

from ...drawing.picture_files import read_settings
from ...drawing.picture_settings import GATES, DrawnConcept, HowSteered, PictureSettings
from .drawing import Drawing, Order
from .picture_service import PictureService
from .uploads import read_picture


@dataclass(frozen=True)
class Brought:
    """A picture's settings, as far as the page has them, and what it has not, in sentences."""

    made: PictureSettings
    strengths: dict[str, float]
    gate: str
    notes: tuple[str, ...] = ()


def settings_in(drawing: Drawing, service: PictureService, *, steered: bool) -> dict[str, Any] | None:
    """The document that a picture's file has, from which `dsas generate --from` draws it again.

    None where no command draws it so: only at some of a concept's layers.

    Args:
        drawing: the pictures.
        service: what drew them.
        steered: of the steered picture, or else of the other one.
    """
    order = drawing.order
    if steered and order.sites:
        return None
    return picture_settings(order, service, steered=steered, preserve=order.preserve and not drawing.unplaced).to_dict()


def picture_settings(order: Order, service: PictureService, *, steered: bool, preserve: bool) -> PictureSettings:
    """An order's settings, with or without its concepts."""
    # not where a folder is on this machine
    model = Path(service.model).name if Path(service.model).exists() else service.model
    common: dict[str, Any] = {"negative_prompt": order.negative}
    if steered:
        gate = next(name for name, value in GATES.items() if (value or "dsas") == order.gate)
        schedule = None if order.schedule is None else tuple(order.schedule.points)
        common["how"] = HowSteered(gate, order.combine, schedule=schedule, rows=order.branch)
        common["preserve"] = preserve
        common["concepts"] = tuple(
            DrawnConcept(source_of(name), name, strength) for name, strength in order.strengths.items() if strength
        )
    return PictureSettings(model, order.prompt, order.seed, order.settings, **common)


def source_of(name: str) -> str:
    """What a concept of this name is read from: those that ship have their prefix."""
    full = f"{BUILTIN}{name}"
    return full if any(concept.name == full for concept in shipped()) else name


def read_brought(path: str | None, service: PictureService, names: Collection[str]) -> Brought:
    """The settings in a picture that was brought.

    Args:
        path: where Gradio says that it is.
        service: what draws.
        names: of the concepts that the visitor has.

    Raises:
        DSASError: no picture with settings, or with a strength that is found anew at each step.
    """
    made = read_settings(read_picture(path))
    if made.preserve == "off":  # as the command line takes it
        made = replace(made, preserve=False)
    notes, strengths = [], {}
    for concept in made.concepts:
        if concept.name not in names:
            notes.append(f"the concept {quote(concept.name)} is not here: bring it on the tab Learn")
        elif not isinstance(concept.strength, int | float):
            raise DSASError(
                f"the strength {concept.strength} of {quote(concept.name)} is not for this page: a number is"
            )
        else:
            strengths[concept.name] = float(concept.strength)
    if Path(made.model).name != Path(service.model).name:
        notes.append(f"it was drawn with {quote(made.model)}, and here is {quote(Path(service.model).name)}")
    how = made.how
    elsewhere = {"within": how.within, "words": how.words, "interpolation of bins": how.interpolate_bins}
    notes += [f"{what} is not on this page" for what, found in elsewhere.items() if found]
    if made.preserve == "latents":
        notes.append("the rest is kept in its pixels here, not by latents")
    elif isinstance(made.preserve, str):
        notes.append("its mask is not in the file: the rest is kept as the concepts see themselves")
    gate = "dsas" if made.how.gate == "own" else made.how.gate
    return Brought(made, strengths, gate, tuple(notes))
