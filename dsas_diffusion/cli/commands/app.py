"""`dsas app`: serve the demo, a page with a slider for each concept."""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsas_core import llm
from dsas_core.concept.builtin import shipped
from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError, UnavailableError, UnsupportedError

from ..argument_types import positive
from ..arguments import CONCEPT, add_model, language_model, pipeline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """With which model and concepts, and where to serve."""
    add_model(parser)
    parser.add_argument(
        "--concepts",
        "-c",
        nargs="*",
        metavar="FOLDER",
        help=f"what everybody has a slider for: each {CONCEPT} (default: those that ship for the model)",
    )
    parser.add_argument(
        "--text-model",
        default="builtin:chat",
        metavar="MODEL",
        help="language model of the tab Text: builtin:chat (default), a folder, a Hub name, or none for no such tab",
    )
    parser.add_argument(
        "--text-concepts",
        nargs="*",
        metavar="FOLDER",
        help=f"its concepts: each {CONCEPT} (default: those that ship for it)",
    )
    parser.add_argument(
        "--saves", type=Path, metavar="FOLDER", help="let visitors save what they learn there (default: they cannot)"
    )
    parser.add_argument(
        "--host", help="address to serve at (default: what GRADIO_SERVER_NAME says, else 127.0.0.1; 0.0.0.0 is all)"
    )
    parser.add_argument("--port", type=positive, metavar="N", help="port (default: the first free one from 7860 on)")
    parser.add_argument("--share", action="store_true", help="also through Gradio's tunnel, for 72 hours")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Serve until the process is told to end; where it was."""
    if llm.is_language_model(args.model):
        args.usage(f"{args.model} is a language model: the demo draws; name a diffusers pipeline")
    if args.text_model == "none" and args.text_concepts:
        args.usage("--text-concepts needs a --text-model")
    if args.text_model != "none" and not llm.is_language_model(args.text_model):
        raise UnsupportedError(f"{args.text_model} is no language model: name one, or pass --text-model none")
    picture_concepts = _concepts(args.concepts, args.model)
    text_concepts = _concepts(args.text_concepts, args.text_model)
    try:
        from ... import ui
        from ...ui.services.chat_service import ChatService
        from ...ui.services.picture_service import PictureService
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise UnavailableError("the demo needs Gradio: pip install 'dsas-diffusion[demo]'") from None
    studio = PictureService(pipeline(args), args.model, picture_concepts)
    talk = None
    if args.text_model != "none":
        talk = ChatService(*language_model(args, args.text_model), args.text_model, text_concepts)
    page = ui.build(studio, talk, args.saves)
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
        if talk is not None:
            talk.close()
        studio.close()
    return {"address": address, "public": public, "model": args.model}


def report(document: dict[str, Any]) -> None:
    """That it has ended."""
    print(f"no longer serving {document['model']}")


def _concepts(named: Sequence[str] | None, model: str) -> list[Concept]:
    """The concepts that were named, or those that ship for the model."""
    names = [concept.name for concept in shipped(model)] if named is None else named
    return [Concept.from_pretrained(name) for name in names]


def _wait_for_signal() -> None:
    """Return when the process is interrupted or told to end."""
    ended = threading.Event()
    handlers = {number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ended.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
