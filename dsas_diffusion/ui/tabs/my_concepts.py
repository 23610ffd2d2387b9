"""A visitor's own concepts, beside what learned them: their evidence and samples."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError

from ..page import markup
from ..page.controls import PICTURE, PRIVATE, names
from ..page.session import Session, report_errors
from ..services.picture_service import PictureService
from .export import Export


class MyConceptsTab:
    """Components and handlers, made within the page's layout.

    Args:
        studio: whose model they are for. session: the visitor's state. saves: the folder in which visitors may save.
    """

    def __init__(self, studio: PictureService, session: gr.State, saves: Path | None = None) -> None:
        self.picture = gr.Image(
            label="before and after", show_label=False, visible=False, elem_id="learn-picture", **PICTURE
        )
        self.evidence = gr.HTML("", elem_id="learn-evidence")
        with gr.Column(visible=False, elem_id="learn-take") as self.frame:
            self.which = gr.Dropdown([], label="Your concepts", elem_id="learn-which")
            self.export = Export(studio, saves, self._own)
        outputs = [self.export.zip, self.evidence, self.picture]
        self.which.input(report_errors(self.choose), [session, self.which], outputs, **PRIVATE)
        self.export.wire(session, self.which)

    @property
    def parts(self) -> list[Any]:
        """The components that `updates` fills."""
        return [self.picture, self.evidence, self.which, self.frame, self.export.zip]

    def updates(self, session: Session, name: str) -> tuple[Any, ...]:
        """Picture, evidence, choice, frame and zip file of one of them, for `parts`."""
        concept = self._own(session, name)
        strip = concept.samples.strip if concept.samples is not None else b""
        return (
            gr.update(value=Image.open(io.BytesIO(strip)) if strip else None, visible=bool(strip)),
            markup.evidence(concept),
            names(list(session.own), name),
            gr.update(visible=True),
            self.export.download(concept),
        )

    def choose(self, session: Session, name: str | None) -> tuple[Any, ...]:
        """Another of the visitor's concepts: its zip file, evidence and picture."""
        picture, evidence, _, _, download = self.updates(session, str(name))
        return download, evidence, picture

    @staticmethod
    def _own(session: Session, name: str | None) -> Concept:
        if name not in session.own:
            raise DSASError("choose one of your concepts first")
        return session.own[name]
