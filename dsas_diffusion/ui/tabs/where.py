"""The tab that shows where gates opened in the last picture: over the picture, and by layer and timestep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
from PIL import Image

from dsas_core.errors import DSASError

from ...pipelines.sites import site_name
from ..page import markup
from ..page.controls import PICTURE, PRIVATE, enlarge, names
from ..page.session import Session, report_errors
from ..services.drawing import Drawing

EVERYWHERE = "all layers"
NOTHING = "Draw a picture with a slider off 0, then come back: here is where its gates opened."
GONE = "Others have drawn much since: draw the picture again to see where its gates opened."


class WhereTab:
    """Components and handlers of the tab; `draw_events` are those after which there is another picture."""

    def __init__(self, session: gr.State, draw_events: Sequence[Any]) -> None:
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                self.concept = gr.Dropdown([], label="Concept", elem_id="where-concept")
                self.site = gr.Dropdown([EVERYWHERE], value=EVERYWHERE, label="Layer", elem_id="where-site")
                self.step = gr.Slider(0, 1, 0, step=1, label="Step", info="0: the mean of all", elem_id="where-step")
                self.message = gr.HTML(markup.note(NOTHING), elem_id="where-told")
            with gr.Column(scale=6, min_width=300):
                self.picture = gr.Image(
                    label="bright where h is 1, dark where it is 0", elem_id="where-picture", **PICTURE
                )
        self.map = gr.HTML(markup.steps_map({}), elem_id="where-map")
        self._wire(session, draw_events)

    def _wire(self, session: gr.State, draw_events: Sequence[Any]) -> None:
        quiet = {"show_progress": "hidden", **PRIVATE}
        which, heat = [self.concept, self.site, self.step], [self.picture, self.message]
        for event in draw_events:
            event.success(report_errors(self.follow), [session, self.concept], [*which, *heat, self.map], **quiet)
        self.concept.input(report_errors(self.begin), [session, self.concept], [*which, *heat, self.map], **quiet)
        changed = [self.site.input, self.step.input]
        gr.on(changed, report_errors(self.look), [session, *which], heat, trigger_mode="always_last", **quiet)

    def follow(self, session: Session, concept: str | None) -> tuple[Any, ...]:
        """Everything anew, where there is another picture than before."""
        if session.drawing is session.looked_at:
            return tuple(gr.skip() for _ in range(6))
        session.looked_at = session.drawing
        return self.begin(session, concept)

    def begin(self, session: Session, concept: str | None) -> tuple[Any, ...]:
        """Everything anew, for the last picture."""
        drawing = session.drawing
        if drawing is None or drawing.trace is None or not drawing.trace.records:
            return (
                names([], None),
                gr.update(choices=[EVERYWHERE], value=EVERYWHERE),
                gr.update(maximum=1, value=0),
                None,
                markup.note(NOTHING),
                markup.steps_map({}),
            )
        steered = [gate.concept for gate in drawing.gates]
        chosen = concept if concept in steered else steered[0]
        layers = [EVERYWHERE, *(site_name(site) for site in drawing.trace.patch_sites(chosen))]
        return (
            names(steered, chosen),
            gr.update(choices=list(dict.fromkeys(layers)), value=EVERYWHERE),
            gr.update(maximum=max(1, len(times(drawing, chosen))), value=0),
            *self.look(session, chosen, EVERYWHERE, 0),
            markup.steps_map(drawing.trace.by_step(chosen)),
        )

    def look(self, session: Session, concept: str | None, site: str, step: float) -> tuple[Image.Image | None, str]:
        """The heat of one concept, at one layer or all, at one step or all; and what it is of."""
        drawing = session.drawing
        if drawing is None or drawing.trace is None or concept is None or drawing.steered is None:
            return None, markup.note(NOTHING)
        if not drawing.trace.records:
            return None, markup.note(GONE)
        steps = times(drawing, concept)
        at = None if step < 1 or not steps else steps[min(int(step), len(steps)) - 1]
        where = next((str(s) for s in drawing.trace.patch_sites(concept) if site_name(s) == site), None)
        try:
            picture = drawing.trace.heatmap(concept, drawing.steered, site=where, at=at)
        except DSASError:
            message = f"{concept} reads words alone, so it has no place in the picture; the table has its layers."
            return None, markup.note(message)
        when = "the mean of all steps" if at is None else f"step {int(step)} of {len(steps)}, timestep {at:.0f}"
        return enlarge(picture), markup.note(f"{concept}, {site}, {when}: “{drawing.order.prompt}”")


def times(drawing: Drawing, concept: str) -> list[float]:
    """Timesteps of a drawing, in their order."""
    assert drawing.trace is not None
    return list(dict.fromkeys(r.timestep for r in drawing.trace.select(concept) if r.timestep is not None))
