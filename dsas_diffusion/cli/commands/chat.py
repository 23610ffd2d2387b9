"""`dsas chat`: talk with a language model, steered by concepts, and see what they saw."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsas_core import llm
from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError
from dsas_core.llm.steering.answer import answer, answers, encode_message
from dsas_core.steering.strengths import Strength
from dsas_core.utils.saving.signature import UNSIGNED, sign

from ...drawing.picture_settings import GATES
from ..arguments import open_language_model, read_concepts, values_of
from ..output import check_output_files, write_files

#: suffix -> the function that renders tokens, coloured by h
RENDERERS = {".html": llm.as_html, ".svg": llm.as_svg}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Answer each message.

    Returns:
        Messages and answers, with h of each concept.
    """
    if args.monitor and not args.concept:
        args.usage("--monitor needs a --concept to look for")
    if args.compare and (args.monitor or not (args.concept or args.diverse)):
        args.usage("--compare needs a --concept that changes something")
    if args.diverse and (args.monitor or args.heat):
        args.usage("--diverse changes several answers at once: leave --monitor and --heat out")
    if args.heat:
        if not args.concept or args.monitor:
            args.usage("--heat needs a --concept to look for, and no --monitor")
        if Path(args.heat).suffix not in RENDERERS:
            raise DSASError(f"{args.heat}: tokens are drawn as {' or '.join(RENDERERS)}")
        check_output_files([Path(args.heat)], args.overwrite)
    chat = _Chat(args, read_concepts(args.concept), *open_language_model(args))
    answers: list[dict[str, Any]] = []
    with ExitStack() as stack:
        if args.monitor:
            stack.enter_context(llm.Monitor(chat.model, list(chat.concepts), args.monitor, chat.tokenizer))
        try:
            for message in args.message if args.message is not None else _lines():
                answers.append({"message": message, **chat.answer(message)})
        except KeyboardInterrupt:  # the usual end of a conversation: its answers are kept
            print(file=sys.stderr)
    if args.heat:
        heat = RENDERERS[Path(args.heat).suffix](chat.tokens)
        page = heat if args.heat.endswith(".svg") else f"<!doctype html><meta charset=utf-8><title>h</title>{heat}"
        write_files({Path(args.heat): sign(f"{page}<!-- {UNSIGNED} -->\n".encode())})
    return {"model": args.model, "answers": answers, "monitor": args.monitor}


def report(document: dict[str, Any]) -> None:
    """Print where the monitor's lines are; answers have been printed as they came."""
    if document["monitor"]:
        print(f"{len(document['answers'])} lines added to {document['monitor']}")


def _lines() -> Iterator[str]:
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
    """A language model that answers, steered by concepts.

    Args:
        args: the arguments of the command.
        concepts: the strength of each concept.
        model: the language model.
        tokenizer: its tokenizer.
        tokens: all tokens that gates have scored so far.
    """

    args: argparse.Namespace
    concepts: dict[Concept, Strength]
    model: Any
    tokenizer: Any
    tokens: list[llm.Token] = field(default_factory=list)

    def answer(self, message: str) -> dict[str, Any]:
        """Answer a message; with --compare without the concepts first. Printed as it is written, unless --json."""
        args, document = self.args, dict[str, Any]()
        inputs = encode_message(self.tokenizer, message).to(self.model.device)
        if args.compare:
            document["base"] = self._stream(inputs, "base")
        steered: Any = nullcontext()
        if self.concepts and not args.monitor:
            settings = {"gate": GATES[args.gate], "trace": True, **values_of(args, "phase", "combine", "within")}
            steered = llm.steer(self.model, self.concepts, tokenizer=self.tokenizer, **settings)
        with steered as steering:
            if args.diverse:
                document["answers"] = self._apart(inputs, *args.diverse)
            else:
                document["answer"] = self._stream(inputs, "steered" if args.compare else "")
        if steering is not None:
            document["concepts"] = {concept.name: self._read(steering.trace, concept) for concept in self.concepts}
        return document

    def _apart(self, inputs: Any, count: int, strength: float) -> list[str]:
        """Several answers that are pushed apart, printed when all are written, unless --json."""
        args = self.args
        with llm.steer(self.model, {llm.stars(self.model): strength}):
            sampling = args.tokens, args.temperature, args.seed
            texts = [one.text for one in answers(self.model, self.tokenizer, inputs, *sampling, count=count)]
        for i, text in enumerate(texts if not args.json else ()):
            print(f"{i + 1}: {text}")
        return texts

    def _read(self, trace: llm.TextTrace, concept: Concept) -> dict[str, Any]:
        """h of one concept in the last answer, or all of --diverse, printed unless --json."""
        rows = range(self.args.diverse[0] if self.args.diverse else 1)
        tokens = [token for row in rows for token in trace.tokens(row, concept.name) if token.counted]
        self.tokens += tokens
        mean_h = sum(token.mean_h for token in tokens) / max(1, len(tokens))
        max_h = max((token.max_h for token in tokens), default=0.0)
        if not self.args.json:
            print(f"  {concept.name}: mean h {mean_h:.3f}, highest {max_h:.2f}")
            if sys.stdout.isatty():
                print(f"  {llm.as_terminal(tokens)}")
        scores = [{"text": token.text, "h": token.max_h} for token in tokens]
        return {"mean_h": mean_h, "max_h": max_h, "tokens": scores}

    def _stream(self, inputs: Any, label: str) -> str:
        """Write an answer, streamed to standard output unless --json."""
        from transformers import TextStreamer

        args, streamer = self.args, None
        if not args.json:
            if label:
                print(f"{label}: ", end="", flush=True)
            streamer = TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        sampling = args.tokens, args.temperature, args.seed
        return answer(self.model, self.tokenizer, inputs, *sampling, streamer=streamer).text
