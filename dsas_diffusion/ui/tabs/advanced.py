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
from ..page.controls import QUICK, read_number
from ..services.drawing import MAX_STEPS
from ..services.picture_service import steered_sites

SCHEDULES = {"the same at every step": "constant", "window": "window", "straight line": "linear", "cosine": "cosine"}


#: what the two numbers of a schedule are
LABELS = {
    "window": ("from timestep", "to timestep"),
    **dict.fromkeys(("linear", "cosine"), ("factor at noise", "factor at the end")),
}


class AdvancedSettings:
    """Components and handlers, created within the page's layout.

    Args:
        defaults: steps and guidance to begin with.
        concepts: those whose layers can be chosen.
    """

    def __init__(self, defaults: Settings, concepts: Sequence[Concept]) -> None:
        with gr.Accordion("Advanced", open=False):
            self.steps = gr.Slider(1, MAX_STEPS, defaults.steps, step=1, label="Denoising steps", elem_id="steps")
            self.guidance = gr.Slider(0, 20, defaults.guidance, step=0.5, label="Guidance scale", elem_id="guidance")
            kinds, label = list(SCHEDULES.items()), "Strength over the steps"
            self.kind = gr.Dropdown(kinds, value="constant", label=label, elem_id="schedule-kind")
            with gr.Row():
                self.first = gr.Number(1.0, label="factor at noise", visible=False, elem_id="schedule-first")
                self.last = gr.Number(1.0, label="factor at the end", visible=False, elem_id="schedule-last")
            self.schedule = gr.HTML(markup.render_schedule(Schedule.constant(1.0)), elem_id="schedule")
            sites, label, info = (
                steered_sites(concepts),
                "Only at these layers",
                "none chosen: wherever the concept steers",
            )
            self.sites = gr.Dropdown(sites, multiselect=True, label=label, info=info, elem_id="sites")
            label = "Rows of guidance that are steered"
            self.branch = gr.Radio(BRANCHES, value="conditional", label=label, elem_id="rows")
            self.combine = gr.Radio(COMBINE, value="sum", label="Several concepts at one place", elem_id="combine")

    @property
    def held(self) -> list[Any]:
        """The components that `order_fields` reads."""
        return [self.steps, self.guidance, self.kind, self.first, self.last, self.branch, self.combine, self.sites]

    def wire(self) -> None:
        """Have the schedule drawn when it is changed."""
        ends = [self.first, self.last]
        self.kind.input(self.reset_ends, self.kind, [*ends, self.schedule], **QUICK)
        gr.on([end.change for end in ends], self.draw_schedule, [self.kind, *ends], self.schedule, **QUICK)

    def order_fields(self, data: Mapping[Any, Any], defaults: Settings) -> dict[str, Any]:
        """What the components ask for, as arguments of `Order`.

        Args:
            data: what components hold.
            defaults: for the settings that have no component.

        Raises:
            DSASError: a number or a schedule that makes no sense.
        """
        steps, guidance = read_number(data[self.steps], "steps"), read_number(data[self.guidance], "guidance")
        kind, first, last = data[self.kind], data[self.first], data[self.last]
        return {
            "settings": replace(defaults, steps=int(steps), guidance=guidance),
            "branch": data[self.branch],
            "combine": data[self.combine],
            "schedule": None if kind == "constant" else make_schedule(kind, first, last),
            "sites": tuple(data[self.sites] or ()),
        }

    def reset_ends(self, kind: str) -> tuple[Any, ...]:
        """Updates of the two numbers of a schedule and of its picture, for a kind that was chosen."""
        if kind == "constant":
            return gr.update(visible=False), gr.update(visible=False), markup.render_schedule(Schedule.constant(1.0))
        ends = (800.0, 200.0) if kind == "window" else (0.0, 1.0)
        updates = [gr.update(visible=True, value=value, label=x) for x, value in zip(LABELS[kind], ends, strict=True)]
        return *updates, markup.render_schedule(make_schedule(kind, *ends))

    def reveal(self, values: Mapping[Any, Any]) -> list[Any]:
        """Updates of components to these values; the two numbers of a schedule are shown where it has them."""
        kind = values[self.kind]
        ends = dict(zip((self.first, self.last), LABELS.get(kind, ("", "")), strict=True))
        return [
            gr.update(value=value, visible=kind != "constant", label=ends[part]) if part in ends else value
            for part, value in values.items()
        ]

    def draw_schedule(self, kind: str, first: float | None, last: float | None) -> str:
        """The schedule as a line, or what is wrong with its numbers."""
        try:
            return markup.render_schedule(make_schedule(kind, first, last))
        except DSASError as error:
            return markup.render_note(str(error), "warned")


def make_schedule(kind: str, first: float | None, last: float | None) -> Schedule:
    """A schedule of one kind from its two numbers.

    Raises:
        DSASError: a number is missing, or they make no schedule.
    """
    if first is None or last is None:
        raise DSASError("the schedule needs two numbers")
    makers = {"window": Schedule.between, "linear": Schedule.linear, "cosine": Schedule.cosine}
    return makers[kind](first, last) if kind in makers else Schedule.constant(1.0)
