"""`dsas chat`: talk with a language model, steered by concepts, and see what they saw."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsas_core import llm
from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError
from dsas_core.llm.steering.answer import answer, encode_message
from dsas_core.steering.strengths import Strength

from ..argument_types import natural, not_negative, positive
from ..arguments import GATES, add_concepts, add_device, language_model, read_concepts
from ..output import free_files, write_files

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
    chat = _Chat(args, concepts, *language_model(args))
    answers: list[dict[str, Any]] = []
    with ExitStack() as stack:
        if args.monitor:
            stack.enter_context(llm.Monitor(chat.model, list(concepts), args.monitor, chat.tokenizer))
        try:
            for message in args.message if args.message is not None else _lines():
                answers.append({"message": message, **chat.answer(message)})
        except KeyboardInterrupt:  # the natural way out of a conversation: what was said is kept
            print(file=sys.stderr)
    if args.heat:
        heat = DRAWN[Path(args.heat).suffix](chat.tokens)
        page = heat if args.heat.endswith(".svg") else f"<!doctype html><meta charset=utf-8><title>h</title>{heat}"
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


@dataclass
class _Chat:
    """A language model that answers, steered by concepts; `tokens` are all that gates have read so far."""

    args: argparse.Namespace
    concepts: dict[Concept, Strength]
    model: Any
    tokenizer: Any
    tokens: list[llm.Token] = field(default_factory=list)

    def answer(self, message: str) -> dict[str, Any]:
        """One answer, and with --compare the one without concepts, shown as they come."""
        args, document = self.args, dict[str, Any]()
        inputs = encode_message(self.tokenizer, message).to(self.model.device)
        if args.compare:
            document["base"] = self._stream(inputs, "base")
        names = ("phase", "combine", "within")
        settings = {"gate": GATES[args.gate], "trace": True, **{name: getattr(args, name) for name in names}}
        steers = bool(self.concepts) and not args.monitor
        with (
            llm.steer(self.model, self.concepts, tokenizer=self.tokenizer, **settings) if steers else nullcontext()
        ) as steering:
            document["answer"] = self._stream(inputs, "steered" if args.compare else "")
        if steering is not None and steering.trace is not None:
            document["concepts"] = {concept.name: self._read(steering.trace, concept) for concept in self.concepts}
        return document

    def _read(self, trace: llm.TextTrace, concept: Concept) -> dict[str, Any]:
        """What one concept's gate read in the last answer, printed unless --json."""
        tokens = [token for token in trace.tokens(0, concept.name) if token.counted]
        self.tokens += tokens
        mean_h = sum(token.mean_h for token in tokens) / max(1, len(tokens))
        max_h = max((token.max_h for token in tokens), default=0.0)
        if not self.args.json:
            print(f"  {concept.name}: mean h {mean_h:.3f}, highest {max_h:.2f}")
            if sys.stdout.isatty():
                print(f"  {llm.as_terminal(tokens)}")
        return {
            "mean_h": mean_h,
            "max_h": max_h,
            "tokens": [{"text": token.text, "h": token.max_h} for token in tokens],
        }

    def _stream(self, inputs: Any, label: str) -> str:
        """An answer, streamed to standard output unless --json."""
        from transformers import TextStreamer

        args, streamer = self.args, None
        if not args.json:
            if label:
                print(f"{label}: ", end="", flush=True)
            streamer = TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        sampling = args.tokens, args.temperature, args.seed
        return answer(self.model, self.tokenizer, inputs, *sampling, streamer=streamer).text
