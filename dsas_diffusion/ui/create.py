"""The tab that draws: a prompt, a slider for each concept, the picture without and with them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import gradio as gr

from dsas_core.errors import DSASError
from dsas_core.steering import COMBINE

from ..load import is_builtin
from ..rows import ROWS
from ..schedule import Schedule
from . import look
from .controls import MOST_SEED, STEP, chips, field, number, of_concept, seed_of, shown, strength_slider
from .session import OWN, Session, friendly, toast
from .studio import MOST_CHARACTERS, MOST_STEPS, Order, Studio, steered_sites

EXAMPLES = (
    "a banana and a dog on the grass",
    "a red car and a banana on the beach",
    "an apple and a lemon on a table",
    "a dog in the snow",
)
GATES = {"DSAS: where the concept is": "dsas", "always on: everywhere": "on", "off": "off"}
SCHEDULES = {"the same at every step": "constant", "window": "window", "straight line": "linear", "cosine": "cosine"}


class CreateTab:
    """Components and handlers of the tab; `drawn` is the list of events after which there is another drawing."""

    def __init__(self, studio: Studio, session: gr.State) -> None:
        self.studio, self.session = studio, session
        self._ask()
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                self._knobs()
            with gr.Column(scale=6, min_width=300, elem_id="canvas"):
                self.compare = gr.ImageSlider(
                    label="unsteered | steered",
                    elem_id="compare",
                    slider_position=25,
                    type="pil",
                    format="png",
                    max_height=560,
                    interactive=False,
                    buttons=["download", "fullscreen"],
                )
                self.explain = gr.HTML(look.explained(None), elem_id="explain")
        self.asked: set[Any] = {self.session, self.prompt, self.seed, self.locked, self.gate, self.steps, self.guidance}
        self.asked |= {self.kind, self.first, self.last, self.rows, self.combine, self.sites, *self.sliders}
        self.drawn = self._wire()

    def _ask(self) -> None:
        examples = self._examples()
        with gr.Row(equal_height=True):
            self.prompt = field(examples, "Prompt", "what the picture should show", MOST_CHARACTERS, "prompt")
            self.draw_button = gr.Button("Draw", variant="primary", elem_id="draw", scale=1, min_width=120)
        chips(examples, self.prompt)

    def _knobs(self) -> None:
        gr.Markdown("**Concepts**: 0 leaves the picture as it is, 1 is one unit, below 0 goes the other way.")
        self.sliders = [self._slider(i) for i in range(len(self.studio.concepts) + OWN)]
        with gr.Row(equal_height=True):
            self.live = gr.Checkbox(False, label="draw when a slider is let go", elem_id="live", min_width=200)
            self.let_go = gr.Number(0, label="how often one was let go", visible="hidden", elem_id="let-go")
            self.zero = gr.Button("All to 0", size="sm", elem_id="zero", min_width=90)
        self.gate = gr.Radio(list(GATES.items()), value="dsas", label="Gate", elem_id="gate")
        with gr.Row(equal_height=True):
            self.seed = gr.Number(
                7, label="Seed", precision=0, minimum=0, maximum=MOST_SEED, elem_id="seed", min_width=120
            )
            with gr.Column(min_width=160):
                self.locked = gr.Checkbox(True, label="keep the seed", elem_id="locked", container=False)
                self.dice = gr.Button("🎲 another seed", size="sm", elem_id="dice")
        with gr.Accordion("Advanced", open=False):
            usual = self.studio.usual
            self.steps = gr.Slider(1, MOST_STEPS, usual.steps, step=1, label="Denoising steps", elem_id="steps")
            self.guidance = gr.Slider(0, 20, usual.guidance, step=0.5, label="Guidance scale", elem_id="guidance")
            self.kind = gr.Dropdown(
                list(SCHEDULES.items()), value="constant", label="Strength over the steps", elem_id="schedule-kind"
            )
            with gr.Row():
                self.first = gr.Number(1.0, label="factor at noise", visible=False, elem_id="schedule-first")
                self.last = gr.Number(1.0, label="factor at the end", visible=False, elem_id="schedule-last")
            self.schedule = gr.HTML(look.drawn_schedule(Schedule.constant(1.0)), elem_id="schedule")
            self.sites = gr.Dropdown(
                steered_sites(list(self.studio.concepts.values())),
                multiselect=True,
                label="Only at these layers",
                info="none chosen: wherever the concept steers",
                elem_id="sites",
            )
            self.rows = gr.Radio(ROWS, value="conditional", label="Rows of guidance that are steered", elem_id="rows")
            self.combine = gr.Radio(COMBINE, value="sum", label="Several concepts at one place", elem_id="combine")

    def _examples(self) -> list[str]:
        """Prompts that concepts were illustrated with, which learning held out; for the built-in model a few more."""
        samples = (concept.samples for concept in self.studio.concepts.values())
        held_out = [prompt for one in samples if one is not None for prompt in one.prompts]
        own = EXAMPLES if is_builtin(self.studio.pipe) else ()
        return list(dict.fromkeys([*own, *held_out]))

    def _slider(self, place: int) -> gr.Slider:
        concepts = list(self.studio.concepts.values())
        if place >= len(concepts):
            return gr.Slider(-1, 2, 0, step=STEP, visible=False, elem_id=f"strength-{place}", buttons=["reset"])
        return strength_slider(concepts[place], place == 0, f"strength-{place}")

    # ---- events -----------------------------------------------------------------------------------------------------

    def _wire(self) -> list[Any]:
        shown = [self.session, self.compare, self.explain, self.seed]
        one_at_a_time = {"concurrency_id": "pipe", "concurrency_limit": 1, "api_visibility": "private"}
        own: dict[str, Any] = {"show_progress_on": self.compare, **one_at_a_time}
        drawn = [
            gr.on([self.draw_button.click, self.prompt.submit], friendly(self.draw), self.asked, shown, **own),
            self.let_go.change(friendly(self.draw_live), self.asked, shown, trigger_mode="always_last", **own),
        ]
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        # counted in the browser: out of live mode nothing is asked of the server, and nobody waits in its queue
        count = "(live, count) => live ? count + 1 : count"
        released = [slider.release for slider in self.sliders]
        gr.on(released, None, [self.live, self.let_go], self.let_go, js=count, **quick)
        self.dice.click(lambda: secrets.randbelow(MOST_SEED), None, self.seed, **quick)
        self.zero.click(None, None, self.sliders, js=f"() => {json.dumps([0] * len(self.sliders))}", **quick)
        ends = [self.first, self.last]
        self.kind.input(self.schedule_ends, self.kind, [*ends, self.schedule], **quick)
        gr.on([part.change for part in ends], self.schedule_drawn, [self.kind, *ends], self.schedule, **quick)
        return drawn

    def draw(self, data: Mapping[Any, Any]) -> Iterator[tuple[Any, ...]]:
        """Both pictures, the base first; with another seed, where that is not kept."""
        if not data[self.locked]:
            data = {**data, self.seed: secrets.randbelow(MOST_SEED)}
        yield from self._drawn(data)

    def draw_live(self, data: Mapping[Any, Any]) -> Iterator[tuple[Any, ...]]:
        """As `draw`, with the seed that is there."""
        yield from self._drawn(data)

    def _drawn(self, data: Mapping[Any, Any]) -> Iterator[tuple[Any, ...]]:
        session: Session = data[self.session]
        try:
            order = self.order(data)
            for drawing in self.studio.draw(order, session.concepts(self.studio)):
                session.drawing = drawing
                pair = shown(drawing.base), shown(drawing.steered or drawing.base)
                yield session, pair, look.explained(drawing), order.seed
        except DSASError as error:
            toast(error)
            yield session, gr.skip(), look.note(str(error), "warned"), gr.skip()
        except Exception:  # or the page would say for ever that it steers
            yield session, gr.skip(), look.note("Drawing failed.", "warned"), gr.skip()
            raise

    def order(self, data: Mapping[Any, Any]) -> Order:
        """What the components ask for.

        Raises:
            DSASError: a number or a schedule that makes no sense, or a concept that is forgotten.
        """
        names = list(data[self.session].concepts(self.studio))
        strengths = [number(data[slider], "strength") for slider in self.sliders]
        if any(strengths[len(names) :]):
            raise DSASError(
                "your own concepts are forgotten after an hour: reload the page, and learn or bring them again"
            )
        steps, guidance = number(data[self.steps], "steps"), number(data[self.guidance], "guidance")
        kind, first, last = data[self.kind], data[self.first], data[self.last]
        return Order(
            prompt=data[self.prompt] or "",
            seed=seed_of(data[self.seed]),
            settings=replace(self.studio.usual, steps=int(steps), guidance=guidance),
            strengths=dict(zip(names, strengths, strict=False)),
            gate=data[self.gate],
            rows=data[self.rows],
            combine=data[self.combine],
            schedule=None if kind == "constant" else schedule_of(kind, first, last),
            sites=tuple(data[self.sites] or ()),
        )

    def schedule_ends(self, kind: str) -> tuple[Any, ...]:
        """The two numbers that a kind of schedule takes, named and with what they begin at."""
        if kind == "constant":
            return gr.update(visible=False), gr.update(visible=False), look.drawn_schedule(Schedule.constant(1.0))
        window = kind == "window"
        first, last = (800.0, 200.0) if window else (0.0, 1.0)
        names = ("from timestep", "to timestep") if window else ("factor at noise", "factor at the end")
        ends = [gr.update(visible=True, value=v, label=n) for v, n in zip((first, last), names, strict=True)]
        return *ends, look.drawn_schedule(schedule_of(kind, first, last))

    def schedule_drawn(self, kind: str, first: float | None, last: float | None) -> str:
        """The schedule as a line, or what is wrong with it."""
        try:
            return look.drawn_schedule(schedule_of(kind, first, last))
        except DSASError as error:
            return look.note(str(error), "warned")

    def slots(self, session: Session) -> list[Any]:
        """The sliders and the list of layers, for the concepts that a visitor has now; strengths stay."""
        concepts = list(session.concepts(self.studio).values())
        updates: list[Any] = []
        for i in range(len(self.sliders)):
            if i >= len(concepts):
                updates.append(gr.update(visible=False, value=0))
                continue
            updates.append(gr.update(visible=True, **of_concept(concepts[i])))
        return [*updates, gr.update(choices=steered_sites(concepts))]


def schedule_of(kind: str, first: float | None, last: float | None) -> Schedule:
    """A schedule of one kind from its two numbers.

    Raises:
        DSASError: a number is missing, or they make no schedule.
    """
    if first is None or last is None:
        raise DSASError("the schedule needs two numbers")
    makers = {"window": Schedule.between, "linear": Schedule.linear, "cosine": Schedule.cosine}
    return makers[kind](first, last) if kind in makers else Schedule.constant(1.0)
