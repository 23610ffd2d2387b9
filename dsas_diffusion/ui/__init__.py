"""The demo: a page with a slider for each concept. `dsas app`, `make app`, `python app.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from .page import markup
from .page.controls import PRIVATE, QUICK
from .page.session import SESSION_SECONDS, Session
from .page.theme import SCRIPT, STYLE_SHEET, theme
from .server.guard import middleware_of
from .server.page import Page
from .services.chat_service import ChatService
from .services.picture_service import PictureService
from .tabs.create import CreateTab
from .tabs.history import HistoryTab
from .tabs.learn import LearnTab
from .tabs.strip import StripTab
from .tabs.text import TextTab
from .tabs.where import WhereTab

#: visitors that may wait; one more is asked to come back
MAX_WAITING = 32
#: visitors whose sessions are kept; beyond, those that were away the longest go first
MAX_SESSIONS = 256
#: bytes of one upload
MAX_UPLOAD_BYTES = 64 * 2**20


def build(service: PictureService, chat: ChatService | None = None, saves: Path | None = None) -> Page:
    """The page, not served yet.

    Args:
        service: what draws.
        chat: what the tab Text writes with; None for no such tab.
        saves: a folder in which visitors may save what they learn; None for nowhere.
    """
    with Page(title="DSAS: concept sliders", analytics_enabled=False, delete_cache=(600, SESSION_SECONDS)) as page:
        session = gr.State(Session(), time_to_live=SESSION_SECONDS)
        # a fixed secret: it outlives the server, and hides from nobody what is the visitor's own
        kept = gr.BrowserState([], storage_key="dsas-concepts", secret="dsas-concepts")
        gr.HTML(markup.HEADING, elem_id="heading")
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Create", id="create"):
                create = CreateTab(service, session)
            with gr.Tab("Where", id="where") as where:
                WhereTab(create, where)
            with gr.Tab("Strip", id="strip"):
                strip = StripTab(create)
            with gr.Tab("History", id="history") as history:
                HistoryTab(create, tabs, history)
            with gr.Tab("Learn", id="learn"):
                learn = LearnTab(create, strip, kept, saves)
            if chat is not None:
                with gr.Tab("Text", id="text"):
                    TextTab(chat, session)
        page.load(None, None, None, js=SCRIPT.read_text(encoding="utf-8"), **PRIVATE)
        loaded = page.load(*create.at_load, **QUICK)
        learn.bring_back(loaded.then)
        page.unload(learn.cancel)
    page.queue(max_size=MAX_WAITING, api_open=False)
    return page


def serve(page: Page, host: str | None, port: int | None, *, share: bool = False) -> Any:
    """Serve a page, in threads of its own, until it is closed.

    Args:
        page: from `build`.
        host: None for what GRADIO_SERVER_NAME says, else 127.0.0.1.
        port: None for what GRADIO_SERVER_PORT says, else the first free one from 7860 on.
        share: through Gradio's tunnel, too.

    Returns:
        (application, local address, public address or None).

    Raises:
        OSError: the port is taken, or the address is not this machine's.
    """
    return page.launch(
        server_name=host,
        server_port=port,
        share=share,
        prevent_thread_lock=True,
        theme=theme(),
        css_paths=STYLE_SHEET,
        app_kwargs={"middleware": middleware_of(page, host, share=share)},
        footer_links=["settings"],
        max_file_size=MAX_UPLOAD_BYTES,
        state_session_capacity=MAX_SESSIONS,
        show_error=False,
        quiet=True,
        ssr_mode=False,
        pwa=False,
        enable_monitoring=False,
        mcp_server=False,
    )
