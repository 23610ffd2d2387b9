"""The tab that shows where concepts are seen in the unsteered picture, and where the steered one differs from it."""

from __future__ import annotations

from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from dsas_core.errors import DSASError

from ...generation.strips import overlay
from ...pipelines.sites import site_name
from ...steering.trace import PictureTrace
from ..page import markup
from ..page.controls import PICTURE, as_shown, queue_settings, update_choices
from ..page.session import Session, report_errors
from ..services.drawing import Drawing
from .create import CreateTab

ALL_LAYERS = "all layers"
#: a difference of the largest of three channels, of 255, that is shown as bright as any
BRIGHT = 64
NOTHING = "Draw a picture with a slider off 0, then come back."
UNCHANGED = "Nowhere: both pictures are the same, bit for bit."


class WhereTab:
    """Components and handlers of the tab.

    What probes read, and what became of it, are different things: a gate may open where nothing changes, and steered
    words change the whole drawing.

    Args:
        create: the tab that draws.
        tab: this one; it is filled when it is looked at.
    """

    def __init__(self, create: CreateTab, tab: gr.Tab) -> None:
        self.create, self.service = create, create.service
        with gr.Row():
            self.concept = gr.Dropdown([], label="Concept", elem_id="where-concept", min_width=160)
            self.site = gr.Dropdown([ALL_LAYERS], value=ALL_LAYERS, label="Layer", elem_id="where-site", min_width=160)
            self.step = gr.Slider(0, 1, 0, step=1, label="Step (0: the mean of all)", elem_id="where-step")
        with gr.Row(elem_id="where-pair"):
            with gr.Column(min_width=240):
                label = "Where it is seen, without steering"
                self.seen = gr.Image(label=label, elem_id="where-seen", **PICTURE)
                self.seen_told = gr.HTML(markup.render_note(NOTHING), elem_id="where-seen-told")
            with gr.Column(min_width=240):
                self.steered = gr.Image(label="Where it steered", elem_id="where-steered", **PICTURE)
                self.steered_told = gr.HTML(markup.render_note(NOTHING), elem_id="where-steered-told")
        self.steps = gr.HTML(markup.render_steps({}), elem_id="where-map")
        choices, seen = [self.concept, self.site, self.step], [self.seen, self.seen_told]
        inputs = [create.session, self.concept]
        outputs = [*choices, *seen, self.steered, self.steered_told, self.steps]
        queue = {**queue_settings("pipe", self.seen), "show_progress": "minimal"}
        tab.select(report_errors(self.begin), inputs, outputs, **queue)
        self.concept.input(report_errors(self.begin), inputs, outputs, **queue)
        changed, inputs = [self.site.input, self.step.input], [create.session, *choices]
        gr.on(changed, report_errors(self.show_seen), inputs, seen, trigger_mode="always_last", **queue)

    def begin(self, session: Session, concept: str | None) -> tuple[Any, ...]:
        """Updates of all outputs, for the picture that is shown and one of its concepts."""
        drawing = session.drawing
        names = [] if drawing is None else [name for name, strength in drawing.order.strengths.items() if strength]
        chosen = concept if concept in names else next(iter(names), "")
        trace = self._trace(session, chosen)
        layers = dict.fromkeys([ALL_LAYERS, *(site_name(site) for site in trace.patch_sites(chosen))])
        return (
            update_choices(names, chosen),
            gr.update(choices=list(layers), value=ALL_LAYERS),
            gr.update(maximum=max(1, len(timesteps(trace, chosen))), value=0),
            *self.show_seen(session, chosen, ALL_LAYERS, 0),
            *show_steered(drawing),
            markup.render_steps(trace.by_step(chosen)),
        )

    def show_seen(
        self, session: Session, concept: str | None, layer: str, step: float
    ) -> tuple[Image.Image | None, str]:
        """One concept's h over the unsteered picture, at one layer or all and at one step or all, and a line on it."""
        drawing = session.drawing
        if drawing is None or not concept:
            return None, markup.render_note(NOTHING)
        trace = self._trace(session, concept)
        times = timesteps(trace, concept)
        time = None if step < 1 or not times else times[min(int(step), len(times)) - 1]
        site = next((str(s) for s in trace.patch_sites(concept) if site_name(s) == layer), None)
        try:
            picture = trace.heatmap(concept, drawing.base, site=site, at=time)
        except DSASError:
            message = f"{concept} reads words alone, so it has no place in the picture; the table has its layers."
            return None, markup.render_note(message)
        when = (
            "the mean of all steps"
            if time is None
            else f"step {int(step)} of the {len(times)} that are read, timestep {time:.0f}"
        )
        told = f"{concept}, {layer}, {when}: bright where h is 1, dark where it is 0."
        if drawing.area == 0:
            told += " Nowhere for sure: what is bright is too small or too weak to be one."
        return as_shown(picture), markup.render_note(told)

    def _trace(self, session: Session, concept: str | None) -> PictureTrace:
        """What the concept's probes read without steering; nothing where there is no picture or no such concept."""
        found = session.concepts(self.service).get(concept or "")
        if session.drawing is None or found is None:
            return PictureTrace()
        return self.service.read_unsteered(session.drawing.order, found)


def show_steered(drawing: Drawing | None) -> tuple[Image.Image | None, str]:
    """How far each pixel was changed, over the unsteered picture, and a line on it."""
    if drawing is None or drawing.steered is None:
        return None, markup.render_note(NOTHING)
    change = pixel_change(drawing.base, drawing.steered)
    if not change.any():
        return as_shown(drawing.base), markup.render_note(UNCHANGED)
    share, together = float((change > 1).mean()), len([s for s in drawing.order.strengths.values() if s]) > 1
    told = f"{'All concepts together: ' * together}pixels that changed, bright from {BRIGHT} of 255 on; "
    told += f"{100 * share:.0f} % of the picture changed by more than 1."
    return as_shown(overlay(drawing.base, np.minimum(1.0, change / BRIGHT))), markup.render_note(told)


def pixel_change(before: Image.Image, after: Image.Image) -> np.ndarray:
    """By how much each pixel changed, in the channel that changed most, float32 [height, width], 0 to 255.

    Example:
        >>> pixel_change(Image.new("RGB", (1, 1), (0, 5, 9)), Image.new("RGB", (1, 1), (0, 8, 9))).tolist()
        [[3.0]]
    """
    one, other = (np.asarray(picture.convert("RGB"), np.float32) for picture in (before, after))
    return np.abs(one - other).max(-1)


def timesteps(trace: PictureTrace, concept: str) -> list[float]:
    """The timesteps at which a concept's probes read patches, in their order; some read late steps alone."""
    sites, records = trace.patch_sites(concept), trace.select(concept)
    return list(dict.fromkeys(r.timestep for r in records if r.site in sites and r.timestep is not None))
