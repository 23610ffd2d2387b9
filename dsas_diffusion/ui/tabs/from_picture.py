"""A place to drop a picture that was drawn here or by `dsas generate`: its settings come back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from ..page import controls, markup
from ..page.session import Session, report_errors
from ..services.picture_files import read_brought
from ..services.picture_service import PictureService
from .advanced import AdvancedSettings


class FromPicture:
    """Components and handlers, created within the page's layout.

    Args:
        service: what draws.
        session: the visitor's state.
        held: the components that a picture depends on: prompt, sliders, what is kept, gate, seed, and
        advanced: settings.
    """

    def __init__(
        self, service: PictureService, session: gr.State, held: Sequence[Any], advanced: AdvancedSettings
    ) -> None:
        self.service, self.held, self.advanced = service, held, advanced
        with gr.Accordion("Settings from a picture", open=False, elem_id="bring-picture"):
            gr.Markdown("A PNG that was downloaded here, or drawn by `dsas generate`, has its settings in it.")
            file: dict[str, Any] = {"file_types": [".png"], "height": 120, "show_label": False}
            self.file = gr.File(label="a PNG with settings", elem_id="picture-file", **file)
            self.message = gr.HTML("", elem_id="picture-told")
        outputs = [self.file, self.message, *held]
        self.file.upload(report_errors(self.take), [session, self.file], outputs, **controls.PRIVATE)

    def take(self, session: Session, path: str | None) -> tuple[Any, ...]:
        """Updates of the components to a picture's settings, and a line on what could not be set."""
        concepts = session.concepts(self.service)
        brought = read_brought(path, self.service, concepts)
        made, notes = brought.made, controls.Notes(brought.notes)
        prompt, *sliders, keep, gate, seed = self.held[: -len(self.advanced.held)]
        values = {prompt: made.prompt, **dict.fromkeys(sliders, 0.0)}
        for slider, concept in zip(sliders, concepts.values(), strict=False):
            low, high = (controls.slider_settings(concept)[end] for end in ("minimum", "maximum"))
            strength = brought.strengths.get(concept.name, 0.0)
            values[slider] = notes.clamp(f"strength of {concept.name}", strength, low, high)
        values |= {keep: made.preserve is not False, gate: brought.gate}
        values |= {seed: int(notes.clamp("seed", made.noise_seed, 0, controls.MAX_SEED))}
        values |= self.advanced.values_of(made, notes)
        updates = self.advanced.reveal({part: values[part] for part in self.held})
        told = "The picture's settings are back: press “Draw”. " + " ".join(f"{note}." for note in notes)
        return None, markup.render_note(told, "warned" if notes else "done"), *updates
