"""The settings of a picture that few people need: steps, guidance, the schedule, where and how concepts steer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError
from dsas_core.steering.steering import COMBINE

from ...generation.settings import Settings
from ...pipelines.batch_layout import BRANCHES
from ...steering.schedule import Schedule
from ..page import markup
from ..page.controls import QUICK, number
from ..services.drawing import MOST_STEPS
from ..services.picture_service import steered_sites

SCHEDULES = {"the same at every step": "constant", "window": "window", "straight line": "linear", "cosine": "cosine"}


class AdvancedSettings:
    """Components and handlers, made within the page's layout.

    Args:
        usual: steps and guidance to begin with. concepts: those whose layers can be chosen.
    """

    def __init__(self, usual: Settings, concepts: Sequence[Concept]) -> None:
        with gr.Accordion("Advanced", open=False):
            self.steps = gr.Slider(1, MOST_STEPS, usual.steps, step=1, label="Denoising steps", elem_id="steps")
            self.guidance = gr.Slider(0, 20, usual.guidance, step=0.5, label="Guidance scale", elem_id="guidance")
            self.kind = gr.Dropdown(
                list(SCHEDULES.items()), value="constant", label="Strength over the steps", elem_id="schedule-kind"
            )
            with gr.Row():
                self.first = gr.Number(1.0, label="factor at noise", visible=False, elem_id="schedule-first")
                self.last = gr.Number(1.0, label="factor at the end", visible=False, elem_id="schedule-last")
            self.schedule = gr.HTML(markup.drawn_schedule(Schedule.constant(1.0)), elem_id="schedule")
            self.sites = gr.Dropdown(
                steered_sites(concepts),
                multiselect=True,
                label="Only at these layers",
                info="none chosen: wherever the concept steers",
                elem_id="sites",
            )
            self.branch = gr.Radio(
                BRANCHES, value="conditional", label="Rows of guidance that are steered", elem_id="rows"
            )
            self.combine = gr.Radio(COMBINE, value="sum", label="Several concepts at one place", elem_id="combine")

    @property
    def inputs(self) -> set[Any]:
        """The components that `order_fields` reads."""
        return {self.steps, self.guidance, self.kind, self.first, self.last, self.branch, self.combine, self.sites}

    def wire(self) -> None:
        """Have the schedule drawn as it is chosen."""
        ends = [self.first, self.last]
        self.kind.input(self.schedule_ends, self.kind, [*ends, self.schedule], **QUICK)
        gr.on([end.change for end in ends], self.schedule_drawn, [self.kind, *ends], self.schedule, **QUICK)

    def order_fields(self, data: Mapping[Any, Any], usual: Settings) -> dict[str, Any]:
        """What the components ask for, as fields of an `Order`.

        Raises:
            DSASError: a number or a schedule that makes no sense.
        """
        steps, guidance = number(data[self.steps], "steps"), number(data[self.guidance], "guidance")
        kind, first, last = data[self.kind], data[self.first], data[self.last]
        return {
            "settings": replace(usual, steps=int(steps), guidance=guidance),
            "branch": data[self.branch],
            "combine": data[self.combine],
            "schedule": None if kind == "constant" else schedule_of(kind, first, last),
            "sites": tuple(data[self.sites] or ()),
        }

    def schedule_ends(self, kind: str) -> tuple[Any, ...]:
        """The two numbers that a kind of schedule takes, named and with what they begin at."""
        if kind == "constant":
            return gr.update(visible=False), gr.update(visible=False), markup.drawn_schedule(Schedule.constant(1.0))
        window = kind == "window"
        first, last = (800.0, 200.0) if window else (0.0, 1.0)
        names = ("from timestep", "to timestep") if window else ("factor at noise", "factor at the end")
        ends = [gr.update(visible=True, value=v, label=n) for v, n in zip((first, last), names, strict=True)]
        return *ends, markup.drawn_schedule(schedule_of(kind, first, last))

    def schedule_drawn(self, kind: str, first: float | None, last: float | None) -> str:
        """The schedule as a line, or what is wrong with it."""
        try:
            return markup.drawn_schedule(schedule_of(kind, first, last))
        except DSASError as error:
            return markup.note(str(error), "warned")


def schedule_of(kind: str, first: float | None, last: float | None) -> Schedule:
    """A schedule of one kind from its two numbers.

    Raises:
        DSASError: a number is missing, or they make no schedule.
    """
    if first is None or last is None:
        raise DSASError("the schedule needs two numbers")
    makers = {"window": Schedule.between, "linear": Schedule.linear, "cosine": Schedule.cosine}
    return makers[kind](first, last) if kind in makers else Schedule.constant(1.0)
