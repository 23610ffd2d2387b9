"""The picture without and with steering, side by side or under a slider, and what is said of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from ..page import controls, markup
from ..page.session import Session, report_errors
from ..services.drawing import Drawing
from ..services.picture_files import settings_in
from ..services.picture_service import PictureService

SIDE_BY_SIDE, SLIDER = "side by side", "under a slider"


class Canvas:
    """Components and handlers, created within the page's layout.

    Pictures and their explanation change together; what went wrong is said in a line of its own.

    Args:
        service: what draws.
    """

    def __init__(self, service: PictureService) -> None:
        self.service = service
        with gr.Row(elem_id="pair") as self.pair:
            layout: dict[str, Any] = {"min_width": 120, **controls.PICTURE}
            self.base = gr.Image(label="unsteered", type="pil", elem_id="base", **layout)
            self.steered = gr.Image(label="steered", type="pil", elem_id="steered", **layout)
        layout = {"slider_position": 25, "max_height": 560, "visible": False, **controls.PICTURE}
        self.compare = gr.ImageSlider(label="unsteered | steered", type="pil", elem_id="compare", **layout)
        self.problem = gr.HTML("", elem_id="problem")
        self.explain = gr.HTML(markup.render_drawing(None), elem_id="explain")
        shown: dict[str, Any] = {"container": False, "show_label": False, "elem_id": "view"}
        layout = {"columns": 4, "height": None, "object_fit": "contain", "allow_preview": False, "visible": False}
        label = "all of these: choose one to see it beside its unsteered picture"
        self.batch = gr.Gallery(label=label, elem_id="batch", **layout, **controls.PICTURE)
        self.view = gr.Radio([SIDE_BY_SIDE, SLIDER], value=SIDE_BY_SIDE, label="Pictures", **shown)

    @property
    def outputs(self) -> list[Any]:
        """The components that `show` fills."""
        return [self.base, self.steered, self.compare, self.problem, self.explain]

    def wire(self, session: gr.State) -> None:
        """Have the choice of a view change it."""
        outputs = [self.pair, self.base, self.steered, self.compare]
        self.view.input(report_errors(self.switch), [session, self.view], outputs, **controls.QUICK)

    def show(self, drawing: Drawing | None, view: str, problem: str = "") -> tuple[Any, ...]:
        """Updates of `outputs` with a drawing, None for no picture; `problem` is HTML about what was asked for last."""
        return *self._pictures(drawing, view), problem, markup.render_drawing(drawing)

    def switch(self, session: Session, view: str) -> tuple[Any, ...]:
        """Updates of the two views, of which one is shown."""
        base, steered, compare = self._pictures(session.drawing, view)
        under = gr.update(visible=view == SLIDER) if compare == gr.skip() else gr.update(visible=True, value=compare)
        return gr.update(visible=view != SLIDER), base, steered, under

    def show_batch(self, drawings: Sequence[Drawing]) -> Any:
        """An update of the pictures that were drawn at once, where there are several."""
        pictures = [(it.steered or it.base, it) for it in drawings] if len(drawings) > 1 else []
        shown = [
            (controls.as_shown(picture, settings_in(it, self.service, steered=True)), f"seed {it.order.seed}")
            for picture, it in pictures
        ]
        return gr.update(value=shown, visible=bool(shown))

    def _pictures(self, drawing: Drawing | None, view: str) -> tuple[Any, ...]:
        """Values of the two pictures and of the slider, of which only those are sent that are seen."""
        pictures: list[Any] = [None, None]
        if drawing is not None:
            both = (drawing.base, False), (drawing.steered or drawing.base, drawing.steered is not None)
            pictures = [
                controls.as_shown(picture, settings_in(drawing, self.service, steered=steered))
                for picture, steered in both
            ]
        if view == SLIDER:
            return gr.skip(), gr.skip(), None if drawing is None else tuple(pictures)
        return *pictures, gr.skip()
