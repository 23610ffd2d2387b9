"""The answers of the demo's language model, without its page: unsteered and steered ones, and what gates read."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from itertools import chain, takewhile
from typing import Any

from dsas_core import llm
from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError, PromptError
from dsas_core.llm.model.layers import device_of_input, has_encoder, max_positions, roots_of
from dsas_core.llm.steering.answer import answer, encode_message, find_unknown_words

from .concepts import conflicting_pairs, gate_of, index_concepts, keep_latest

#: unsteered answers that are kept, so that moving a slider costs one answer
MAX_BASES = 64
#: limits of what one answer may cost
MAX_CHARACTERS = 2000
MAX_TOKENS = 400
MAX_TEMPERATURE = 2.0


@dataclass(frozen=True)
class Turn:
    """A message, and its answers without and with steering."""

    message: str
    base: str
    steered: str


@dataclass(frozen=True)
class Question:
    """An answer that a visitor asks for.

    Args:
        message: to the model.
        strengths: by concept name, in units.
        gate: "dsas" for each concept's own, "on" to steer every token, "off" for none.
        length: tokens of the answer, at most.
        temperature: of sampling; 0 takes the likeliest token.
        seed: of sampling.
        earlier: what the conversation began with; each side goes on with its own answers.

    Raises:
        DSASError: no message, or a value beyond the limits.
    """

    message: str
    strengths: Mapping[str, float] = field(default_factory=dict)
    gate: str = "dsas"
    length: int = 60
    temperature: float = 0.0
    seed: int = 0
    earlier: tuple[Turn, ...] = ()

    def __post_init__(self) -> None:
        if not self.message.strip():
            raise PromptError("there is no message: write something to be answered")
        if len(self.message) > MAX_CHARACTERS:
            raise PromptError(f"the message has {len(self.message)} characters: at most {MAX_CHARACTERS} are taken")
        if not 1 <= self.length <= MAX_TOKENS:
            raise DSASError(f"an answer of {self.length} tokens: expected 1 to {MAX_TOKENS}")
        if not 0 <= self.temperature <= MAX_TEMPERATURE:
            raise DSASError(f"temperature {self.temperature:g}: expected 0 to {MAX_TEMPERATURE:g}")


@dataclass(frozen=True)
class Answer:
    """An answer, or the beginning of one, which has a text but no token ids yet."""

    text: str = ""
    ids: tuple[int, ...] = ()
    seconds: float = 0.0

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return len(self.ids) / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class TokenReading:
    """What one concept's gate read of the message and of the steered answer, token by token."""

    concept: str
    strength: float
    message: tuple[llm.Token, ...]
    answer: tuple[llm.Token, ...]

    @property
    def highest_h(self) -> float:
        return max((token.max_h for token in (*self.message, *self.answer)), default=0.0)


@dataclass(frozen=True)
class Reply:
    """Answers without and with steering, as far as they are written.

    Args:
        question: what was asked for.
        base: the answer without steering.
        cached: whether it had been written before.
        steered: the answer with steering, once it has begun.
        gates: a reading for each concept, once both answers are complete.
        conflicts: pairs of concepts that undo one another.
        complete: whether both answers are.
        unknown_words: of the message, for which the model has no token.
        at: when it was asked, which tells it from others alike.
    """

    question: Question
    base: Answer
    cached: bool = False
    steered: Answer | None = None
    gates: tuple[TokenReading, ...] = ()
    conflicts: tuple[tuple[str, str], ...] = ()
    complete: bool = False
    unknown_words: tuple[str, ...] = ()
    at: float = field(default_factory=time.time)

    @property
    def turn(self) -> Turn:
        """The message with its answers, as far as they are written."""
        return Turn(self.question.message, self.base.text, self.steered.text if self.steered is not None else "")

    @property
    def same(self) -> bool:
        """Whether steering has changed no token."""
        return self.steered is not None and self.steered.ids == self.base.ids

    @property
    def same_tokens(self) -> int:
        """How many tokens the two answers have in common at their beginning."""
        pairs = zip(self.base.ids, self.steered.ids if self.steered is not None else (), strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


class ChatService:
    """One language model that several visitors chat with, one answer at a time.

    Each answer is written in a thread of its own, which alone holds the model and its hooks: a visitor who goes away in
    the middle leaves neither behind. Waiting in turn is up to the page's queue.

    Args:
        model: from `llm.load`.
        tokenizer: from there, too.
        name: of the model.
        concepts: those that every visitor has.

    Raises:
        DSASError: a concept does not fit the model, or two have one name.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, concepts: Sequence[Concept] = ()) -> None:
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self._turn, self._closed = threading.Lock(), threading.Event()
        self._bases: OrderedDict[Any, Answer] = OrderedDict()
        self.concepts = index_concepts(concepts, roots_of(model))

    @property
    def max_length(self) -> int:
        """Tokens that an answer can have, at most."""
        return min(MAX_TOKENS, max_positions(self.model) or MAX_TOKENS)

    def reply(self, question: Question) -> Iterator[Reply]:
        """Both answers as they are written, the unsteered one first; closing the iterator ends the writing.

        Concepts at strength 0 change nothing, but their gates are read, too.

        Raises:
            DSASError: the message is too long for the model, or there is no concept of a name.
        """
        missing = [name for name in question.strengths if name not in self.concepts]
        if missing:
            raise DSASError(f"no concept {missing[0]!r}: there are {', '.join(self.concepts) or 'none'}")
        sides = self._encode(question, "base"), self._encode(question, "steered")
        tokens, limit = max(side.input_ids.shape[1] for side in sides), max_positions(self.model)
        if limit and tokens + (0 if has_encoder(self.model) else question.length) > limit:
            what, way = ("conversation", "begin a new one") if question.earlier else ("message", "shorten one of them")
            raise PromptError(
                f"the {what} has {tokens} tokens and the answer up to {question.length}, but the model takes {limit} "
                f"in all: {way}"
            )
        return _follow(lambda publish, stopped: self._write(question, sides, publish, stopped), self._closed)

    @property
    def converses(self) -> bool:
        """Whether a conversation can go on; without a chat template each message is the first."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def _encode(self, question: Question, side: str) -> Any:
        """The tokens of a conversation on one side, "base" or "steered"."""
        earlier = [(turn.message, getattr(turn, side)) for turn in question.earlier]
        return encode_message(self.tokenizer, question.message, earlier).to(device_of_input(self.model))

    def close(self) -> None:
        """End the answer that is being written, and write no other."""
        self._closed.set()
        with self._turn:
            pass

    def _write(
        self,
        question: Question,
        sides: tuple[Any, Any],
        publish: Callable[[Reply], object],
        stopped: Callable[[], bool],
    ) -> None:
        """Publish both answers as they grow, until that is stopped; `sides` are the tokens of both conversations."""
        with self._turn:
            if stopped():
                return
            said = tuple((turn.message, turn.base) for turn in question.earlier)
            key = (said, question.message, question.length, question.temperature, question.seed)
            unknown = tuple(find_unknown_words(self.tokenizer, question.message))
            reply = Reply(question, self._bases.get(key, Answer()), key in self._bases, unknown_words=unknown)
            if not reply.cached:
                base = self._answer(question, sides[0], lambda part: publish(replace(reply, base=part)), stopped)
                if stopped():
                    return
                reply = replace(reply, base=base)
            keep_latest(self._bases, key, reply.base, MAX_BASES)
            if not self.concepts:  # then both conversations are the same
                publish(replace(reply, steered=reply.base, complete=True))
                return
            publish(replace(reply, steered=Answer()))
            strengths = {concept: question.strengths.get(name, 0.0) for name, concept in self.concepts.items()}
            settings: dict[str, Any] = {"gate": gate_of(question), "trace": True, "tokenizer": self.tokenizer}
            with llm.steer(self.model, dict(strengths), **settings) as steering:
                steered = self._answer(question, sides[1], lambda part: publish(replace(reply, steered=part)), stopped)
                conflicts = conflicting_pairs(steering)
            if stopped():
                return
        assert steering.trace is not None
        first = self._first_of(question, sides[1])
        gates = tuple(self._read_gate(concept, s, steering.trace, sides[1], first) for concept, s in strengths.items())
        publish(replace(reply, steered=steered, gates=gates, conflicts=conflicts, complete=True))

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
        result = answer(self.model, self.tokenizer, inputs, *sampling, streamer=streamer, stopped=stopped)
        return Answer(result.text, result.ids, time.perf_counter() - began)

    def _first_of(self, question: Question, inputs: Any) -> int:
        """The position at which the last message of a steered conversation begins."""
        if not question.earlier:
            return 0
        empty = self._encode(replace(question, message="…"), "steered").input_ids[0].tolist()
        pairs = zip(empty, inputs.input_ids[0].tolist(), strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def _read_gate(
        self, concept: Concept, strength: float, trace: llm.TextTrace, inputs: Any, first: int
    ) -> TokenReading:
        roots = dict.fromkeys(record.site.root for record in trace.records if record.concept == concept.name)
        by_root = {root: [t for t in trace.tokens(0, concept.name, root) if t.counted] for root in roots}
        if has_encoder(self.model):
            message, written = by_root.get("encoder", []), by_root.get("decoder", [])
        else:
            tokens, start = list(chain(*by_root.values())), inputs.input_ids.shape[1]
            message = [token for token in tokens if first <= token.position < start]
            written = [token for token in tokens if token.position >= start]
        return TokenReading(concept.name, strength, tuple(message), tuple(written))


def message_of(prompt: str) -> str:
    """A prompt of a conversation without the "user:" at its beginning."""
    return prompt.removeprefix("user:").strip()


def _follow(
    work: Callable[[Callable[[Reply], object], Callable[[], bool]], None], closed: threading.Event
) -> Iterator[Reply]:
    """The replies that work in another thread publishes, always the newest; closing the iterator has the work stop.

    A slow reader misses replies that are no longer the newest, but never the last.

    Args:
        work: is given a function that publishes a reply, and one that says whether to stop.
        closed: set to have it stop, too.
    """
    changed, stopped, done = threading.Condition(), threading.Event(), Future[None]()
    newest: list[Reply] = []

    def publish(reply: Reply) -> None:
        with changed:
            newest[:] = [reply]
            changed.notify()

    def run() -> None:
        try:
            work(publish, lambda: stopped.is_set() or closed.is_set())
            done.set_result(None)
        except BaseException as error:  # also what ends the thread: the reader must not wait for ever
            done.set_exception(error)
        finally:
            with changed:
                changed.notify()

    threading.Thread(target=run, name="dsas-answer", daemon=True).start()
    try:
        while True:
            with changed:
                changed.wait_for(lambda: newest or done.done())
                if not newest:
                    break
                reply = newest.pop()
            yield reply
        done.result()
    finally:
        stopped.set()
