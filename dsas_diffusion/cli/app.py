"""`dsas app`: serve the demo, a page with a slider for each concept."""

from __future__ import annotations

import argparse
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from dsas_core import llm
from dsas_core.concept import Concept
from dsas_core.errors import DSASError

from .arguments import add_model, pipeline, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """With which model and concepts, and where to serve."""
    add_model(parser)
    parser.add_argument(
        "--concepts",
        "-c",
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="folders or Hub names of concepts that everybody has (default: those that ship for the model)",
    )
    parser.add_argument(
        "--saves", type=Path, metavar="FOLDER", help="let visitors save what they learn there (default: they cannot)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to serve at (default 127.0.0.1; 0.0.0.0 is all)")
    parser.add_argument("--port", type=positive, metavar="N", help="port (default: the first free one from 7860 on)")
    parser.add_argument("--share", action="store_true", help="also through Gradio's tunnel, for 72 hours")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Serve until the process is told to end; where it was."""
    if llm.is_language_model(args.model):
        args.usage(f"{args.model} is a language model: the demo draws; name a diffusers pipeline")
    concepts = [Concept.from_pretrained(name) for name in args.concepts]
    try:
        from .. import ui
        from ..ui.studio import Studio
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise DSASError("the demo needs Gradio: pip install 'dsas-diffusion[demo]'") from None
    studio = Studio(pipeline(args), args.model, concepts)
    page = ui.build(studio, args.saves)
    try:
        try:
            _, address, public = ui.serve(page, args.host, args.port, share=args.share)
        except OSError as error:
            raise DSASError(f"cannot serve at {args.host}, port {args.port or 'any from 7860 on'}: {error}") from None
        if not args.json:
            print(f"serving at {address}{f' and {public}' if public else ''}; Ctrl-C ends it", flush=True)
        _until_told()
    finally:
        page.close(verbose=False)
        studio.close()
    return {"address": address, "public": public, "model": args.model}


def report(document: dict[str, Any]) -> None:
    """That it has ended."""
    print(f"no longer serving {document['model']}")


def _until_told() -> None:
    """Return when the process is interrupted or told to end."""
    told = threading.Event()

    def tell(number: int, frame: FrameType | None) -> None:
        told.set()

    before = {number: signal.signal(number, tell) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        told.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
