"""Describes each forward pass of a language model as a `Call`: rows, prompts, and masks of positions.

Padding and the first token of each row (the attention sink; BOS where there is one) are neither read nor steered.
Everything is derived from the arguments of the forward pass (ids, attention mask, cache), and from the cache that it
returns where it was given none; never by counting calls.

A cached text is followed when its rows are repeated, dropped or reordered between two calls (samples of one prompt,
beams): the newest cached key of a row, which depends on all of its tokens, tells which row it continues.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ...errors import DSASError, PromptError, UnsupportedError
from ...model.hooks import Call, DescribeCall
from ...probes.running import generating_positions

PHASES = ("prompt", "generation", "all")


@dataclass
class _TextState:
    """The text that one root is working on.

    Args:
        prompt_length: number of positions of the prompt.
        length: number of positions so far.
        rows: number of rows in the last call.
        generating: whether the prompt is complete.
        cache: weak reference to the cache of the text, whether the last call was given it or made it.
        ids: token ids of the last call, if it was given no filled cache.
        finished: bool [batch], rows that have generated their end token.
        key: the newest cached key of each row when the last call ended; None where it is not known.
    """

    prompt_length: int = 0
    length: int = 0
    rows: int = 0
    generating: bool = False
    cache: Callable[[], Any] | None = None
    ids: torch.Tensor | None = None
    finished: torch.Tensor | None = None
    key: torch.Tensor | None = None


class CallDescriber:
    """Describes the forward passes of a language model.

    Two kinds of prompt tokens cannot be told from generated ones and are treated as generated: a further turn on the
    cache of the turn before, and the last chunk of a chunked prefill if it is a single token. Call `steer` for each
    turn to avoid it. And where a prompt is read in chunks, only the next call tells whether one was the last: the end
    of each counts as a position that writes a token.

    Args:
        phase: which positions are steered: "generation" those that write the answer, from the last position of the
            prompt, which writes the first token, to the last token; "prompt" the others of the prompt; "all" both. In
            an encoder all are prompt, in its decoder all write.
        prompts: returns the number of prompts for which strengths are given; a batch of a multiple of that many rows
            (beams, samples) is divided among them. None where each row is a prompt.
        on_text: called with the name of the root when a new text begins.
        stateful: whether a probe depends on earlier positions. Then tokens that are taken back, as in assisted
            decoding, and rows of which no cached key tells what they continue raise an UnsupportedError.
        limit: highest number of positions that the model takes; more raise a PromptError. 0 for no limit.
        ends: ids of end tokens; what follows a generated one in its row is padding.
        on_tokens: called in each forward pass with the name of the root, the position of its first token, ids
            [batch, positions] or None, and a mask [batch, positions] of the tokens that are read.
        on_rows: called where rows of a cached text were repeated, dropped or reordered since the last call, with the
            name of the root and, for each row, the index of the row that it continues, int64 [batch]; `finish` has to
            be called after each forward pass for that. None follows no rows.

    Raises:
        DSASError: no such phase.

    Example:
        >>> describe = CallDescriber().describe("model")
        >>> call = describe((), {"input_ids": torch.tensor([[1, 2, 3]])})
        >>> call.mask.tolist(), call.prompt.tolist()
        ([[0.0, 1.0, 1.0]], [[1.0, 1.0, 1.0]])
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
        on_rows: Callable[[str, torch.Tensor], None] | None = None,
    ) -> None:
        if phase not in PHASES:
            raise DSASError(f"phase {phase!r}: expected one of {', '.join(PHASES)}")
        self.phase, self.prompts = phase, prompts
        self.on_text, self.on_tokens, self.on_rows = on_text, on_tokens, on_rows
        self.stateful, self.limit, self.ends = stateful, limit, list(ends)
        self._texts: dict[str, _TextState] = {}

    def describe(self, root: str) -> DescribeCall:
        """The function that describes the forward passes of one root, for `hooks.visit`."""
        return partial(self._describe_call, root)

    def finish(self, root: str, output: Any) -> None:
        """After a forward pass of a root: keep what its text and rows can be recognised by in the next.

        Args:
            root: name of the root.
            output: what it returned.
        """
        text = self._texts[root]
        made = _returned_cache(output)
        if made is not None:
            text.cache = weakref.ref(made)
        cache = text.cache() if text.cache is not None and self.on_rows is not None else None
        key = _newest_keys(cache, text.length)
        text.key = None if key is None else key.clone()

    def _describe_call(self, root: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        ids = kwargs["input_ids"] if kwargs.get("input_ids") is not None else args[0] if args else None
        given = ids if ids is not None else kwargs.get("inputs_embeds")
        if given is None:
            raise UnsupportedError("the model was called without input_ids and inputs_embeds: pass one of them")
        batch, count = given.shape[:2]
        cache = kwargs.get("past_key_values")
        past = int(cache.get_seq_length()) if cache is not None else 0
        if self.limit and past + count > self.limit:
            raise PromptError(
                f"{past + count} tokens, but the model takes {self.limit}: shorten the prompt or the answer"
            )
        text = self._update_text(root, ids, batch, count, past, cache)
        real = _real_positions(kwargs.get("attention_mask"), batch, count, past, given.device)
        first = (real.cumsum(1) == 1) & real
        mask = (real & ~first)[:, past : past + count]
        in_prompt = (torch.arange(past, past + count, device=mask.device) < text.prompt_length).expand_as(mask)
        if ids is not None and self.ends:
            mask = mask & ~self._behind_end(text, ids, ~in_prompt)
        if self.on_tokens is not None:
            self.on_tokens(root, past, ids, mask)
        read = mask
        if self.phase != "all":
            writing = generating_positions(mask.float(), in_prompt.float()) > 0 if root != "encoder" else ~in_prompt
            mask = mask & (writing if self.phase == "generation" else ~writing)
        prompts = self.prompts() if self.prompts is not None else 1
        rows, rest = divmod(batch, prompts) if prompts > 1 else (1, 0)
        if rest:
            raise DSASError(f"strengths are given for {prompts} prompts, but the call has {batch} rows")
        owners = torch.arange(batch, device=given.device) // rows
        return Call(torch.ones(batch, device=given.device), owners, None, mask.float(), in_prompt.float(), read.float())

    def _behind_end(self, text: _TextState, ids: torch.Tensor, generated: torch.Tensor) -> torch.Tensor:
        """Positions behind a generated end token, which `generate` pads, bool [batch, positions]."""
        end = torch.stack([ids == token for token in self.ends]).any(0) & generated
        behind = end.cumsum(1) - end.long() > 0
        if text.finished is not None and text.length > ids.shape[1]:
            behind = behind | text.finished[:, None]
        text.finished = (end | behind).any(1)
        return behind

    def _update_text(
        self, root: str, ids: torch.Tensor | None, batch: int, count: int, past: int, cache: Any
    ) -> _TextState:
        """Continue the text of the root, or begin a new one."""
        text = self._texts.get(root)
        if past:
            continues = text is not None and text.cache is not None and text.cache() is cache
        else:
            continues = text is not None and cache is None and root != "encoder" and _extends(text.ids, ids)
        if text is None or not continues:
            if past and self.stateful:
                raise UnsupportedError(
                    f"the cache holds {past} tokens that the gate did not read, or read before another text: steer() "
                    "before they are read, one text after the other, or learn with form token"
                )
            text = self._texts[root] = _TextState(0 if root == "decoder" else past + count, rows=batch)
            text.cache = weakref.ref(cache) if cache is not None else None
            if self.on_text is not None:
                self.on_text(root)
        elif count > 1 and not text.generating and past == text.length and root != "decoder":
            text.prompt_length += count  # chunked prefill
        else:
            text.generating = True
        if self.stateful and past < text.length and past > 0:
            raise UnsupportedError(
                "tokens were taken back (assisted decoding?), which a gate that goes by what came before cannot "
                "follow: learn with form token"
            )
        if past:
            self._follow_rows(root, text, batch, past, cache)
        text.length, text.rows = past + count, batch
        text.ids = ids if past == 0 else None
        return text

    def _follow_rows(self, root: str, text: _TextState, batch: int, past: int, cache: Any) -> None:
        """Find rows that were repeated, dropped or reordered since the last call, and let what is kept follow them."""
        before, now = text.key, _newest_keys(cache, past) if past == text.length else None
        if before is None or now is None:
            known = batch == text.rows
        elif now.shape == before.shape and torch.equal(now, before):
            known = True
        else:
            same = (now[:, None] == before).flatten(2).all(-1)  # [rows, rows before]
            known = bool(same.any(1).all())
            if known and self.on_rows is not None:
                rows = same.int().argmax(1)  # of several the first: they have read the same
                text.finished = None if text.finished is None else text.finished[rows]
                self.on_rows(root, rows)
        if known:
            return
        if self.stateful:
            raise UnsupportedError(
                f"the cache does not tell which of {text.rows} rows each of {batch} continues, which a gate that goes "
                "by what came before has to know: keep the rows of a batch, or learn with form token"
            )
        text.finished = None
        if self.on_text is not None:
            self.on_text(root)


def _newest_keys(cache: Any, length: int) -> torch.Tensor | None:
    """The newest key of each row in a cache of `length` tokens, [rows, heads, width]; None where it shows none.

    It is of the last layer, and so depends on the whole row.
    """
    cache = getattr(cache, "self_attention_cache", cache)
    layers = getattr(cache, "layers", [])
    keys = getattr(layers[-1], "keys", None) if layers else None
    if keys is None or not keys.numel():
        return None
    return keys[:, :, min(length, keys.shape[2]) - 1]  # a full sliding window has dropped the first keys


def _returned_cache(output: Any) -> Any:
    """The cache in what a forward pass returned; None without one."""
    parts = output if isinstance(output, tuple) else (getattr(output, "past_key_values", None),)
    return next((part for part in parts if hasattr(part, "get_seq_length")), None)


def _extends(before: torch.Tensor | None, ids: torch.Tensor | None) -> bool:
    """Whether a call without cache has the tokens of the last call and one more."""
    if before is None or ids is None or before.shape[0] != ids.shape[0] or ids.shape[1] != before.shape[1] + 1:
        return False
    return bool((ids[:, :-1] == before).all())


def _real_positions(mask: Any, batch: int, count: int, past: int, device: torch.device) -> torch.Tensor:
    """Positions up to the end of this call that are no padding, bool [batch, past + count]."""
    length = past + count
    if isinstance(mask, dict):  # one mask per kind of attention: the full one has every real token
        mask = mask.get("full_attention", next(iter(mask.values())))
    if not isinstance(mask, torch.Tensor):
        return torch.ones(batch, length, dtype=torch.bool, device=device)
    if mask.ndim == 4:  # [batch, 1, queries, keys]: keys that some query attends to
        visible = mask[:, 0]
        mask = (visible if visible.dtype == torch.bool else visible >= 0).any(1)
    real = mask.to(device).bool()
    if real.shape[1] < length:  # the mask of this call's tokens alone
        before = torch.ones(len(real), length - real.shape[1], dtype=torch.bool, device=device)
        real = torch.cat([before, real], 1)
    return real[:, :length].expand(batch, -1)
