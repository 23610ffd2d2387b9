"""The tab that draws: a prompt, a slider for each concept, the picture without and with them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError, PromptError, quote
from dsas_core.model.loading import BUILTIN

from ...drawing.prompt_tags import parse_prompt
from ...steering.concept_masks import localises
from ..page import controls
from ..page.session import MAX_OWN_CONCEPTS, Past, Session, report_errors, until_failure
from ..services.drawing import MAX_CHARACTERS, Order
from ..services.example import load_example
from ..services.picture_service import PictureService, steered_sites
from .advanced import AdvancedSettings
from .canvas import Canvas
from .from_picture import FromPicture

EXAMPLES = (
    "a banana and a dog on the grass",
    "a red car and a banana on the beach",
    "an apple and a lemon on a table",
    "a dog in the snow",
)
#: pictures that are drawn at once, at most
MAX_PICTURES = 4
KEEPS = "the picture changes only where the concept is seen; with a concept without a place, as a background, all may"
GATES = {"DSAS: where the concept is": "dsas", "always on: everywhere": "on", "off": "off"}


class CreateTab:
    """Components and handlers of the tab.

    Args:
        service: what draws.
        session: the visitor's state.

    Attributes:
        inputs: the components that `order` reads.
        draw_events: the events after which there is another drawing.
    """

    def __init__(self, service: PictureService, session: gr.State) -> None:
        self.service, self.session = service, session
        label, placeholder, examples = "Prompt", "what the picture should show", self._examples()
        self.prompt, self.draw_button = controls.prompt_row(
            label, placeholder, MAX_CHARACTERS, "prompt", examples, {"draw": "Draw"}, width=120
        )
        with gr.Row():
            with gr.Column(scale=5, min_width=300, elem_id="knobs") as knobs:
                self._add_knobs()
            with gr.Column(scale=8, min_width=300, elem_id="canvas"):
                self.canvas = Canvas(service)
        #: what a picture depends on, and a place in the history gives back
        self.held = [self.prompt, *self.sliders, self.preserve, self.gate, self.seed.seed, *self.advanced.held]
        self.inputs: set[Any] = {self.session, self.canvas.view, self.seed.locked, self.seed.count, *self.held}
        with knobs:
            FromPicture(service, session, self.held, self.advanced)
        self.draw_events = self._wire()

    def _add_knobs(self) -> None:
        gr.Markdown("**Concepts**: 0 leaves the picture as it is, 1 is one unit, below 0 goes the other way.")
        concepts = list(self.service.concepts.values())
        self.sliders = controls.strength_sliders(concepts, "strength")
        self.sliders += [
            gr.Slider(-1, 2, 0, step=controls.STEP, visible=False, elem_id=f"strength-{i}", buttons=["reset"])
            for i in range(len(concepts), len(concepts) + MAX_OWN_CONCEPTS)
        ]
        with gr.Row(equal_height=True):
            self.live = gr.Checkbox(False, label="draw when a slider is let go", elem_id="live", min_width=160)
            self.let_go = gr.Number(0, label="how often one was let go", visible="hidden", elem_id="let-go")
            zero = gr.Button("All to 0", size="sm", elem_id="zero", min_width=90)
            zero.click(None, None, self.sliders, js=f"() => {json.dumps([0] * len(self.sliders))}", **controls.QUICK)
        can, label = self.service.can_preserve, "Keep the rest of the picture"
        localised = can and any(map(localises, concepts))
        self.preserve = gr.Checkbox(localised, label=label, info=KEEPS, visible=can, elem_id="keep")
        self.gate = controls.gate_choice(GATES, "gate")
        self.seed = SeedControls()
        self.advanced = AdvancedSettings(self.service.defaults, concepts, self.service.adapter)

    def _examples(self) -> list[str]:
        """Prompts that concepts were illustrated with; for the built-in model a few more."""
        examples = EXAMPLES if self.service.adapter.is_builtin else ()
        return list(dict.fromkeys([*examples, *controls.sample_prompts(self.service.concepts.values())]))

    # ---- events -----------------------------------------------------------------------------------------------------

    def _wire(self) -> list[Any]:
        outputs = [self.session, *self.canvas.outputs, self.seed.seed, self.canvas.batch]
        queue = controls.queue_settings("pipe", [self.canvas.steered, self.canvas.compare])
        events = [self.draw_button.click, self.prompt.submit]
        latest = {"trigger_mode": "always_last", **queue}
        draw_events = [
            gr.on(events, report_errors(self.draw), self.inputs, outputs, **queue),
            self.let_go.change(report_errors(self.draw_live), self.inputs, outputs, **latest),
        ]
        # counted in the browser: without live mode nothing is asked of the server, and nobody waits in its queue
        count = "(live, count) => live ? count + 1 : count"
        released = [slider.release for slider in self.sliders]
        gr.on(released, None, [self.live, self.let_go], self.let_go, js=count, **controls.QUICK)
        self.canvas.wire(self.session)
        outputs = [*self.canvas.outputs, *self.held]
        self.canvas.batch.select(
            report_errors(self.show_one), [self.session, self.canvas.view], outputs, **controls.QUICK
        )
        self.seed.wire()
        self.advanced.wire()
        return draw_events

    @property
    def at_load(self) -> tuple[Any, ...]:
        """Handler, inputs and outputs of the event that fills the page when it is loaded."""
        return report_errors(self.begin), [self.session, self.canvas.view], [self.session, *self.canvas.outputs]

    def begin(self, session: Session, view: str) -> tuple[Any, ...]:
        """The example that was drawn ahead, where this model drew it and its concepts are here."""
        if session.drawing is None and self.prompt.value:
            session.drawing = load_example(self.service, self.first_order())
        return session, *self.canvas.show(session.drawing, view)

    def draw(self, data: Mapping[Any, Any]) -> Iterator[tuple[Any, ...]]:
        """Both pictures, the unsteered one first; with another seed, where that is not kept."""
        yield from self.draw_live(self.seed.redraw(data))

    def draw_live(self, data: Mapping[Any, Any]) -> Iterator[tuple[Any, ...]]:
        """Both pictures, the unsteered one first, with the seed as it is: the difference is what the slider did.

        After an error the pictures are again those that were there, with what was said of them.
        """
        session, view = data[self.session], data[self.canvas.view]

        def failed(note: str) -> tuple[Any, ...]:
            return session, *self.canvas.show(session.drawing, view, note), gr.skip(), gr.skip()

        yield from until_failure(self._updates(session, view, data), failed, "Drawing failed.")

    def _updates(self, session: Session, view: str, data: Mapping[Any, Any]) -> Iterator[tuple[Any, ...]]:
        first, count = self.order(data), int(controls.read_number(data[self.seed.count], "pictures"))
        if not 1 <= count <= MAX_PICTURES:
            raise DSASError(f"{count} pictures: expected 1 to {MAX_PICTURES}")
        batch = []
        for seed in range(first.seed, first.seed + count):
            order = replace(first, seed=seed % (controls.MAX_SEED + 1))
            for drawing in self.service.draw(order, session.concepts(self.service)):
                if drawing.steered is not None:
                    held = {**data, self.seed.seed: order.seed}
                    batch.append(session.show(drawing, (held[part] for part in self.held)))
                yield session, *self.canvas.show(drawing, view), order.seed if count == 1 else first.seed, gr.skip()
        session.batch = batch
        shown = self.canvas.show_batch([past.drawing for past in batch])
        yield session, *(gr.skip() for _ in self.canvas.outputs), gr.skip(), shown

    def show_one(self, session: Session, view: str, chosen: gr.SelectData) -> tuple[Any, ...]:
        """Updates for one of the pictures that were drawn at once."""
        if not 0 <= chosen.index < len(session.batch):
            raise DSASError("this picture is no longer kept: draw it again")
        return self.restore(session, session.batch[chosen.index], view)

    def first_order(self) -> Order:
        """What the components ask for when the page is loaded."""
        return self.order({self.session: Session(), **{part: part.value for part in self.held}})

    def order(self, data: Mapping[Any, Any]) -> Order:
        """What the components ask for.

        Raises:
            DSASError: a number or a schedule that makes no sense, or a session that has ended.
        """
        concepts = data[self.session].concepts(self.service)
        given = [controls.read_number(data[slider], "strength") for slider in self.sliders]
        if any(given[len(concepts) :]):
            raise DSASError(
                "this page was left alone for more than an hour: reload it, and your own concepts that this browser "
                "keeps come back"
            )
        fields = self.advanced.order_fields(data, self.service.defaults)
        strengths, notes = dict(zip(concepts, given, strict=False)), controls.Notes()
        prompt, tagged = read_tags(data[self.prompt] or "", concepts)
        for name, strength in tagged.items():
            ends = controls.slider_settings(concepts[name])
            strengths[name] = notes.clamp(f"the tag of {name}", strength, ends["minimum"], ends["maximum"])
            notes.append(f"the prompt sets {name} to {strengths[name]:g}, whatever its slider")
        fields |= {"strengths": strengths, "gate": data[self.gate], "preserve": bool(data[self.preserve])}
        return Order(prompt, controls.read_seed(data[self.seed.seed]), notes=tuple(notes), **fields)

    def slots(self, session: Session, strengths: Sequence[float] = ()) -> list[Any]:
        """Updates of the sliders and of the list of layers, for the concepts that a visitor has.

        Strengths stay those of their concepts, unless one is new: it begins at one unit, and the others at 0.

        Args:
            session: the visitor's state.
            strengths: that the sliders have.
        """
        concepts = list(session.concepts(self.service).values())
        names = [concept.name for concept in concepts]
        before, session.slots = session.slots, names
        updates = [gr.update(visible=True, **controls.slider_settings(concept)) for concept in concepts]
        updates += [gr.update(visible=False, value=0)] * (len(self.sliders) - len(updates))
        if session.newest is not None:
            starts = [controls.first_strength(it) if it.name == session.newest else 0.0 for it in concepts]
            starts += [0.0] * (len(updates) - len(starts))
            updates = [{**update, "value": start} for update, start in zip(updates, starts, strict=True)]
            session.newest = None
        elif before[: len(names)] != names and before:  # one was forgotten, and those behind it have moved up
            held = dict(zip(before, strengths, strict=False))
            updates[: len(names)] = [
                {**update, "value": held.get(name, 0.0)} for update, name in zip(updates, names, strict=False)
            ]
        return [*updates, gr.update(choices=steered_sites(concepts))]

    def restore(self, session: Session, past: Past, view: str) -> tuple[Any, ...]:
        """Updates of the pictures and of all that they depend on to what they were; concepts that are gone stay so."""
        session.drawing = past.drawing
        held = dict(zip(self.held, past.held, strict=True))
        then = dict(zip(past.drawing.order.strengths, (held[slider] for slider in self.sliders), strict=False))
        names = [*session.concepts(self.service), *[""] * len(self.sliders)]
        held |= {slider: then.get(name, 0.0) for slider, name in zip(self.sliders, names, strict=False)}
        return *self.canvas.show(past.drawing, view), *self.advanced.reveal(held)


class SeedControls:
    """The seed, whether it is kept from one picture to the next, and a button that draws another."""

    def __init__(self) -> None:
        with gr.Row(equal_height=True):
            self.seed = controls.seed_field("seed", min_width=120)
            with gr.Column(min_width=160):
                self.locked = gr.Checkbox(True, label="keep the seed", elem_id="locked", container=False)
                self.dice = gr.Button("🎲 another seed", size="sm", elem_id="dice")
        self.count = gr.Slider(1, MAX_PICTURES, 1, step=1, label="Pictures, of this seed and the next", elem_id="count")

    def wire(self) -> None:
        """Have the button draw another seed."""
        self.dice.click(lambda: secrets.randbelow(controls.MAX_SEED), None, self.seed, **controls.QUICK)

    def redraw(self, data: Mapping[Any, Any]) -> Mapping[Any, Any]:
        """What the components hold, with another seed where it is not kept."""
        return data if data[self.locked] else {**data, self.seed: secrets.randbelow(controls.MAX_SEED)}


def read_tags(text: str, concepts: Mapping[str, Concept]) -> tuple[str, dict[str, float]]:
    """A prompt without tags as `<dsas:banana-blur:0.5>`, and the strengths that they set, by concept name.

    Raises:
        DSASError: a malformed tag, or one of a concept that is not on the page: nothing else is read.
    """
    prompt, found = parse_prompt(text, concepts)
    strengths: dict[str, float] = {}
    for source, strength in found.items():
        name = source if source in concepts else source.removeprefix(BUILTIN)
        if name not in concepts:
            raise PromptError(
                f"the prompt names the concept {quote(source)}: there are {', '.join(concepts) or 'none'}"
            )
        if name in strengths:
            raise PromptError(f"the prompt sets the concept {quote(name)} twice: leave one of its tags out")
        if not isinstance(strength, int | float):
            raise PromptError(f"the prompt sets {quote(name)} to {strength}: expected a number on this page")
        strengths[name] = float(strength)
    return prompt, strengths
