"""A visitor's own concepts on the tab Learn: evidence, samples, and what can be done with them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError

from ..page import markup
from ..page.controls import PICTURE, PRIVATE, update_choices
from ..page.session import Session, report_errors
from ..services.picture_service import PictureService
from .export import Export


class MyConceptsTab:
    """Components and handlers, created within the page's layout.

    Args:
        service: whose model the concepts are for.
        session: the visitor's state.
        saves: the folder in which visitors may save; None for none.
    """

    def __init__(self, service: PictureService, session: gr.State, saves: Path | None = None) -> None:
        hidden: dict[str, Any] = {"show_label": False, "visible": False}
        self.picture = gr.Image(label="before and after", elem_id="learn-picture", **hidden, **PICTURE)
        self.evidence = gr.HTML("", elem_id="learn-evidence")
        with gr.Column(visible=False, elem_id="learn-take") as self.frame:
            self.which = gr.Dropdown([], label="Your concepts", elem_id="learn-which")
            self.export = Export(service, saves, self._concept)
            self.forget_button = gr.Button("Forget it", size="sm", variant="stop", elem_id="learn-forget")
        self.kept_told = gr.HTML("", elem_id="learn-kept")
        outputs = [self.export.zip, self.evidence, self.picture]
        self.which.input(report_errors(self.choose), [session, self.which], outputs, **PRIVATE)
        self.export.wire(session, self.which)

    @property
    def parts(self) -> list[Any]:
        """The components that `updates` fills."""
        return [self.picture, self.evidence, self.which, self.frame, self.export.zip]

    def forgets(self, session: gr.State) -> Any:
        """The event of the button that takes a concept out of the visitor's own."""
        click = self.forget_button.click
        return click(report_errors(self.forget), [session, self.which], [session, *self.parts], **PRIVATE)

    def forget(self, session: Session, name: str | None) -> tuple[Any, ...]:
        """Updates of `parts` without a concept."""
        del session.my_concepts[self._concept(session, name).name]
        return session, *self.updates(session, next(iter(session.my_concepts), None))

    def updates(self, session: Session, name: str | None) -> tuple[Any, ...]:
        """Updates of `parts` for one concept; None where there is none."""
        if name is None:
            gone = gr.update(value=None, visible=False)
            return gone, "", update_choices((), None), gr.update(visible=False), gr.update(value=None)
        concept = self._concept(session, name)
        picture = _picture_of(concept)
        return (
            gr.update(value=picture, visible=picture is not None),
            markup.render_evidence(concept),
            update_choices(session.my_concepts, name),
            gr.update(visible=True),
            self.export.download(concept),
        )

    def choose(self, session: Session, name: str | None) -> tuple[Any, ...]:
        """Updates of zip file, evidence and picture for another concept."""
        picture, evidence, _, _, download = self.updates(session, str(name))
        return download, evidence, picture

    @staticmethod
    def _concept(session: Session, name: str | None) -> Concept:
        if name not in session.my_concepts:
            raise DSASError("choose one of your concepts first")
        return session.my_concepts[name]


def _picture_of(concept: Concept) -> Image.Image | None:
    """Its samples; None where it has none, or brought a picture that cannot be shown."""
    if concept.samples is None or not concept.samples.strip:
        return None
    try:
        picture = Image.open(io.BytesIO(concept.samples.strip))
        picture.load()
    except (OSError, SyntaxError, ValueError):
        return None
    return picture
