"""A visitor's own concepts, beside what learned them: their evidence and samples; downloaded, saved, pushed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from dsas_core.concept import Concept
from dsas_core.errors import DSASError

from . import look
from .controls import names, one_line
from .files import saved, zipped
from .session import Session, friendly
from .studio import Studio


class OwnConcepts:
    """Components and handlers, made within the page's layout.

    Args:
        studio: whose model they are for. session: the visitor's state. saves: the folder in which visitors may save.
    """

    def __init__(self, studio: Studio, session: gr.State, saves: Path | None = None) -> None:
        self.studio, self.session, self.saves = studio, session, saves
        self._show()
        with gr.Column(visible=False, elem_id="learn-take") as self.take:
            self._take()
        self._wire()

    @property
    def parts(self) -> list[Any]:
        """The components that `shown` fills."""
        return [self.picture, self.evidence, self.which, self.take, self.zip]

    def _show(self) -> None:
        self.picture = gr.Image(
            label="before and after",
            show_label=False,
            format="png",
            interactive=False,
            visible=False,
            elem_id="learn-picture",
            buttons=["download", "fullscreen"],
        )
        self.evidence = gr.HTML("", elem_id="learn-evidence")

    def _take(self) -> None:
        self.which = gr.Dropdown([], label="Your concepts", elem_id="learn-which")
        with gr.Row():
            self.zip = gr.DownloadButton("Download (zip)", interactive=False, size="sm", elem_id="learn-zip")
            if self.saves is not None:
                self.save = gr.Button("Save where this runs", size="sm", elem_id="learn-save")
        with gr.Accordion("Push to the Hugging Face Hub", open=False):
            self.repository = one_line("Repository (user/name)", "", "learn-repository", 200)
            self.token = gr.Textbox(
                label="Token that may write there",
                info="used once and forgotten: it is neither kept nor logged",
                type="password",
                max_length=200,
                elem_id="learn-token",
            )
            self.private = gr.Checkbox(True, label="Private, if it is new", elem_id="learn-private")
            self.push = gr.Button("Push", size="sm", elem_id="learn-push")
        self.taken = gr.HTML("", elem_id="learn-taken")

    def _wire(self) -> None:
        own: dict[str, Any] = {"api_visibility": "private"}
        self.which.input(
            friendly(self.choose), [self.session, self.which], [self.zip, self.evidence, self.picture], **own
        )
        if self.saves is not None:
            self.save.click(friendly(self.keep), [self.session, self.which], self.taken, **own)
        self.push.click(
            friendly(self.publish),
            [self.session, self.which, self.repository, self.token, self.private],
            [self.taken, self.token],
            **own,
        )

    def shown(self, session: Session, name: str) -> tuple[Any, ...]:
        """Picture, evidence, choice, frame and zip file of one of them, for `parts`."""
        concept = self._own(session, name)
        strip = concept.samples.strip if concept.samples is not None else b""
        packed = self.studio.file(f"{concept.name}.zip", zipped(concept))
        return (
            gr.update(value=Image.open(io.BytesIO(strip)) if strip else None, visible=bool(strip)),
            look.evidence(concept),
            names(list(session.own), name),
            gr.update(visible=True),
            gr.update(value=packed, interactive=True),
        )

    def choose(self, session: Session, name: str | None) -> tuple[Any, ...]:
        """Another of the visitor's concepts: its zip file, evidence and picture."""
        picture, evidence, _, _, packed = self.shown(session, str(name))
        return packed, evidence, picture

    def keep(self, session: Session, name: str | None) -> str:
        """Save a concept where the server was told to."""
        concept = self._own(session, name)
        if self.saves is None:
            raise DSASError("nothing can be saved here: download the concept")
        return look.note(f"Saved as {saved(concept, self.saves)}.", "done")

    def publish(
        self, session: Session, name: str | None, repository: str, token: str, private: bool
    ) -> tuple[str, str]:
        """Push a concept to the Hub; what became of it, and an empty field in the token's place, always."""
        token = (token or "").strip()
        try:
            address = self._published(session, name, (repository or "").strip(), token, private)
        except Exception as error:  # the Hub's libraries raise many kinds, and may quote what they were given
            told = str(error) or type(error).__name__
            return look.note(f"Not pushed: {_brief(without(told, token))}", "warned"), ""
        return look.note(f"Pushed: {without(address, token)}", "done"), ""

    def _published(self, session: Session, name: str | None, repository: str, token: str, private: bool) -> str:
        from huggingface_hub.utils import HFValidationError, validate_repo_id

        concept = self._own(session, name)
        try:
            validate_repo_id(repository)
        except HFValidationError:
            repository = ""
        if repository.count("/") != 1:
            raise DSASError("expected a repository as user/name, of letters, digits, '.', '_' and '-'")
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise DSASError("expected a token that may write to the repository: make one at huggingface.co, settings")
        return concept.push_to_hub(repository, token=token, private=bool(private))

    def _own(self, session: Session, name: str | None) -> Concept:
        if name not in session.own:
            raise DSASError("choose one of your concepts first")
        return session.own[name]


def without(text: str, secret: str) -> str:
    """A text in which a secret is not to be read."""
    return text.replace(secret, "…") if secret else text


def _brief(text: str) -> str:
    return " ".join(text.split())[:300]
