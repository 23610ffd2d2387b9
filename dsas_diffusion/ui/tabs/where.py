"""The tab that shows where gates opened in the last picture: over the picture, and by layer and timestep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
from PIL import Image

from dsas_core.errors import DSASError

from ...pipelines.sites import site_name
from ...steering.trace import PictureTrace
from ..page import markup
from ..page.controls import PICTURE, SILENT, as_shown, update_choices
from ..page.session import Session, report_errors

ALL_LAYERS = "all layers"
NOTHING = "Draw a picture with a slider off 0, then come back: here is where its gates opened."
NOT_SEEN = "The concept is not seen in this picture, so nothing was steered: the rest of the picture is kept."
TRACE_GONE = "Others have drawn much since: draw the picture again to see where its gates opened."


class WhereTab:
    """Components and handlers of the tab.

    Args:
        session: the visitor's state.
        draw_events: the events after which there is another picture.
    """

    def __init__(self, session: gr.State, draw_events: Sequence[Any]) -> None:
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                self.concept = gr.Dropdown([], label="Concept", elem_id="where-concept")
                self.site = gr.Dropdown([ALL_LAYERS], value=ALL_LAYERS, label="Layer", elem_id="where-site")
                self.step = gr.Slider(0, 1, 0, step=1, label="Step", info="0: the mean of all", elem_id="where-step")
                self.message = gr.HTML(markup.render_note(NOTHING), elem_id="where-told")
            with gr.Column(scale=6, min_width=300):
                label = "bright where h is 1, dark where it is 0"
                self.picture = gr.Image(label=label, elem_id="where-picture", **PICTURE)
        self.steps = gr.HTML(markup.render_steps({}), elem_id="where-map")
        self._wire(session, draw_events)

    def _wire(self, session: gr.State, draw_events: Sequence[Any]) -> None:
        choices, heatmap = [self.concept, self.site, self.step], [self.picture, self.message]
        inputs, outputs = [session, self.concept], [*choices, *heatmap, self.steps]
        for event in draw_events:
            event.success(report_errors(self.follow), inputs, outputs, **SILENT)
        self.concept.input(report_errors(self.begin), inputs, outputs, **SILENT)
        changed, inputs = [self.site.input, self.step.input], [session, *choices]
        gr.on(changed, report_errors(self.show_heatmap), inputs, heatmap, trigger_mode="always_last", **SILENT)

    def follow(self, session: Session, concept: str | None) -> tuple[Any, ...]:
        """Updates of all outputs, where there is another picture than before."""
        if session.drawing is session.shown_drawing:
            return tuple(gr.skip() for _ in range(6))
        session.shown_drawing = session.drawing
        return self.begin(session, concept)

    def begin(self, session: Session, concept: str | None) -> tuple[Any, ...]:
        """Updates of all outputs, for the last picture and one of its concepts."""
        drawing = session.drawing
        trace = drawing.trace if drawing is not None and drawing.trace is not None else PictureTrace()
        names = [gate.concept for gate in drawing.gates] if drawing is not None and trace.records else []
        chosen = concept if concept in names else next(iter(names), "")
        layers = dict.fromkeys([ALL_LAYERS, *(site_name(site) for site in trace.patch_sites(chosen))])
        return (
            update_choices(names, chosen),
            gr.update(choices=list(layers), value=ALL_LAYERS),
            gr.update(maximum=max(1, len(timesteps(trace, chosen))), value=0),
            *self.show_heatmap(session, chosen, ALL_LAYERS, 0),
            markup.render_steps(trace.by_step(chosen)),
        )

    def show_heatmap(
        self, session: Session, concept: str | None, layer: str, step: float
    ) -> tuple[Image.Image | None, str]:
        """One concept's h over the picture, at one layer or all and at one step or all, and a line that says so."""
        drawing = session.drawing
        if drawing is not None and drawing.area == 0:
            return None, markup.render_note(NOT_SEEN)
        if drawing is None or drawing.trace is None or not concept or drawing.steered is None:
            return None, markup.render_note(NOTHING)
        if not drawing.trace.records:
            return None, markup.render_note(TRACE_GONE)
        times = timesteps(drawing.trace, concept)
        time = None if step < 1 or not times else times[min(int(step), len(times)) - 1]
        site = next((str(s) for s in drawing.trace.patch_sites(concept) if site_name(s) == layer), None)
        try:
            picture = drawing.trace.heatmap(concept, drawing.steered, site=site, at=time)
        except DSASError:
            message = f"{concept} reads words alone, so it has no place in the picture; the table has its layers."
            return None, markup.render_note(message)
        when = "the mean of all steps" if time is None else f"step {int(step)} of {len(times)}, timestep {time:.0f}"
        return as_shown(picture), markup.render_note(f"{concept}, {layer}, {when}: “{drawing.order.prompt}”")


def timesteps(trace: PictureTrace, concept: str) -> list[float]:
    """The timesteps at which a concept's gate was read, in their order."""
    return list(dict.fromkeys(r.timestep for r in trace.select(concept) if r.timestep is not None))
