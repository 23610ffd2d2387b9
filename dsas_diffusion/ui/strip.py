"""The tab that draws a concept from its low to its high end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import gradio as gr
import numpy as np

from dsas_core.errors import DSASError

from . import look
from .controls import names, number, shown
from .create import CreateTab
from .session import Session, friendly, toast
from .studio import ends_of

MOST_PICTURES = 11


class StripTab:
    """Components and handlers of the tab. It draws what the first tab asks for, with one slider moved."""

    def __init__(self, create: CreateTab) -> None:
        self.create, self.studio = create, create.studio
        known = list(self.studio.concepts)
        gr.Markdown("The prompt, seed and settings of the first tab, with one concept from its low to its high end.")
        with gr.Row(equal_height=True):
            self.concept = gr.Dropdown(known, value=next(iter(known), None), label="Concept", elem_id="strip-concept")
            self.count = gr.Slider(3, MOST_PICTURES, 7, step=1, label="Pictures", elem_id="strip-count")
            self.button = gr.Button("Draw the strip", variant="primary", elem_id="strip-draw")
        self.told = gr.HTML("", elem_id="strip-told")
        self.gallery = gr.Gallery(
            label="strengths",
            columns=7,
            height=None,
            object_fit="contain",
            format="png",
            interactive=False,
            elem_id="strip-gallery",
            buttons=["download", "fullscreen"],
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
                self.strip = gr.DownloadButton("Download the strip (PNG)", interactive=False, elem_id="strip-png")
                self.webp = gr.DownloadButton("Download the animation (WebP)", interactive=False, elem_id="strip-webp")
                self.gif = gr.DownloadButton("Download the animation (GIF)", interactive=False, elem_id="strip-gif")
        self.button.click(
            friendly(self.draw),
            {*create.asked, self.concept, self.count},
            [self.told, self.gallery, self.moving, self.strip, self.webp, self.gif],
            concurrency_id="pipe",
            concurrency_limit=1,
            api_visibility="private",
            show_progress_on=self.gallery,
        )

    def draw(self, data: Mapping[Any, Any], progress: Any = gr.Progress()) -> tuple[Any, ...]:  # noqa: B008
        """The strip, its animation, and both as files."""
        try:
            return self._drawn(data, progress)
        except DSASError as error:
            toast(error)
            return look.note(str(error), "warned"), *(gr.skip() for _ in range(5))

    def _drawn(self, data: Mapping[Any, Any], progress: Any) -> tuple[Any, ...]:
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
        webp = self.studio.file(f"{concept.name}.webp", strip.animated(".webp"))
        return (
            look.note(f"{concept.name} from {low:g} to {high:g}: “{strip.prompt}”"),
            [(shown(picture), caption) for picture, caption in zip(strip.pictures, captions, strict=True)],
            webp,
            gr.update(value=self.studio.file(f"{concept.name}-strip.png", strip.as_png()), interactive=True),
            gr.update(value=webp, interactive=True),
            gr.update(value=self.studio.file(f"{concept.name}.gif", strip.animated(".gif")), interactive=True),
        )

    def slots(self, session: Session, now: str | None) -> Any:
        """The concepts to choose from, as a visitor has them now."""
        return names(list(session.concepts(self.studio)), now)
