"""`dsas app`: serve the demo, a page with a slider for each concept."""

from __future__ import annotations

import argparse
import signal
import threading
from pathlib import Path
from typing import Any

from dsas_core import llm
from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError, UnavailableError, UnsupportedError

from ..arguments import open_language_model, open_pipeline


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Serve until the process is interrupted or terminated.

    Returns:
        Where the demo was, and its model.
    """
    has_text = args.text_model != "none"
    if llm.is_language_model(args.model):
        args.usage(f"{args.model} is a language model: the demo draws; name a diffusers pipeline")
    if not has_text and args.text_concepts:
        args.usage("--text-concepts needs a --text-model")
    if has_text and not llm.is_language_model(args.text_model):
        raise UnsupportedError(f"{args.text_model} is no language model: name one, or pass --text-model none")
    try:
        from ... import ui
        from ...ui.services.chat_service import ChatService
        from ...ui.services.concepts import load_shipped
        from ...ui.services.picture_service import PictureService
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise UnavailableError("the demo needs Gradio: pip install 'dsas-diffusion[demo]'") from None
    picture_concepts, text_concepts = (
        load_shipped(model) if sources is None else [Concept.from_pretrained(source) for source in sources]
        for model, sources in ((args.model, args.concepts), (args.text_model, args.text_concepts))
    )
    pictures = PictureService(open_pipeline(args), args.model, picture_concepts)
    chat = None
    if has_text:
        chat = ChatService(*open_language_model(args, args.text_model), args.text_model, text_concepts)
    page = ui.build(pictures, chat, None if args.saves is None else Path(args.saves))
    try:
        try:
            _, address, public = ui.serve(page, args.host, args.port, share=args.share)
        except OSError as error:
            place = f"{args.host or 'the usual address'}, port {args.port or '7860 or one of the next hundred'}"
            raise DSASError(
                f"cannot serve at {place}: it is taken, or not ours; choose another --port or --host"
            ) from error
        if not args.json:
            print(f"serving at {address}{f' and {public}' if public else ''}; Ctrl-C ends it", flush=True)
        _wait_for_signal()
    finally:
        page.close(verbose=False)
        if chat is not None:
            chat.close()
        pictures.close()
    return {"address": address, "public": public, "model": args.model}


def report(document: dict[str, Any]) -> None:
    """Print that it has ended."""
    print(f"no longer serving {document['model']}")


def _wait_for_signal() -> None:
    """Return when the process is interrupted or terminated."""
    stopped = threading.Event()
    handlers = {number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        stopped.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
