"""What the demo's language model says, without the page: answers without and with steering, and what gates saw."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from dsas_core import llm
from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError, PromptError
from dsas_core.llm.model.layers import device_of_input, has_encoder, max_positions, roots_of
from dsas_core.llm.steering.answer import answer, encode_message, find_unknown_words

from .concepts import by_name, gate_of, keep_latest, opposed

#: base answers that are kept, so that moving a slider costs one answer
KEPT = 64
#: limits of what one answer may cost
MOST_CHARACTERS = 2000
MOST_TOKENS = 400
MOST_TEMPERATURE = 2.0


@dataclass(frozen=True)
class Question:
    """An answer that somebody asks for.

    Args:
        message: what is said to the model. strengths: by concept name, in units.
        gate: "dsas" is each concept's own, "on" steers every token, "off" none.
        length: most tokens of the answer. temperature, seed: of sampling; 0 takes the likeliest token.
    """

    message: str
    strengths: Mapping[str, float] = field(default_factory=dict)
    gate: str = "dsas"
    length: int = 60
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.message.strip():
            raise PromptError("there is no message: write something to be answered")
        if len(self.message) > MOST_CHARACTERS:
            raise PromptError(f"the message has {len(self.message)} characters: at most {MOST_CHARACTERS} are taken")
        if not 1 <= self.length <= MOST_TOKENS:
            raise DSASError(f"an answer of {self.length} tokens: expected 1 to {MOST_TOKENS}")
        if not 0 <= self.temperature <= MOST_TEMPERATURE:
            raise DSASError(f"temperature {self.temperature:g}: expected 0 to {MOST_TEMPERATURE:g}")


@dataclass(frozen=True)
class Answer:
    """An answer, or what is written of it so far; then it has no tokens yet."""

    text: str = ""
    ids: tuple[int, ...] = ()
    seconds: float = 0.0

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return len(self.ids) / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class TokenReading:
    """What one concept's gate read of the message, and of the steered answer, token by token."""

    concept: str
    strength: float
    message: tuple[llm.Token, ...]
    answer: tuple[llm.Token, ...]

    @property
    def highest_h(self) -> float:
        return max((token.max_h for token in (*self.message, *self.answer)), default=0.0)


@dataclass(frozen=True)
class Reply:
    """Answers without and with steering; `gates` are there when both are whole.

    `cached` says whether the base was there already. `opposed` are concepts that undo one another, `unknown` words that
    the model has no token for. `at` tells a reply from one that is alike.
    """

    question: Question
    base: Answer
    cached: bool = False
    steered: Answer | None = None
    gates: tuple[TokenReading, ...] = ()
    opposed: tuple[tuple[str, str], ...] = ()
    whole: bool = False
    unknown: tuple[str, ...] = ()
    at: float = field(default_factory=time.time)

    @property
    def same(self) -> bool:
        """Whether steering has changed no token."""
        return self.steered is not None and self.steered.ids == self.base.ids


class ChatService:
    """One language model that several people talk with, one answer at a time.

    Each answer is written in a thread of its own, which alone holds the model and its hooks: a visitor who goes away
    in the middle leaves neither behind. Waiting in turn is the page's queue's business.

    Args:
        model, tokenizer: from `llm.load`. name: what to call the model.
        concepts: those that everybody has.

    Raises:
        DSASError: a concept that does not fit the model, or two of one name.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, concepts: Sequence[Concept] = ()) -> None:
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self._turn, self._closed = threading.Lock(), threading.Event()
        self._bases: OrderedDict[Any, Answer] = OrderedDict()
        self.concepts = by_name(concepts, roots_of(model))

    @property
    def longest(self) -> int:
        """Most tokens that an answer can have."""
        return min(MOST_TOKENS, max_positions(self.model) or MOST_TOKENS)

    def reply(self, question: Question) -> Iterator[Reply]:
        """Both answers as they are written, the base first; closing the iterator ends the writing.

        Concepts at strength 0 change nothing, but their gates are read too.

        Raises:
            DSASError: a message that is too long for the model, or a strength of a concept that is not there.
        """
        missing = [name for name in question.strengths if name not in self.concepts]
        if missing:
            raise DSASError(f"no concept {missing[0]!r}: there are {', '.join(self.concepts) or 'none'}")
        inputs = encode_message(self.tokenizer, question.message).to(device_of_input(self.model))
        self._check_length(question, inputs.input_ids.shape[1])
        return _newest(lambda publish, stopped: self._write(question, inputs, publish, stopped))

    def close(self) -> None:
        """End what is being written, and write nothing any more."""
        self._closed.set()
        with self._turn:
            pass

    def _check_length(self, question: Question, tokens: int) -> None:
        written = 0 if has_encoder(self.model) else question.length
        limit = max_positions(self.model)
        if limit and tokens + written > limit:
            raise PromptError(
                f"the message has {tokens} tokens and the answer up to {question.length}, but the model takes {limit} "
                "in all: shorten one of them"
            )

    def _write(
        self, question: Question, inputs: Any, publish: Callable[[Reply], object], stopped: Callable[[], bool]
    ) -> None:
        """Write both answers and publish them as they grow, unless it is stopped."""

        def ended() -> bool:
            return stopped() or self._closed.is_set()

        with self._turn:
            if ended():
                return
            unknown = tuple(find_unknown_words(self.tokenizer, question.message))
            key = (question.message, question.length, question.temperature, question.seed)
            reply = Reply(question, self._bases.get(key, Answer()), key in self._bases, unknown=unknown)
            if not reply.cached:
                base = self._answer(question, inputs, lambda part: publish(replace(reply, base=part)), ended)
                if ended():
                    return
                keep_latest(self._bases, key, base, KEPT)
                reply = replace(reply, base=base)
            self._bases.move_to_end(key)
            if not self.concepts:
                publish(replace(reply, steered=reply.base, whole=True))
                return
            publish(replace(reply, steered=Answer()))
            concepts = {concept: question.strengths.get(name, 0.0) for name, concept in self.concepts.items()}
            settings: dict[str, Any] = {"gate": gate_of(question), "trace": True, "tokenizer": self.tokenizer}
            with llm.steer(self.model, dict(concepts), **settings) as steering:
                steered = self._answer(question, inputs, lambda part: publish(replace(reply, steered=part)), ended)
                conflicts = opposed(steering)
            if ended():
                return
        assert steering.trace is not None
        gates = tuple(self._read(concept, s, steering.trace, inputs) for concept, s in concepts.items())
        publish(replace(reply, steered=steered, gates=gates, opposed=conflicts, whole=True))

    def _answer(
        self, question: Question, inputs: Any, publish: Callable[[Answer], object], stopped: Callable[[], bool]
    ) -> Answer:
        """One answer, published as it grows."""
        from transformers import TextStreamer

        class Streamer(TextStreamer):
            written = ""

            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                self.written += text
                publish(Answer(self.written.strip()))

        streamer = Streamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        sampling = question.length, question.temperature, question.seed
        began = time.perf_counter()
        whole = answer(self.model, self.tokenizer, inputs, *sampling, streamer=streamer, stopped=stopped)
        return Answer(whole.text, whole.ids, time.perf_counter() - began)

    def _read(self, concept: Concept, strength: float, trace: llm.TextTrace, inputs: Any) -> TokenReading:
        roots = list(dict.fromkeys(r.site.root for r in trace.records if r.concept == concept.name))
        by_root = {root: [t for t in trace.tokens(0, concept.name, root) if t.counted] for root in roots}
        if has_encoder(self.model):
            message, written = by_root.get("encoder", []), by_root.get("decoder", [])
        else:
            tokens = [token for tokens_of_root in by_root.values() for token in tokens_of_root]
            start = inputs.input_ids.shape[1]
            message = [token for token in tokens if token.position < start]
            written = [token for token in tokens if token.position >= start]
        return TokenReading(concept.name, strength, tuple(message), tuple(written))


def message_of(prompt: str) -> str:
    """What a person says in a prompt of a conversation, without the "user:" before it."""
    return prompt.removeprefix("user:").strip()


def _newest(work: Callable[[Callable[[Reply], object], Callable[[], bool]], None]) -> Iterator[Reply]:
    """What work in another thread publishes, always the newest; closing the iterator has the work stop soon.

    A reader that is slow misses what is no longer new, never the last.
    """
    changed, stopped, work_done = threading.Condition(), threading.Event(), Future[None]()
    newest: list[Reply] = []

    def publish(reply: Reply) -> None:
        with changed:
            newest[:] = [reply]
            changed.notify()

    def run() -> None:
        try:
            work(publish, stopped.is_set)
            work_done.set_result(None)
        except Exception as error:
            work_done.set_exception(error)
        finally:
            with changed:
                changed.notify()

    threading.Thread(target=run, name="dsas-answer", daemon=True).start()
    try:
        while True:
            with changed:
                changed.wait_for(lambda: newest or work_done.done())
                reply = newest.pop() if newest else None
            if reply is None:
                break
            yield reply
        work_done.result()
    finally:
        stopped.set()
