"""The tab that draws a concept from its low to its high end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import gradio as gr
import numpy as np

from dsas_core.errors import DSASError

from ..page import markup
from ..page.controls import PICTURE, as_shown, concept_choice, queue_settings, read_number, update_choices
from ..page.session import Session, report_errors, warn
from ..services.picture_service import slider_ends
from .create import CreateTab
from .grid import GridForm

MAX_PICTURES = 11
DOWNLOADS = {"png": "the strip (PNG)", "webp": "the animation (WebP)", "gif": "the animation (GIF)"}


class StripTab:
    """Components and handlers of the tab.

    Args:
        create: the tab whose prompt, seed and settings are drawn, with one slider moved.
    """

    def __init__(self, create: CreateTab) -> None:
        self.create, self.service = create, create.service
        gr.Markdown("The prompt, seed and settings of the first tab, with one concept from its low to its high end.")
        with gr.Row(equal_height=True):
            self.concept = concept_choice(self.service.concepts, "Concept", "strip-concept")
            self.count = gr.Slider(3, MAX_PICTURES, 7, step=1, label="Pictures", elem_id="strip-count")
            self.button = gr.Button("Draw the strip", variant="primary", elem_id="strip-draw")
        self.problem, self.message = gr.HTML("", elem_id="strip-problem"), gr.HTML("", elem_id="strip-told")
        layout: dict[str, Any] = {"columns": 7, "height": None, "object_fit": "contain"}
        self.gallery = gr.Gallery(label="strengths", elem_id="strip-gallery", **layout, **PICTURE)
        with gr.Row():
            file: dict[str, Any] = {"type": "filepath", "interactive": False, "buttons": [], "height": 320}
            self.animation = gr.Image(label="forth and back", elem_id="strip-moving", **file)
            with gr.Column():
                self.downloads = [
                    gr.DownloadButton(f"Download {what}", interactive=False, elem_id=f"strip-{kind}")
                    for kind, what in DOWNLOADS.items()
                ]
        self.grid = GridForm(create)
        inputs = {*create.inputs, self.concept, self.count}
        outputs = [self.problem, self.message, self.gallery, self.animation, *self.downloads]
        self.button.click(report_errors(self.draw), inputs, outputs, **queue_settings("pipe", self.gallery))

    def draw(self, data: Mapping[Any, Any], progress: Any = gr.Progress()) -> tuple[Any, ...]:  # noqa: B008
        """Updates with the strip, its animation, and both as files; after an error the strip stays, with its line."""
        try:
            return "", *self._updates(data, progress)
        except DSASError as error:
            warn(error)
            return markup.render_note(str(error), "warned"), *(gr.skip() for _ in range(6))

    def _updates(self, data: Mapping[Any, Any], progress: Any) -> tuple[Any, ...]:
        session: Session = data[self.create.session]
        concepts = session.concepts(self.service)
        if data[self.concept] not in concepts:
            raise DSASError("choose a concept first")
        concept = concepts[data[self.concept]]
        low, high = slider_ends(concept)
        strengths = np.linspace(low, high, int(read_number(data[self.count], "pictures"))).round(2)
        strengths[np.abs(strengths).argmin()] = 0.0  # the unsteered picture is always there
        order = replace(self.create.order(data), strengths={})
        strip = self.service.strip(
            order, concept, strengths.tolist(), lambda count: progress((count, len(strengths)), unit="pictures")
        )
        captions = [f"{strength:+g}" if strength else "0: off" for strength in strip.strengths]
        write, name = self.service.write_download, concept.name
        png = write(f"{name}-strip.png", strip.as_png())
        webp, gif = (write(f"{name}{suffix}", strip.animated(suffix)) for suffix in (".webp", ".gif"))
        told = f"{name} from {low:g} to {high:g}: “{strip.prompt}”"
        if self.service.find_unplaced(order, [concept]):
            told += ". It has no place in the picture, so the rest was not kept."
        return (
            markup.render_note(told),
            [(as_shown(picture), caption) for picture, caption in zip(strip.pictures, captions, strict=True)],
            webp,
            *(gr.update(value=file, interactive=True) for file in (png, webp, gif)),
        )

    @property
    def choices(self) -> list[Any]:
        """The components that `slots` reads and fills."""
        return [self.concept, self.grid.concepts]

    def slots(self, session: Session, chosen: str | None, of_grid: list[str] | None = None) -> tuple[Any, ...]:
        """Updates of the concepts to choose from, for those that a visitor has."""
        return update_choices(session.concepts(self.service), chosen), self.grid.slots(session, of_grid)
