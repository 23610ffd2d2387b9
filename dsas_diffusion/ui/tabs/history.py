"""The tab with the pictures that were drawn since the page was opened; a click brings one back, with its settings."""

from __future__ import annotations

from typing import Any

import gradio as gr

from dsas_core.errors import DSASError

from ..page import controls, markup
from ..page.session import MAX_HISTORY, Session, report_errors
from ..services.drawing import Drawing
from .create import CreateTab

NOTHING = "Nothing was drawn yet: each picture that you draw on the first tab comes here."
HOW = f"The last {MAX_HISTORY} pictures that you drew, the newest first: choose one, and its settings are back."


class HistoryTab:
    """Components and handlers of the tab.

    Args:
        create: the tab that draws.
        tabs: all tabs, of which the first is gone back to.
        tab: this one.
    """

    def __init__(self, create: CreateTab, tabs: gr.Tabs, tab: gr.Tab) -> None:
        self.create = create
        self.message = gr.HTML(markup.render_note(NOTHING), elem_id="history-told")
        layout: dict[str, Any] = {"columns": 4, "height": None, "object_fit": "contain", "allow_preview": False}
        self.gallery = gr.Gallery(label="steered", elem_id="history", **layout, **controls.PICTURE)
        tab.select(report_errors(self.show), create.session, [self.message, self.gallery], **controls.QUICK)
        outputs = [create.session, tabs, *create.canvas.outputs, *create.held]
        inputs = [create.session, create.canvas.view]
        self.gallery.select(report_errors(self.go_back), inputs, outputs, **controls.QUICK)

    def show(self, session: Session) -> tuple[str, list[Any]]:
        """The pictures with what they are of."""
        drawings = [past.drawing for past in session.history]
        pictures = [(controls.as_shown(it.steered or it.base), describe(it)) for it in drawings]
        return markup.render_note(HOW if pictures else NOTHING), pictures

    def go_back(self, session: Session, view: str, chosen: gr.SelectData) -> tuple[Any, ...]:
        """Updates for the picture that was chosen."""
        if not 0 <= chosen.index < len(session.history):
            raise DSASError("this picture is no longer kept: draw it again")
        updates = self.create.restore(session, session.history[chosen.index], view)
        return session, gr.update(selected="create"), *updates


def describe(drawing: Drawing) -> str:
    """Seed, strengths and prompt of a drawing, on one line."""
    order = drawing.order
    strengths = [f"{name} {strength:g}" for name, strength in order.strengths.items() if strength]
    return " · ".join([f"seed {order.seed}", *(strengths or ["unsteered"]), order.prompt])
