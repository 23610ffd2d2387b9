"""Controls that several tabs have, and what they hold as numbers that make sense."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import gradio as gr
from PIL import Image

from dsas_core.concept import Concept
from dsas_core.errors import DSASError

from . import look
from .studio import ends_of

#: of a slider
STEP = 0.05
MOST_SEED = 2**31 - 1
#: pictures are shown this large at least: the built-in model's have 64 pixels
SHOWN = 512
CHIPS = 5


def strength_slider(concept: Concept, first: bool, elem_id: str) -> gr.Slider:
    """The slider of a concept, between its ends; the first on the page begins at one unit, the others at 0."""
    told = of_concept(concept)
    start = min(1.0, told["maximum"]) if first else 0.0
    return gr.Slider(value=start, step=STEP, buttons=["reset"], elem_id=elem_id, **told)


def of_concept(concept: Concept) -> dict[str, Any]:
    """Ends, label and description of a concept's slider."""
    low, high = ends_of(concept, STEP)
    return {"minimum": low, "maximum": high, "label": concept.name, "info": look.unmarked(concept.description)}


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
            chip.click(None, None, into, js=f"() => {json.dumps(example)}", api_visibility="private")


def names(concepts: Sequence[str], now: str | None) -> Any:
    """A dropdown of concepts, the one that was chosen kept where it is still there."""
    return gr.update(choices=list(concepts), value=now if now in concepts else next(iter(concepts), None))


def shown(picture: Image.Image) -> Image.Image:
    """A picture as large as people can see it."""
    scale = -(-SHOWN // min(picture.size))
    if scale <= 1:
        return picture
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.BICUBIC)
