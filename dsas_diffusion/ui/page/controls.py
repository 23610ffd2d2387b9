"""Controls that several tabs have, how their events run, and the numbers that they hold."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import gradio as gr
from PIL import Image

from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError

from ..services.picture_service import ends_of
from . import markup

#: of a slider
STEP = 0.05
MOST_SEED = 2**31 - 1
#: pixels of a picture's shorter side on the page, at least: the built-in model's have 64
SHOWN = 512
CHIPS = 5
#: of every event: nobody calls it from outside the page
PRIVATE: dict[str, Any] = {"api_visibility": "private"}
#: of an event that is handled at once, beside the queue
QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", **PRIVATE}
#: of a component that shows pictures
PICTURE: dict[str, Any] = {"format": "png", "interactive": False, "buttons": ["download", "fullscreen"]}


def one_at_a_time(queue: str, show_progress_on: Any) -> dict[str, Any]:
    """Of an event that holds a model: visitors wait in the queue of that name."""
    return {"concurrency_id": queue, "concurrency_limit": 1, "show_progress_on": show_progress_on, **PRIVATE}


# ---- components -----------------------------------------------------------------------------------------------------


def strength_sliders(concepts: Iterable[Concept], elem_id: str) -> list[gr.Slider]:
    """A slider for each concept, between its ends; the first begins at one unit, the others at 0."""
    sliders = []
    for i, concept in enumerate(concepts):
        settings = of_concept(concept)
        start = 0.0 if i else min(1.0, settings["maximum"])
        sliders.append(gr.Slider(value=start, step=STEP, buttons=["reset"], elem_id=f"{elem_id}-{i}", **settings))
    return sliders


def of_concept(concept: Concept) -> dict[str, Any]:
    """Ends, label and description of a concept's slider."""
    low, high = ends_of(concept, STEP)
    return {"minimum": low, "maximum": high, "label": concept.name, "info": markup.unmarked(concept.description)}


def seed_field(elem_id: str, **layout: Any) -> gr.Number:
    """Where people write the seed."""
    return gr.Number(7, label="Seed", precision=0, minimum=0, maximum=MOST_SEED, elem_id=elem_id, **layout)


def field(examples: Sequence[str], label: str, placeholder: str, most: int, elem_id: str) -> gr.Textbox:
    """Where people write what they want, beside a button; it begins with the first example. `most` is in characters."""
    first = examples[0] if examples else ""
    return gr.Textbox(
        first, label=label, placeholder=placeholder, max_length=most, scale=5, min_width=220, elem_id=elem_id
    )


def one_line(label: str, example: str, elem_id: str, most: int) -> gr.Textbox:
    """A field of one line. `most` is in characters."""
    return gr.Textbox(label=label, placeholder=example, max_lines=1, max_length=most, elem_id=elem_id)


def chips(examples: Sequence[str], into: gr.Textbox) -> None:
    """A row of buttons, each of which writes an example into a field."""
    with gr.Row(elem_classes="chips"):
        for example in examples[:CHIPS]:
            chip = gr.Button(example, size="sm", variant="secondary")
            chip.click(None, None, into, js=f"() => {json.dumps(example)}", **PRIVATE)


def sample_prompts(concepts: Iterable[Concept]) -> list[str]:
    """The prompts that concepts were illustrated with, which learning held out."""
    return [prompt for concept in concepts if concept.samples is not None for prompt in concept.samples.prompts]


def concept_choice(concepts: Iterable[str], label: str, elem_id: str, **settings: Any) -> gr.Dropdown:
    """A dropdown of concepts, the first one chosen."""
    names = list(concepts)
    return gr.Dropdown(names, value=next(iter(names), None), label=label, elem_id=elem_id, **settings)


def names(concepts: Sequence[str], now: str | None) -> Any:
    """A dropdown of concepts, the one that was chosen kept where it is still there."""
    return gr.update(choices=list(concepts), value=now if now in concepts else next(iter(concepts), None))


# ---- values ---------------------------------------------------------------------------------------------------------


def number(value: Any, what: str) -> float:
    """A number that a component holds; Gradio keeps it between the ends, but lets NaN through.

    Raises:
        DSASError: there is none.
    """
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise DSASError(f"{what} {value}: expected a number")
    return float(value)


def seed_of(value: Any) -> int:
    """The seed that a component holds.

    Raises:
        DSASError: it makes no sense.
    """
    if value is None or not 0 <= value <= MOST_SEED:
        raise DSASError(f"seed {value}: expected a whole number from 0 to {MOST_SEED}")
    return int(value)


def enlarge(picture: Image.Image) -> Image.Image:
    """A picture as large as people can see it."""
    scale = -(-SHOWN // min(picture.size))
    if scale <= 1:
        return picture
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.BICUBIC)
