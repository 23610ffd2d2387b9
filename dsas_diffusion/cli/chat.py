"""`dsas chat`: talk with a language model, steered by concepts, and see what they saw."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

from dsas_core import llm
from dsas_core.concept import Concept
from dsas_core.errors import DSASError
from dsas_core.llm.answer import answer, asked
from dsas_core.strengths import Strength

from .arguments import GATES, add_concepts, add_device, language_model, natural, not_negative, positive, read_concepts
from .output import free_files, write_files

#: suffix -> how tokens are drawn
DRAWN = {".html": llm.as_html, ".svg": llm.as_svg}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """With which model, steered by what."""
    parser.add_argument("--model", default="builtin:chat", help="builtin:chat (default), a folder, or a Hub name")
    add_device(parser)
    parser.add_argument(
        "--message", "-m", action="append", help="what to say; repeatable. Without it, lines of standard input"
    )
    add_concepts(parser)
    parser.add_argument("--phase", choices=("all", "prompt", "generation"), default="all", help="which tokens to steer")
    parser.add_argument("--compare", action="store_true", help="answer without the concepts, too")
    parser.add_argument("--monitor", metavar="FILE", help="change nothing; add a JSON line on each message to FILE")
    parser.add_argument("--heat", metavar="FILE", help="write the tokens, coloured by h, as .html or .svg")
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --heat")
    parser.add_argument("--tokens", type=positive, default=60, metavar="N", help="length of an answer (default 60)")
    parser.add_argument("--temperature", type=not_negative, default=0.0, help="0 (default) takes the likeliest")
    parser.add_argument("--seed", type=natural, default=0, metavar="N", help="of sampling (default 0)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Answer each message; what was said, and how much the concepts were seen in it."""
    if args.monitor and not args.concept:
        args.usage("--monitor needs a --concept to look for")
    if args.compare and (args.monitor or not args.concept):
        args.usage("--compare needs a --concept that changes something")
    if args.heat:
        if not args.concept or args.monitor:
            args.usage("--heat needs a --concept to look for, and no --monitor")
        if Path(args.heat).suffix not in DRAWN:
            raise DSASError(f"{args.heat}: tokens are drawn as {' or '.join(DRAWN)}")
        free_files([Path(args.heat)], args.overwrite)
    concepts = read_concepts(args.concept)
    model, tokenizer = language_model(args)
    answers: list[dict[str, Any]] = []
    seen: list[llm.Token] = []
    with ExitStack() as stack:
        if args.monitor:
            stack.enter_context(llm.Monitor(model, list(concepts), args.monitor, tokenizer))
        try:
            for message in args.message if args.message is not None else _lines():
                answers.append({"message": message, **_answer(model, tokenizer, message, concepts, args, seen)})
        except KeyboardInterrupt:  # the natural way out of a conversation: what was said is kept
            print(file=sys.stderr)
    if args.heat:
        drawn = DRAWN[Path(args.heat).suffix](seen)
        page = drawn if args.heat.endswith(".svg") else f"<!doctype html><meta charset=utf-8><title>h</title>{drawn}"
        write_files({Path(args.heat): page.encode()})
    return {"model": args.model, "answers": answers, "monitor": args.monitor}


def report(document: dict[str, Any]) -> None:
    """Answers have been shown as they came; where the monitor's lines are."""
    if document["monitor"]:
        print(f"{len(document['answers'])} lines added to {document['monitor']}")


def _lines() -> Any:
    """Messages from standard input, with a prompt when somebody types them."""
    if sys.stdin.isatty():
        print("(Ctrl-D ends the conversation)")
    while True:
        if sys.stdin.isatty():
            print("\n> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _answer(
    model: Any,
    tokenizer: Any,
    message: str,
    concepts: dict[Concept, Strength],
    args: argparse.Namespace,
    seen: list[llm.Token],
) -> dict[str, Any]:
    """One answer, and with --compare the one without concepts, shown as they come; their tokens are added to `seen`."""
    live = not args.json
    inputs = asked(tokenizer, message).to(model.device)
    found: dict[str, Any] = {}
    if args.compare:
        found["base"] = _shown(model, tokenizer, inputs, args, "base")
    steers = bool(concepts) and not args.monitor
    settings: dict[str, Any] = {"gate": GATES[args.gate], "phase": args.phase, "combine": args.combine}
    settings["within"] = args.within
    settings |= {"tokenizer": tokenizer, "trace": True}
    with llm.steer(model, concepts, **settings) if steers else nullcontext() as steering:
        found["answer"] = _shown(model, tokenizer, inputs, args, "steered" if args.compare else "")
    if steering is None or steering.trace is None:
        return found
    found["concepts"] = {}
    for concept in concepts:
        tokens = [token for token in steering.trace.tokens(0, concept.name) if token.counted]
        found["concepts"][concept.name] = {
            "mean_h": sum(token.mean_h for token in tokens) / max(1, len(tokens)),
            "max_h": max((token.max_h for token in tokens), default=0.0),
            "tokens": [{"text": token.text, "h": token.max_h} for token in tokens],
        }
        seen += tokens
        if live:
            summary = found["concepts"][concept.name]
            print(f"  {concept.name}: mean h {summary['mean_h']:.3f}, highest {summary['max_h']:.2f}")
            if sys.stdout.isatty():
                print(f"  {llm.as_terminal(tokens)}")
    return found


def _shown(model: Any, tokenizer: Any, inputs: Any, args: argparse.Namespace, label: str) -> str:
    """An answer, streamed to standard output unless --json."""
    from transformers import TextStreamer

    streamer = None
    if not args.json:
        if label:
            print(f"{label}: ", end="", flush=True)
        streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    return answer(model, tokenizer, inputs, args.tokens, args.temperature, args.seed, streamer=streamer).text
