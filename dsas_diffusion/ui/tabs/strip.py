"""The tab that draws a concept from its low to its high end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import gradio as gr
import numpy as np

from dsas_core.errors import DSASError

from ..page import markup
from ..page.controls import PICTURE, concept_choice, enlarge, names, number, one_at_a_time
from ..page.session import Session, report_errors, warn
from ..services.picture_service import ends_of
from .create import CreateTab

MOST_PICTURES = 11
DOWNLOADS = {
    "png": "the strip (PNG)",
    "webp": "the animation (WebP)",
    "gif": "the animation (GIF)",
}


class StripTab:
    """Components and handlers of the tab. It draws what the first tab asks for, with one slider moved."""

    def __init__(self, create: CreateTab) -> None:
        self.create, self.studio = create, create.studio
        gr.Markdown("The prompt, seed and settings of the first tab, with one concept from its low to its high end.")
        with gr.Row(equal_height=True):
            self.concept = concept_choice(self.studio.concepts, "Concept", "strip-concept")
            self.count = gr.Slider(3, MOST_PICTURES, 7, step=1, label="Pictures", elem_id="strip-count")
            self.button = gr.Button("Draw the strip", variant="primary", elem_id="strip-draw")
        self.message = gr.HTML("", elem_id="strip-told")
        self.gallery = gr.Gallery(
            label="strengths", columns=7, height=None, object_fit="contain", elem_id="strip-gallery", **PICTURE
        )
        with gr.Row():
            self.moving = gr.Image(
                label="forth and back",
                type="filepath",
                interactive=False,
                buttons=[],
                elem_id="strip-moving",
                height=320,
            )
            with gr.Column():
                self.downloads = [
                    gr.DownloadButton(f"Download {what}", interactive=False, elem_id=f"strip-{kind}")
                    for kind, what in DOWNLOADS.items()
                ]
        self.button.click(
            report_errors(self.draw),
            {*create.inputs, self.concept, self.count},
            [self.message, self.gallery, self.moving, *self.downloads],
            **one_at_a_time("pipe", self.gallery),
        )

    def draw(self, data: Mapping[Any, Any], progress: Any = gr.Progress()) -> tuple[Any, ...]:  # noqa: B008
        """The strip, its animation, and both as files."""
        try:
            return self._updates(data, progress)
        except DSASError as error:
            warn(error)
            return markup.note(str(error), "warned"), *(gr.skip() for _ in range(5))

    def _updates(self, data: Mapping[Any, Any], progress: Any) -> tuple[Any, ...]:
        session: Session = data[self.create.session]
        concepts = session.concepts(self.studio)
        if data[self.concept] not in concepts:
            raise DSASError("choose a concept first")
        concept = concepts[data[self.concept]]
        low, high = ends_of(concept)
        strengths = np.linspace(low, high, int(number(data[self.count], "pictures"))).round(2)
        strengths[np.abs(strengths).argmin()] = 0.0  # off is always shown
        order = replace(self.create.order(data), strengths={})
        strip = self.studio.strip(
            order, concept, strengths.tolist(), lambda done: progress((done, len(strengths)), unit="pictures")
        )
        captions = [f"{strength:+g}" if strength else "0: off" for strength in strip.strengths]
        png = self.studio.file(f"{concept.name}-strip.png", strip.as_png())
        webp, gif = (self.studio.file(f"{concept.name}{kind}", strip.animated(kind)) for kind in (".webp", ".gif"))
        return (
            markup.note(f"{concept.name} from {low:g} to {high:g}: “{strip.prompt}”"),
            [(enlarge(picture), caption) for picture, caption in zip(strip.pictures, captions, strict=True)],
            webp,
            *(gr.update(value=file, interactive=True) for file in (png, webp, gif)),
        )

    def slots(self, session: Session, now: str | None) -> Any:
        """The concepts to choose from, as a visitor has them now."""
        return names(list(session.concepts(self.studio)), now)
