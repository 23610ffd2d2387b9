"""The part of the tab Strip that draws a grid: strengths by seeds, for one concept or several."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any

import gradio as gr
from PIL import Image

from dsas_core.errors import DSASError, quote

from ..page import controls, markup
from ..page.session import Session, report_errors, warn
from ..services.grid import MAX_CELLS, draw_grid, encode_grid
from .create import CreateTab

MAX_LETTERS = 400


class GridForm:
    """Components and handlers, created within the page's layout.

    Args:
        create: the tab whose prompt and settings are drawn.
    """

    def __init__(self, create: CreateTab) -> None:
        self.create, self.service = create, create.service
        with gr.Accordion("A grid: strengths × seeds × concepts", open=False, elem_id="grid-form"):
            gr.Markdown(f"One concept at a time, the others off; {MAX_CELLS} pictures at most.")
            with gr.Row():
                text: dict[str, Any] = {"max_lines": 1, "max_length": MAX_LETTERS, "min_width": 160}
                label = "Strengths (columns)"
                self.strengths = gr.Textbox("0, 0.5, 1", label=label, elem_id="grid-strengths", **text)
                self.seeds = gr.Textbox("7, 8, 9", label="Seeds (rows)", elem_id="grid-seeds", **text)
                many: dict[str, Any] = {"multiselect": True, "elem_id": "grid-concepts", "min_width": 200}
                names = list(self.service.concepts)
                self.concepts = gr.Dropdown(names, value=names[:1], label="Concepts (blocks)", **many)
            self.button = gr.Button("Draw the grid", elem_id="grid-draw")
            self.problem = gr.HTML("", elem_id="grid-problem")
            self.sheet = gr.Image(label="grid", elem_id="grid-sheet", **controls.PICTURE)
            self.file = gr.DownloadButton("Download the grid (PNG)", interactive=False, size="sm", elem_id="grid-file")
        inputs = {*create.inputs, self.strengths, self.seeds, self.concepts}
        queue = controls.queue_settings("pipe", self.sheet)
        self.button.click(report_errors(self.draw), inputs, [self.problem, self.sheet, self.file], **queue)

    def draw(self, data: Mapping[Any, Any], progress: Any = gr.Progress()) -> tuple[Any, ...]:  # noqa: B008
        """Updates with the sheet and its file; after an error the last sheet stays, with a line on the error."""
        try:
            return "", *self._updates(data, progress)
        except DSASError as error:
            warn(error)
            return markup.render_note(str(error), "warned"), gr.skip(), gr.skip()

    def _updates(self, data: Mapping[Any, Any], progress: Any) -> tuple[Any, ...]:
        session: Session = data[self.create.session]
        known = session.concepts(self.service)
        missing = [name for name in data[self.concepts] or () if name not in known]
        if missing:
            raise DSASError(f"the concept {quote(missing[0])} is not here: choose others")
        concepts = [known[name] for name in data[self.concepts] or ()]
        strengths = read_list(data[self.strengths], "strengths")
        seeds = [controls.read_seed(seed) for seed in read_list(data[self.seeds], "seeds")]
        order = self.create.order(data)
        grid = draw_grid(
            self.service,
            order,
            concepts,
            strengths,
            seeds,
            lambda done, total: progress((done, total), unit="pictures"),
        )
        content = encode_grid(grid)
        path = self.service.write_download("grid.png", content)
        return Image.open(io.BytesIO(content)).convert("RGB"), gr.update(value=path, interactive=True)

    def slots(self, session: Session, chosen: list[str] | None) -> Any:
        """An update of the concepts to choose from, for those that a visitor has."""
        names = list(session.concepts(self.service))
        return gr.update(choices=names, value=[name for name in chosen or () if name in names])


def read_list(text: str | None, what: str) -> list[float]:
    """The numbers in a text, between commas or blanks.

    Raises:
        DSASError: something in it is no number, or it is too long.

    Example:
        >>> read_list("0, 0.5 1", "strengths")
        [0.0, 0.5, 1.0]
    """
    if len(text or "") > MAX_LETTERS:
        raise DSASError(f"{what}: {len(text or '')} letters, at most {MAX_LETTERS} are taken")
    parts = list(filter(None, re.split(r"[,;\s]+", text or "")))
    try:
        return [controls.read_number(float(part), what) for part in parts]
    except ValueError:
        raise DSASError(f"{what} {quote(text)}: expected numbers, as 0, 0.5, 1") from None
