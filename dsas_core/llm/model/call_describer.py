"""Each call of a language model, described as a `Call`: rows, prompts, and a mask of the positions.

Pads and the first token of each row (the attention sink, BOS where there is one) never count: they are neither read
nor written. All is derived from what the model is called with (ids, attention mask, cache), never by counting calls.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import DSASError, PromptError, UnsupportedError
from ...model.hooks import Call, DescribeCall

PHASES = ("prompt", "generation", "all")


@dataclass
class _Text:
    """What is known about the text that one root is working on."""

    ids: torch.Tensor | None = None  # of the last call without a cache
    prompt: int = 0  # positions of the prompt
    length: int = 0  # positions seen
    decoding: bool = False
    key: torch.Tensor | None = None  # the newest cached key when the last call began, and its position
    key_at: int = 0
    cache: Callable[[], Any] | None = None  # a weak reference to the cache that holds the text
    done: torch.Tensor | None = None  # bool [batch], rows that have written their end token


class CallDescriber:
    """Describes the calls of a language model.

    Two things look like tokens that the model writes, and count as such: a further turn read behind an answer on the
    same cache, and a last chunk of one token of a prompt that is read in chunks. Steer each turn anew to avoid it.

    Args:
        phase: "prompt" counts the tokens that were given, "generation" those that the model wrote itself, "all" both.
            An encoder's tokens are given, a decoder's behind it are written.
        prompts: how many prompts the strengths are given for; a batch of several times as many rows (beams, samples)
            is divided among them. None where each row is a prompt of its own.
        on_text: called with the root's name when a new text begins.
        stateful: whether probes go by what came before: then rows that change places between two tokens, as in beam
            search, and tokens that are taken back, as in assisted decoding, raise an UnsupportedError.
        ends: end tokens; what a row has behind one that it wrote is padding.
        limit: positions that the model can take; more raise a PromptError. 0 is no limit.
        on_tokens: called at each call with the root's name, the position of its first token, ids [batch, positions] (or
            None), and which of them count.
    """

    def __init__(
        self,
        phase: str = "all",
        prompts: Callable[[], int] | None = None,
        on_text: Callable[[str], None] | None = None,
        stateful: bool = False,
        limit: int = 0,
        ends: Sequence[int] = (),
        on_tokens: Callable[[str, int, torch.Tensor | None, torch.Tensor], None] | None = None,
    ) -> None:
        if phase not in PHASES:
            raise DSASError(f"phase {phase!r}: expected one of {', '.join(PHASES)}")
        self.phase, self.prompts, self.on_text, self.on_tokens = phase, prompts, on_text, on_tokens
        self.stateful, self.limit, self.ends = stateful, limit, list(ends)
        self._texts: dict[str, _Text] = {}

    def describe(self, root: str) -> DescribeCall:
        """The function that describes the calls of one root, for `hooks.visit`."""

        def describe_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
            return self._call(root, args, kwargs)

        return describe_call

    def _call(self, root: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        ids = kwargs["input_ids"] if kwargs.get("input_ids") is not None else args[0] if args else None
        given = ids if ids is not None else kwargs.get("inputs_embeds")
        if given is None:
            raise UnsupportedError("the model was called without input_ids and inputs_embeds: nothing tells its tokens")
        batch, count = given.shape[:2]
        cache = kwargs.get("past_key_values")
        past = int(cache.get_seq_length()) if cache is not None else 0
        if self.limit and past + count > self.limit:
            raise PromptError(
                f"{past + count} tokens, but the model takes {self.limit}: shorten the prompt or the answer"
            )
        text = self._follow(root, ids, count, past, cache)
        if self.stateful and past:
            _refuse_moved(text, cache, past)
        real = _real(kwargs.get("attention_mask"), batch, count, past, given.device)
        first = (real.cumsum(1) == 1) & real
        mask = (real & ~first)[:, past : past + count]
        in_prompt = (torch.arange(past, past + count, device=mask.device) < text.prompt).expand_as(mask)
        if ids is not None and self.ends:
            mask = mask & ~self._finished(text, ids, ~in_prompt)
        if self.on_tokens is not None:
            self.on_tokens(root, past, ids, mask)
        read = mask
        if self.phase != "all":
            mask = mask & (in_prompt if self.phase == "prompt" else ~in_prompt)
        prompts = self.prompts() if self.prompts is not None else 1
        if prompts > 1 and batch % prompts:
            raise DSASError(f"strengths are given for {prompts} prompts, but the call has {batch} rows")
        share = batch // prompts if prompts > 1 else 1
        owners = torch.arange(batch, device=given.device) // share
        return Call(torch.ones(batch, device=given.device), owners, None, mask.float(), in_prompt.float(), read.float())

    def _finished(self, text: _Text, ids: torch.Tensor, written: torch.Tensor) -> torch.Tensor:
        """Positions behind the end token that a row has written, bool [batch, positions]: generation pads them."""
        over = torch.stack([ids == end for end in self.ends]).any(0) & written
        after = over.cumsum(1) - over.long() > 0
        if text.done is not None and text.length > ids.shape[1]:
            after = after | text.done[:, None]
            over = over | text.done[:, None]
        text.done = over.any(1)
        return after

    def _follow(self, root: str, ids: torch.Tensor | None, count: int, past: int, cache: Any) -> _Text:
        """Go on with the text that the root was working on, or begin a new one; where its prompt ends."""
        text = self._texts.get(root)
        if past:
            goes_on = text is not None and text.cache is not None and text.cache() is cache
        else:
            goes_on = text is not None and cache is None and root != "encoder" and _extends(text.ids, ids)
        if text is None or not goes_on:
            if past and self.stateful:
                raise UnsupportedError(
                    f"the cache holds {past} tokens that the gate did not read: steer() before they are read, or learn "
                    "with form token"
                )
            text = self._texts[root] = _Text(prompt=0 if root == "decoder" else past + count)
            text.cache = weakref.ref(cache) if cache is not None else None
            if self.on_text is not None:
                self.on_text(root)
        elif count > 1 and not text.decoding and past == text.length and root != "decoder":
            text.prompt += count  # a long prompt that comes in chunks
        else:
            text.decoding = True
        if self.stateful and past < text.length and past > 0:
            raise UnsupportedError(
                "tokens were taken back (assisted decoding?), which a gate that goes by what came before cannot "
                "follow: learn with form token"
            )
        text.length = past + count
        text.ids = ids if past == 0 else None
        return text


def _refuse_moved(text: _Text, cache: Any, past: int) -> None:
    """Raise an UnsupportedError when the rows of the cache have changed places since the last call."""
    cache = getattr(cache, "self_attention_cache", cache)
    layers = getattr(cache, "layers", [])
    keys = getattr(layers[-1], "keys", None) if layers else None  # the last one's keys depend on the whole row
    if keys is None or not keys.numel():
        return

    def place(position: int) -> int:
        """Where the key of a position is; a window that is full has dropped the first ones."""
        return position if past <= keys.shape[2] else position - past + keys.shape[2]

    held = text.key if text.key is not None and len(text.key) == len(keys) and place(text.key_at) >= 0 else None
    if held is not None and not torch.equal(keys[:, :, place(text.key_at)], held):
        raise UnsupportedError(
            "rows changed places between two tokens (beam search?), which a gate that goes by what came before cannot "
            "follow: learn with form token, or sample"
        )
    text.key, text.key_at = keys[:, :, place(past - 1)].clone(), past - 1


def _extends(before: torch.Tensor | None, ids: torch.Tensor | None) -> bool:
    """Whether a call without a cache repeats the last one's tokens and adds one."""
    if before is None or ids is None or before.shape[0] != ids.shape[0] or ids.shape[1] != before.shape[1] + 1:
        return False
    return bool((ids[:, :-1] == before).all())


def _real(mask: Any, batch: int, count: int, past: int, device: torch.device) -> torch.Tensor:
    """Which of the positions up to the end of this call are no padding, bool [batch, past + count]."""
    length = past + count
    if isinstance(mask, dict):  # one mask for each kind of attention: the full one sees every real token
        mask = mask.get("full_attention", next(iter(mask.values())))
    if not isinstance(mask, torch.Tensor):
        return torch.ones(batch, length, dtype=torch.bool, device=device)
    if mask.ndim == 4:  # [batch, 1, queries, keys]: real is what any token may see
        visible = mask[:, 0]
        mask = (visible if visible.dtype == torch.bool else visible >= 0).any(1)
    real = mask.to(device).bool()
    if real.shape[1] < length:  # only this call's own part was given
        before = torch.ones(len(real), length - real.shape[1], dtype=torch.bool, device=device)
        real = torch.cat([before, real], 1)
    return real[:, :length].expand(batch, -1)
