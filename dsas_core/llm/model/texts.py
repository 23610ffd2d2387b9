"""Which text a forward pass of a language model continues, if any: told by its cache, never by counting calls.

A cache is known by itself or, where it is a copy or a tuple, by the newest keys that it holds, which depend on all
tokens of a row. They also tell rows that were repeated, dropped or reordered between two calls (samples of one prompt,
beams). Tokens that were taken back (rejected drafts, a prompt that is used again) leave the text as it was before them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from ...errors import UnsupportedError
from .call_inputs import CallInputs, cache_length, handle_of, is_filled, newest_keys


class Keeper(Protocol):
    """Keeps what belongs to a text while a root works on another, and what gates had read when a call ended."""

    def save_gates(self, root: str) -> Any:
        """The states of the gates of a root."""

    def load_gates(self, root: str, saved: Any) -> None:
        """Set the states of the gates of a root to those that were saved."""

    def save_trace(self, root: str) -> Any:
        """The trace of a root's text."""

    def load_trace(self, root: str, saved: Any) -> None:
        """Continue with a trace that was saved."""

    def take_back(self, root: str, length: int) -> None:
        """Remove what a trace has of a text from position `length` on."""


@dataclass
class Mark:
    """A text when a call ended.

    Args:
        length: number of positions.
        rows: number of rows.
        key: what tells each row, see `newest_keys`; None where it is not known.
        gates: the states of gates, as saved; None where they are those that gates have now.
    """

    length: int
    rows: int
    key: torch.Tensor | None = None
    gates: Any = None


@dataclass
class Text:
    """A text that a root works on.

    Args:
        now: its end.
        prompt_length: number of positions of the prompt, its end included.
        generating: whether the prompt is complete.
        told: whether the last call that read of the prompt said which of its positions write.
        parts: sizes of the calls that the prompt was read in.
        marks: where these calls ended, by length.
        cache: weak reference to what its cache is recognised by.
        ids: token ids of the last call, if it was given no filled cache.
        finished: bool [rows], rows that have generated their end token.
        trace: its trace, as saved, while the root works on another text.
        virtual: number of positions before the text that hold no tokens of it, but those of an adapter.
        prefixed: whether these are in the cache when it begins.
        groups: int64 [rows], one number for rows that are runs of one prompt; None where nobody asks.
    """

    now: Mark
    prompt_length: int = 0
    generating: bool = False
    told: bool = False
    parts: list[int] = field(default_factory=list)
    marks: dict[int, Mark] = field(default_factory=dict)
    cache: Callable[[], Any] | None = None
    ids: torch.Tensor | None = None
    finished: torch.Tensor | None = None
    trace: Any = None
    virtual: int = 0
    prefixed: bool = False
    groups: torch.Tensor | None = None

    def has(self, handle: Any) -> bool:
        """Whether it is the text of the cache with this handle."""
        return handle is not None and self.cache is not None and self.cache() is handle

    def start(self, past: int) -> int:
        """The position in the text of what comes `past` positions behind the beginning of its cache."""
        return past - self.virtual if self.prefixed else past

    def hold(self, cache: Any) -> None:
        """Recognise the text by a cache from now on."""
        handle = None if cache is None else handle_of(cache)
        self.cache = None if handle is None else weakref.ref(handle)


class Texts:
    """The texts of one root: that of its last call, and others whose caches are alive.

    Args:
        root: name of the root.
        on_text: called with the name of the root when the text changes.
        on_rows: called with the name of the root and the rows that the rows of a call continue.
        stateful: whether a gate depends on earlier positions.
        by_prompt: whether all such gates depend on positions of the prompt alone.
        keeper: see there; without one, gates and traces know the last text only.
    """

    def __init__(
        self,
        root: str,
        on_text: Callable[[str], None] | None,
        on_rows: Callable[[str, torch.Tensor], None] | None,
        stateful: bool,
        by_prompt: bool,
        keeper: Keeper | None,
    ) -> None:
        self.root, self.on_text, self.on_rows = root, on_text, on_rows
        self.stateful, self.by_prompt, self.keeper = stateful, by_prompt, keeper
        self.current: Text | None = None
        self._others: list[Text] = []

    # ---- before a call ----------------------------------------------------------------------------------------------

    def knows(self, value: Any) -> bool:
        """Whether a value is the cache of a text."""
        return self._held_by(value) is not None

    def count_past(self, inputs: CallInputs) -> int:
        """Number of positions before those of a call.

        Raises:
            UnsupportedError: what holds them does not tell it.
        """
        cache = inputs.cache
        if cache is None:
            past = inputs.past_told() if self.root != "encoder" else 0
            if past and (self.current is None or self.current.now.length != past):
                raise UnsupportedError(
                    f"by cache_position or attention_mask, {past} tokens come before, but no cache holds them: pass "
                    "past_key_values, or all tokens"
                )
            return past
        if getattr(cache, "is_compileable", False) and isinstance(inputs.arguments.get("cache_position"), torch.Tensor):
            return inputs.past_told()  # old static caches count what an earlier text has left in them
        length = cache_length(cache)
        if length is not None:
            return length
        if not is_filled(cache):
            return 0
        known = self._held_by(cache)
        if known is None and (key := newest_keys(cache, 0)) is not None:  # a copy
            known = next((text for text in self._all() if _rows_in(text.now.key, key) is not None), None)
        past = known.now.length if known is not None else inputs.past_told()
        if not past:
            raise UnsupportedError(
                f"a filled {type(cache).__name__} does not tell how many tokens it holds, and was not filled in this "
                "steer() block: steer before the text begins, or pass cache_position"
            )
        return past

    def find(self, inputs: CallInputs, past: int, prefix: int = 0) -> bool:
        """Make the text that a call continues the current one, or begin a new one.

        Args:
            inputs: of the call.
            past: number of positions before.
            prefix: number of positions that an adapter puts into the cache before a text begins.

        Returns:
            Whether a text is continued.

        Raises:
            UnsupportedError: a gate depends on what the call does not tell.
        """
        if past:
            text = self.current if inputs.cache is None else self._find_cached(inputs.cache, past)
        else:
            text = self._find_repeated(inputs)
        if text is None or (self.stateful and self.keeper is None and text is not self.current):
            if past and past != prefix and self.stateful:
                raise UnsupportedError(
                    f"the cache holds {past} tokens that the gate did not read, or read before another text: steer() "
                    "before they are read, one text after the other, or learn with form token"
                )
            self._switch(Text(Mark(past, inputs.batch)), new=True)
            return False
        self._switch(text)
        if past:
            if past < text.now.length:
                self._take_back(text, past)
            self._follow_rows(text, inputs, past)
        return True

    def _held_by(self, cache: Any) -> Text | None:
        """The text of this very cache."""
        handle = handle_of(cache)
        if self.current is not None and self.current.has(handle):
            return self.current
        return next((text for text in self._others if text.has(handle)), None)

    def _all(self) -> list[Text]:
        return [*self._others, *([] if self.current is None else [self.current])]

    def _find_cached(self, cache: Any, past: int) -> Text | None:
        """The text of a filled cache: by the cache itself, else by what it holds."""
        text = self._held_by(cache)
        if text is not None:
            return text if past <= text.now.length else None  # None: it was filled elsewhere
        key = newest_keys(cache, past)
        if key is None:
            return None
        for text in reversed(self._all()):
            for mark in (text.now, *text.marks.values()):
                if mark.length == past and _rows_in(mark.key, key) is not None:
                    return text if mark is text.now and not self._lives(text) else self._branch(text, mark)
        return None

    def _lives(self, text: Text) -> bool:
        return text.cache is not None and text.cache() is not None

    def _branch(self, text: Text, mark: Mark) -> Text:
        """A text that goes on from where another was when one of its calls ended."""
        if text is self.current:
            self._save(text)
        now = replace(text.now, key=mark.key) if mark is text.now else mark
        generating = text.generating and mark.length >= text.prompt_length and mark is text.now
        marks = {length: kept for length, kept in text.marks.items() if length <= mark.length}
        return replace(
            text,
            now=replace(now),
            prompt_length=min(text.prompt_length, mark.length),
            generating=generating,
            marks=marks,
            parts=list(text.parts[: len(marks)]),
            cache=None,
            finished=text.finished if mark is text.now else None,
        )

    def _find_repeated(self, inputs: CallInputs) -> Text | None:
        """The text of a call without a filled cache that has the tokens of the last call, and one more."""
        text, ids, cache = self.current, inputs.ids, inputs.cache
        if text is None or text.ids is None or ids is None or self.root == "encoder":
            return None
        if cache is not None and not (text.has(handle_of(cache)) and not is_filled(cache)):  # a model may not fill it
            return None
        if ids.shape[1] != text.ids.shape[1] + 1:
            return None
        rows = _rows_in(text.ids, ids[:, :-1])
        if rows is not None and (len(rows) != text.now.rows or not torch.equal(rows, _in_order(rows))):
            text.finished = None if text.finished is None else text.finished[rows]
            if self.on_rows is not None:
                self.on_rows(self.root, rows)
        return None if rows is None else text

    def _save(self, text: Text) -> None:
        if self.keeper is not None:
            text.now.gates, text.trace = self.keeper.save_gates(self.root), self.keeper.save_trace(self.root)

    def _switch(self, text: Text, new: bool = False) -> None:
        """Go on with a text, and keep what belongs to the last one as long as its cache is alive."""
        last = self.current
        if text is last:
            return
        if last is not None:
            if text.trace is None or text.trace is not last.trace:
                self._save(last)
            self._others.append(last)
        self._others = [other for other in self._others if other is not text and self._lives(other)]
        if self.on_text is not None:
            self.on_text(self.root)
        if not new and self.keeper is not None:
            if self.stateful:
                self.keeper.load_gates(self.root, text.now.gates)
            self.keeper.load_trace(self.root, text.trace)
            self.keeper.take_back(self.root, text.start(text.now.length))
        text.now.gates = text.trace = None
        self.current = text

    def _take_back(self, text: Text, past: int) -> None:
        """Let a text be as it was at an earlier length."""
        mark = text.marks.get(past)
        if mark is not None and mark.gates is not None and self.keeper is not None:
            self.keeper.load_gates(self.root, mark.gates)
        elif self.stateful and not (self.by_prompt and past >= text.prompt_length):
            raise UnsupportedError(
                "tokens were taken back (assisted decoding?), which a gate or map that goes by what came before cannot "
                "follow: write without drafts, or learn with form token"
            )
        if self.keeper is not None:
            self.keeper.take_back(self.root, text.start(past))
        if past < text.prompt_length:
            text.prompt_length, text.generating = past, False
            text.marks = {length: kept for length, kept in text.marks.items() if length <= past}
        text.now = Mark(past, text.now.rows) if mark is None else replace(mark, gates=None)
        text.finished = None

    def _follow_rows(self, text: Text, inputs: CallInputs, past: int) -> None:
        """Find rows that were repeated, dropped or reordered since the last call, and let what is kept follow them."""
        batch, before, key = inputs.batch, text.now.key, None
        if inputs.cache is not None and (self.stateful or self.on_rows is not None):
            key = newest_keys(inputs.cache, past)
        if key is None or before is None:
            known = batch == text.now.rows and (batch == 1 or not self.stateful)
        elif before.shape == key.shape and before.device == key.device and torch.equal(before, key):
            return
        else:
            rows = _rows_in(before, key)
            known = rows is not None
            if rows is not None and (len(rows) != text.now.rows or not torch.equal(rows, _in_order(rows))):
                text.finished = None if text.finished is None else text.finished[rows]
                if self.on_rows is not None:
                    self.on_rows(self.root, rows)
        if known:
            return
        if self.stateful:
            raise UnsupportedError(
                f"the cache does not tell which of {text.now.rows} rows each of {batch} continues, which a gate or map "
                "that goes by what came before has to know: keep the rows of a batch, or learn with form token"
            )
        text.finished = None
        if self.on_text is not None:
            self.on_text(self.root)

    # ---- after a call -----------------------------------------------------------------------------------------------

    def end_call(self, cache: Any) -> None:
        """Keep what the current text and its rows can be recognised by.

        Args:
            cache: what the call returned; None where it returned none.
        """
        text = self.current
        if text is None:
            return
        if cache is not None:
            text.hold(cache)
        elif text.cache is not None:
            cache = text.cache()
        key = None if cache is None else newest_keys(cache, text.now.length)
        text.now.key = None if key is None else key.clone()
        if not text.generating:
            gates = self.keeper.save_gates(self.root) if self.keeper is not None and self.stateful else None
            text.marks[text.now.length] = replace(text.now, gates=gates)


def _in_order(rows: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(rows), device=rows.device)


def _rows_in(before: torch.Tensor | None, now: torch.Tensor) -> torch.Tensor | None:
    """For each row the one of `before` that it equals, int64; None where a row equals none.

    Of several the first, but its own where that is one: they have read the same.
    """
    if before is None or before.shape[1:] != now.shape[1:]:
        return None
    before = before.to(now.device)
    if before.shape == now.shape and torch.equal(before, now):
        return torch.arange(len(now), device=now.device)
    same = (now[:, None] == before).flatten(2).all(-1)  # [rows, rows before]
    return same.int().argmax(1) if bool(same.any(1).all()) else None
