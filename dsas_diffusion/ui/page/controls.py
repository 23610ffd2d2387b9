"""Components that several tabs have, how their events run, and the values that they hold."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gradio as gr
from PIL import Image

from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError
from dsas_core.utils.saving.files import as_json

from ...drawing.picture_files import KEYWORD
from ..services.picture_service import slider_ends
from . import markup

#: between two values of a slider
STEP = 0.05
MAX_SEED = 2**32 - 1  # seeds of noise that `dsas generate` derives are as large
#: pixels of a picture's shorter side on the page, at least: the built-in model's have 64
MIN_SIDE = 512
#: examples that are offered below a prompt
MAX_CHIPS = 5
#: of every event: nobody calls it from outside the page
PRIVATE: dict[str, Any] = {"api_visibility": "private"}
#: of an event that changes components without a sign of progress
SILENT: dict[str, Any] = {"show_progress": "hidden", **PRIVATE}
#: of an event that is handled at once, beside the queue
QUICK: dict[str, Any] = {"queue": False, **SILENT}
#: of a component that shows pictures
PICTURE: dict[str, Any] = {"format": "png", "interactive": False, "buttons": ["download", "fullscreen"]}


def queue_settings(queue: str, show_progress_on: Any) -> dict[str, Any]:
    """Settings of an event that uses a model: visitors wait for one another in the queue of that name."""
    return {"concurrency_id": queue, "concurrency_limit": 1, "show_progress_on": show_progress_on, **PRIVATE}


# ---- components -----------------------------------------------------------------------------------------------------


def strength_sliders(concepts: Iterable[Concept], elem_id: str) -> list[gr.Slider]:
    """A slider for each concept; the first begins at one unit, the others at 0."""
    sliders = []
    for i, concept in enumerate(concepts):
        start, settings = 0.0 if i else first_strength(concept), slider_settings(concept)
        sliders.append(gr.Slider(value=start, step=STEP, buttons=["reset"], elem_id=f"{elem_id}-{i}", **settings))
    return sliders


def first_strength(concept: Concept) -> float:
    """One unit, or as much of it as the concept's slider has."""
    return min(1.0, slider_ends(concept, STEP)[1])


def slider_settings(concept: Concept) -> dict[str, Any]:
    """Ends, label and description of a concept's slider."""
    low, high = slider_ends(concept, STEP)
    return {"minimum": low, "maximum": high, "label": concept.name, "info": markup.strip_markdown(concept.description)}


def gate_choice(gates: Mapping[str, str], elem_id: str) -> gr.Radio:
    """Which gate steers; `gates` has descriptions and names."""
    return gr.Radio(list(gates.items()), value="dsas", label="Gate", elem_id=elem_id)


def seed_field(elem_id: str, **layout: Any) -> gr.Number:
    """A field for the seed."""
    return gr.Number(7, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, elem_id=elem_id, **layout)


def line_field(label: str, example: str, elem_id: str, limit: int) -> gr.Textbox:
    """A text field of one line, of at most `limit` characters."""
    return gr.Textbox(label=label, placeholder=example, max_lines=1, max_length=limit, elem_id=elem_id)


def prompt_row(
    label: str,
    placeholder: str,
    limit: int,
    elem_id: str,
    examples: Sequence[str],
    buttons: Mapping[str, str],
    width: int,
) -> tuple[Any, ...]:
    """A text field with buttons beside it, and below it examples that are written into it by a click.

    Args:
        label: of the field.
        placeholder: what it shows while it is empty.
        limit: characters that it takes.
        elem_id: of the field.
        examples: the field begins with the first.
        buttons: element id -> label; the first is the primary one.
        width: of a button, in pixels, at least.

    Returns:
        The field and the buttons.
    """
    texts: dict[str, Any] = {"label": label, "placeholder": placeholder, "max_length": limit, "elem_id": elem_id}
    with gr.Row(equal_height=True):
        field = gr.Textbox(examples[0] if examples else "", scale=5, min_width=220, **texts)
        components = [
            gr.Button(text, variant="secondary" if i else "primary", elem_id=name, scale=1, min_width=width)
            for i, (name, text) in enumerate(buttons.items())
        ]
    with gr.Row(elem_classes="chips"):
        for example in examples[:MAX_CHIPS]:
            chip = gr.Button(example, size="sm", variant="secondary")
            chip.click(None, None, field, js=f"() => {json.dumps(example)}", **PRIVATE)
    return field, *components


def sample_prompts(concepts: Iterable[Concept]) -> list[str]:
    """The prompts that concepts were illustrated with, which learning held out."""
    return [prompt for concept in concepts if concept.samples is not None for prompt in concept.samples.prompts]


def concept_choice(concepts: Iterable[str], label: str, elem_id: str, **settings: Any) -> gr.Dropdown:
    """A dropdown of concepts, the first one chosen."""
    names = list(concepts)
    return gr.Dropdown(names, value=next(iter(names), None), label=label, elem_id=elem_id, **settings)


def update_choices(concepts: Iterable[str], chosen: str | None) -> Any:
    """An update of a dropdown of concepts; the chosen one stays, or the first is chosen where it is not there."""
    names = list(concepts)
    return gr.update(choices=names, value=chosen if chosen in names else next(iter(names), None))


# ---- values ---------------------------------------------------------------------------------------------------------


def read_number(value: Any, what: str) -> float:
    """A number that a component holds; Gradio keeps it between the ends, but lets NaN through.

    Raises:
        DSASError: it is no finite number.
    """
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise DSASError(f"{what} {value}: expected a number")
    return float(value)


def read_seed(value: Any) -> int:
    """The seed that a component holds.

    Raises:
        DSASError: it is none.
    """
    if value is None or not 0 <= value <= MAX_SEED:
        raise DSASError(f"seed {value}: expected a whole number from 0 to {MAX_SEED}")
    return int(value)


class Notes(list[str]):
    """Sentences on what was asked for and could not be."""

    def clamp(self, what: str, value: float, low: float, high: float) -> float:
        """The number, or the end that it is beyond, of which a sentence is noted.

        Example:
            >>> notes = Notes()
            >>> notes.clamp("strength", 9.0, -1.0, 2.5), notes
            (2.5, ['strength: 9 is beyond -1 to 2.5, so it is 2.5'])
        """
        end = min(high, max(low, value))
        if end != value:
            found, *ends = (str(it) if isinstance(it, int) else f"{it:.15g}" for it in (value, low, high, end))
            self.append(f"{what}: {found} is beyond {ends[0]} to {ends[1]}, so it is {ends[2]}")
        return end


def enlarge(picture: Image.Image) -> Image.Image:
    """A picture large enough for the page, by a whole factor."""
    scale = -(-MIN_SIDE // min(picture.size))
    if scale <= 1:
        return picture
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.BICUBIC)


def as_shown(picture: Image.Image, settings: Mapping[str, Any] | None = None) -> Image.Image:
    """A picture as the page shows it: large enough, with its settings, and in a file of its own.

    Gradio names files by their content, and would write the file of an equal picture again while another visitor's
    browser reads it.

    Args:
        picture: as it was drawn.
        settings: the document with its settings, for its file; None for none.
    """
    shown = enlarge(picture).copy()
    shown.info["shown"] = secrets.token_hex(8)  # goes into the file
    if settings is not None:
        shown.info[KEYWORD] = as_json(settings)
    return shown
