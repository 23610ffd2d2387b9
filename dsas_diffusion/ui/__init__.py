"""The demo: a page with a slider for each concept. `dsas app`, `make app`, `python app.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from .page import markup
from .page.session import FORGOTTEN, Session
from .page.theme import STYLE, theme
from .services.chat_service import ChatService
from .services.picture_service import PictureService
from .tabs.create import CreateTab
from .tabs.learn import LearnTab
from .tabs.strip import StripTab
from .tabs.text import TextTab
from .tabs.where import WhereTab

#: visitors that may wait; one more is asked to come back
WAITING = 32
#: visitors whose concepts and last pictures are kept; beyond, those go first who have been away the longest
REMEMBERED = 256
#: bytes of one upload
MOST_UPLOADED = 64 * 2**20


def build(studio: PictureService, talk: ChatService | None = None, saves: Path | None = None) -> gr.Blocks:
    """The page over a studio, and over a language model where there is one; not served yet.

    Args:
        saves: a folder in which visitors may save what they learn; None for nowhere.
    """
    with gr.Blocks(title="DSAS: concept sliders", analytics_enabled=False, delete_cache=(600, FORGOTTEN)) as page:
        session = gr.State(Session(), time_to_live=FORGOTTEN)
        gr.HTML(markup.HEADING, elem_id="heading")
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Create", id="create"):
                create = CreateTab(studio, session)
            with gr.Tab("Where it steered", id="where"):
                WhereTab(session, create.draw_events)
            with gr.Tab("Strip", id="strip"):
                strip = StripTab(create)
            with gr.Tab("Learn", id="learn"):
                learn = LearnTab(create, strip, saves)
            if talk is not None:
                with gr.Tab("Text", id="text"):
                    TextTab(talk, session)
        page.unload(learn.cancel)
    return page.queue(max_size=WAITING, api_open=False)


def serve(page: gr.Blocks, host: str | None, port: int | None, *, share: bool = False) -> Any:
    """Serve a page, in threads of its own, until it is closed.

    Args:
        host, port: where; None for what GRADIO_SERVER_NAME and GRADIO_SERVER_PORT say, else 127.0.0.1 and the first
            free port from 7860 on. share: through Gradio's tunnel, too.

    Returns:
        (application, local address, public address or None).
    """
    return page.launch(
        server_name=host,
        server_port=port,
        share=share,
        prevent_thread_lock=True,
        theme=theme(),
        css_paths=STYLE,
        footer_links=["settings"],
        max_file_size=MOST_UPLOADED,
        state_session_capacity=REMEMBERED,
        show_error=False,
        quiet=True,
        ssr_mode=False,
        pwa=False,
        enable_monitoring=False,
        mcp_server=False,
    )
