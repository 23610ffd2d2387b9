"""Which calls of the text encoders, within one `encode_prompt`, read prompts, and which read negative prompts.

The methods of diffusers call each text encoder once for the prompts, then once for the negative prompts, so the order
tells, whatever the texts are: also where a method of somebody else rewrites them, and hands both on to diffusers' own.
Else such a method, as of a pipeline with long prompts, may encode pieces in an order of its own. Then the tokens tell:
each call goes on with the prompts or with the negative prompts where that left off. What goes on with neither, or with
both, is unknown and raises.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import FrameType
from typing import Any

import torch

from dsas_core.errors import UnsupportedError

from .families.spec import TextEncoder
from .prompt_tokens import PromptTokens

#: what a block of rows is for: prompts, or negative prompts
PROMPT, NEGATIVE = "prompt", "negative"
#: what pipelines call the method that encodes prompts; the second in an InstructPix2Pix
ENCODE = ("encode_prompt", "_encode_prompt")


class TextReading:
    """The calls of text encoders within one `encode_prompt`.

    Args:
        pipe: the pipeline.
        arguments: of `encode_prompt`, by name.
        roles: what it encodes, in the order in which the methods of diffusers do.
        in_order: whether it is a method of diffusers.

    Example:
        >>> from dsas_diffusion import load_pipeline
        >>> pipe, ids = load_pipeline("builtin:emoji", device="cpu"), torch.zeros(1, 24)
        >>> reading = TextReading(pipe, {"prompt": "a dog"}, (PROMPT, NEGATIVE), in_order=True)
        >>> [reading.tell(TextEncoder(), ids, call) for call in ("first", "second")]
        ['prompt', 'negative']
    """

    def __init__(self, pipe: Any, arguments: Mapping[str, Any], roles: Sequence[str], in_order: bool) -> None:
        self.pipe, self.roles, self.in_order = pipe, tuple(roles), in_order
        self.arguments = {name: list(value) if isinstance(value, list) else value for name, value in arguments.items()}
        self._calls: dict[str, int] = {}  # by text encoder, in the method of diffusers that runs
        self._method: FrameType | None = None  # which that is, where somebody else's has called it
        self._hands_on = False  # whether that was given both prompts and negative prompts
        self._told: dict[str, tuple[object, str]] = {}  # by text encoder, its last call, and what it reads
        self._unread: dict[str, dict[str, _Unread]] = {}  # by text encoder and role

    def tell(self, encoder: TextEncoder, ids: torch.Tensor, call: object) -> str:
        """What a call of a text encoder reads.

        Args:
            encoder: which.
            ids: its tokens, int64 [texts, positions].
            call: any object that is of this call alone, as its keyword arguments are: several may ask.

        Raises:
            UnsupportedError: a call that fits neither, or both.
        """
        if len(self.roles) == 1:
            return self.roles[0]
        told, role = self._told.get(encoder.part, (None, ""))
        if told is not call:
            in_order = self.in_order or self._is_handed_on()
            role = self._tell_in_order(encoder) if in_order else self._tell_by_tokens(encoder, ids)
            self._told[encoder.part] = call, role
        return role

    def _is_handed_on(self) -> bool:
        """Whether a method of diffusers runs that was handed both prompts and negative prompts."""
        method = _running_method(self.pipe)
        if method is not self._method:
            self._method, self._calls = method, {}
            given: Mapping[str, Any] = {} if method is None else method.f_locals  # not encoded yet, else given
            self._hands_on = (
                method is not None
                and bool(given.get("do_classifier_free_guidance", True))
                and all(given.get(name) is None for name in ("prompt_embeds", "negative_prompt_embeds"))
            )
        return self._hands_on

    def _tell_in_order(self, encoder: TextEncoder) -> str:
        before = self._calls.get(encoder.part, 0)
        self._calls[encoder.part] = before + 1
        if before >= len(self.roles):
            raise self._unknown(encoder, f"called the {encoder.part} {before + 1} times, once for each was expected")
        return self.roles[before]

    def _tell_by_tokens(self, encoder: TextEncoder, ids: torch.Tensor) -> str:
        tokens = PromptTokens(self.pipe, encoder)
        rows = [_words(tokens.tokenizer, row) for row in ids.tolist()]
        unread = self._unread.setdefault(encoder.part, {})
        if not unread:
            for role in self.roles:
                texts = texts_of(self.arguments, encoder, role == NEGATIVE)
                streams = tokens.whole_ids(texts, role == NEGATIVE, self.arguments)
                longest = max(map(len, streams), default=0)
                words = [_words(tokens.tokenizer, stream) for stream in streams]
                prompts = len(texts_of(self.arguments, encoder, negative=False))
                unread[role] = _Unread(words, prompts, max(1, -(-longest // max(1, ids.shape[1] - 2))))
        known = [role for role in self.roles if unread[role].continues(rows)]
        if len({unread[role].ends_with(rows) for role in known}) == 1 < len(known):
            # both are cut into as many pieces; the prompt's come first, each before its negative one or all of them
            pieces, empty = max(item.pieces for item in unread.values()), not any(rows)
            known = [role for role in known if unread[role].read < pieces]
            fewest = min((unread[role].read for role in known), default=0)
            if empty or all(unread[role].read == fewest for role in known):
                known = [role for role in known if unread[role].read == fewest][:1]
        if len(known) != 1:
            what = "both the prompt and the negative prompt" if known else "neither"
            raise self._unknown(encoder, f"gave the {encoder.part} tokens that go on with {what}")
        unread[known[0]].advance(rows)
        return known[0]

    def _unknown(self, encoder: TextEncoder, found: str) -> UnsupportedError:
        return UnsupportedError(
            f"the encode_prompt of {type(self.pipe).__name__} {found}, so whose rows they are is unknown: encode the "
            "prompt inside steer(), guidance off, and the negative prompt outside, and pass both as embeddings"
        )


@dataclass
class _Unread:
    """What is left of the prompts, or of the negative prompts, for one text encoder.

    Args:
        texts: the tokens of each that make up words.
        prompts: how many there are; a single negative prompt may be read once for each.
        pieces: how many pieces they are cut into, if each fills a call.
    """

    texts: list[list[int]]
    prompts: int
    pieces: int
    read: int = 0

    def continues(self, rows: list[list[int]]) -> bool:
        """Whether the tokens of a call are the next ones; none are where none are left."""
        if len(self.texts) == 1 and len(rows) == self.prompts:
            self.texts = self.texts * len(rows)
        return len(rows) == len(self.texts) and all(
            text[: len(row)] == row if row else not text for text, row in zip(self.texts, rows, strict=True)
        )

    def ends_with(self, rows: list[list[int]]) -> bool:
        """Whether nothing is left after a call."""
        return all(len(text) == len(row) for text, row in zip(self.texts, rows, strict=True))

    def advance(self, rows: list[list[int]]) -> None:
        """Count the tokens of a call as read."""
        self.texts = [text[len(row) :] for text, row in zip(self.texts, rows, strict=True)]
        self.read += 1


def _running_method(pipe: Any) -> FrameType | None:
    """The innermost `encode_prompt` of diffusers that runs for a pipeline; None where none does."""
    kinds = [kind for kind in type(pipe).__mro__ if kind.__module__.startswith("diffusers.")]
    methods = [inspect.unwrap(vars(kind)[name]) for kind in kinds for name in ENCODE if name in vars(kind)]
    codes = {getattr(method, "__code__", None) for method in methods}
    frame: FrameType | None = sys._getframe()
    while frame is not None and not (frame.f_code in codes and frame.f_locals.get("self") is pipe):
        frame = frame.f_back
    return frame


def texts_of(arguments: Mapping[str, Any], encoder: TextEncoder, negative: bool) -> list[str]:
    """The prompts, or negative prompts, that a text encoder is given, by the arguments of `encode_prompt`.

    Example:
        >>> texts_of({"prompt": "a dog", "negative_prompt": None}, TextEncoder(), negative=True)
        ['']
    """
    first = "negative_prompt" if negative else "prompt"
    own = encoder.negative_argument if negative else encoder.negative_argument.removeprefix("negative_")
    return as_list(arguments.get(own) or arguments.get(first))


def as_list(text: str | Sequence[str] | None) -> list[str]:
    """Prompts as a pipeline takes them, as a list."""
    return [text or ""] if text is None or isinstance(text, str) else list(text)


def _words(tokenizer: Any, ids: Sequence[int]) -> list[int]:
    """Tokens that have a letter: pipelines that weight words take brackets and numbers out, others pad."""
    special = set(tokenizer.all_special_ids)
    return [i for i in ids if i not in special and _has_letter(str(tokenizer.convert_ids_to_tokens(i)))]


@lru_cache(maxsize=4096)
def _has_letter(token: str) -> bool:
    return any(map(str.isalpha, token.removesuffix("</w>")))
