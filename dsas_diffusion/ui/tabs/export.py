"""What visitors can do with their concepts: download a zip file, save where the page runs, push to the Hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError, UnsupportedError

from ..page import markup
from ..page.controls import PRIVATE, line_field
from ..page.session import Session, report_errors
from ..services.picture_service import PictureService
from ..services.uploads import save_concept, zip_concept


class Export:
    """Components and handlers, created within the page's layout.

    Args:
        service: writes files to download.
        saves: the folder in which visitors may save; None for none.
        find: returns the visitor's concept of a name.
    """

    def __init__(
        self, service: PictureService, saves: Path | None, find: Callable[[Session, str | None], Concept]
    ) -> None:
        self.service, self.saves, self.find = service, saves, find
        with gr.Row():
            self.zip = gr.DownloadButton("Download (zip)", interactive=False, size="sm", elem_id="learn-zip")
            if self.saves is not None:
                self.save = gr.Button("Save where this runs", size="sm", elem_id="learn-save")
        with gr.Accordion("Push to the Hugging Face Hub", open=False):
            self.repository = line_field("Repository (user/name)", "", "learn-repository", 200)
            info = "used once and forgotten: it is neither kept nor logged"
            secret: dict[str, Any] = {"type": "password", "max_length": 200, "elem_id": "learn-token"}
            self.token = gr.Textbox(label="Token that may write there", info=info, **secret)
            self.private = gr.Checkbox(True, label="Private, if it is new", elem_id="learn-private")
            self.push = gr.Button("Push", size="sm", elem_id="learn-push")
        self.message = gr.HTML("", elem_id="learn-taken")

    def wire(self, session: gr.State, which: gr.Dropdown) -> None:
        """Have the buttons act on the concept that `which` names."""
        if self.saves is not None:
            self.save.click(report_errors(self.save_to_server), [session, which], self.message, **PRIVATE)
        publishing = [session, which, self.repository, self.token, self.private]
        self.push.click(report_errors(self.publish), publishing, [self.message, self.token], **PRIVATE)

    def download(self, concept: Concept) -> Any:
        """An update of `zip` with the concept's zip file."""
        path = self.service.write_download(f"{concept.name}.zip", zip_concept(concept))
        return gr.update(value=path, interactive=True)

    def save_to_server(self, session: Session, name: str | None) -> str:
        """Save a concept in the server's folder; a line that says so."""
        concept = self.find(session, name)
        if self.saves is None:
            raise UnsupportedError("nothing can be saved here: download the concept")
        return markup.render_note(f"Saved as {save_concept(concept, self.saves)}.", "done")

    def publish(
        self, session: Session, name: str | None, repository: str, token: str, private: bool
    ) -> tuple[str, str]:
        """Push a concept to the Hub; a line that says what happened, and an empty text in the token's place, always."""
        token = (token or "").strip()
        try:
            address = _push(self.find(session, name), (repository or "").strip(), token, private)
        except Exception as error:  # the Hub's libraries raise many kinds, and may quote what they were given
            reason = " ".join(_redact(str(error) or type(error).__name__, token).split())[:300]
            return markup.render_note(f"Not pushed: {reason}", "warned"), ""
        return markup.render_note(f"Pushed: {_redact(address, token)}", "done"), ""


def _push(concept: Concept, repository: str, token: str, private: bool) -> str:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError:
        repository = ""
    if repository.count("/") != 1:
        raise DSASError("expected a repository as user/name, of letters, digits, '.', '_' and '-'")
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise DSASError("expected a token that may write to the repository: make one at huggingface.co, settings")
    return concept.push_to_hub(repository, token=token, private=bool(private))


def _redact(text: str, secret: str) -> str:
    """The text with "…" for a secret in it."""
    return text.replace(secret, "…") if secret else text
