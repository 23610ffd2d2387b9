"""The settings of a picture that few people need: steps, guidance, the schedule, where and how concepts steer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError, quote
from dsas_core.steering.steering import COMBINE

from ...drawing.picture_settings import PictureSettings
from ...generation.settings import Settings, settings_of
from ...pipelines.adapter import PipelineAdapter
from ...pipelines.batch_layout import BRANCHES
from ...steering.schedule import Schedule
from ..page import markup
from ..page.controls import QUICK, Notes, read_number
from ..services.drawing import MAX_CHARACTERS, MAX_STEPS
from ..services.picture_service import steered_sites

MAX_GUIDANCE = 20
#: largest side of a picture, as a multiple of what the model draws by itself
MAX_ENLARGEMENT = 4
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
        adapter: of the pipeline, which says what sizes it draws.
    """

    def __init__(self, defaults: Settings, concepts: Sequence[Concept], adapter: PipelineAdapter) -> None:
        self.adapter = adapter
        with gr.Accordion("Advanced", open=False):
            takes, usual, multiple = (
                "negative_prompt" in adapter.call_parameters,
                adapter.usual_size,
                adapter.size_multiple,
            )
            field: dict[str, Any] = {"max_length": MAX_CHARACTERS, "max_lines": 2, "visible": takes}
            self.negative = gr.Textbox("", label="Negative prompt", elem_id="negative", **field)
            with gr.Row():
                side: dict[str, Any] = {
                    "precision": 0,
                    "step": multiple,
                    "visible": usual is not None,
                    "min_width": 100,
                }
                side |= {"minimum": multiple, "maximum": MAX_ENLARGEMENT * (usual or multiple)}
                self.width = gr.Number(usual, label="Width", elem_id="width", **side)
                self.height = gr.Number(usual, label="Height", elem_id="height", **side)
            self.steps = gr.Slider(1, MAX_STEPS, defaults.steps, step=1, label="Denoising steps", elem_id="steps")
            self.guidance = gr.Slider(
                0, MAX_GUIDANCE, defaults.guidance, step=0.5, label="Guidance scale", elem_id="guidance"
            )
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
        texts_and_size = [self.negative, self.width, self.height]
        how = [self.kind, self.first, self.last, self.branch, self.combine, self.sites]
        return [*texts_and_size, self.steps, self.guidance, *how]

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
        size = self._size(data) if defaults.size is None else defaults.size
        return {
            "settings": replace(settings_of(self.adapter, int(steps), guidance, size), scheduler=defaults.scheduler),
            "negative": (data[self.negative] or "").strip() or None,
            "branch": data[self.branch],
            "combine": data[self.combine],
            "schedule": None if kind == "constant" else make_schedule(kind, first, last),
            "sites": tuple(data[self.sites] or ()),
        }

    def _size(self, data: Mapping[Any, Any]) -> tuple[int, int] | None:
        """The size that the components ask for; None for the usual one."""
        usual = self.adapter.usual_size
        if usual is None:
            return None
        width, height = (int(read_number(data[side], "size")) for side in (self.width, self.height))
        return None if width == height == usual else (width, height)

    def values_of(self, made: PictureSettings, notes: Notes) -> dict[Any, Any]:
        """Component -> value, for a picture's settings; what these components cannot ask for is noted."""
        usual, settings = self.adapter.usual_size, made.settings
        width, height = settings.sides or (usual, usual)
        kind, first, last = "constant", 1.0, 1.0
        if made.how.schedule is not None:
            found = _schedule_of(Schedule(made.how.schedule))
            if found is None:
                notes.append("its schedule is not one of those on this page: strengths are the same at every step")
            else:
                kind, first, last = found
        if settings.scheduler is not None:
            notes.append(f"its scheduler {quote(settings.scheduler)} is not on this page")
        return {
            self.negative: made.negative_prompt or "",
            self.width: width,
            self.height: height,
            self.steps: int(notes.clamp("steps", settings.steps, 1, MAX_STEPS)),
            self.guidance: notes.clamp("guidance", settings.guidance, 0, MAX_GUIDANCE),
            self.kind: kind,
            self.first: first,
            self.last: last,
            self.branch: made.how.rows,
            self.combine: made.how.combine,
            self.sites: [],
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


def _schedule_of(schedule: Schedule) -> tuple[str, float, float] | None:
    """Kind and numbers that make a schedule; None where the page makes none like it."""
    times, factors = zip(*schedule.points, strict=True)
    for kind, first, last in (("linear", factors[-1], factors[0]), ("cosine", factors[-1], factors[0])):
        if make_schedule(kind, first, last).points == schedule.points:
            return kind, first, last
    for first in times:
        for last in times:
            if first > last and Schedule.between(first, last).points == schedule.points:
                return "window", first, last
    return None


def make_schedule(kind: str, first: float | None, last: float | None) -> Schedule:
    """A schedule of one kind from its two numbers.

    Raises:
        DSASError: a number is missing, or they make no schedule.
    """
    if first is None or last is None:
        raise DSASError("the schedule needs two numbers")
    makers = {"window": Schedule.between, "linear": Schedule.linear, "cosine": Schedule.cosine}
    return makers[kind](first, last) if kind in makers else Schedule.constant(1.0)
