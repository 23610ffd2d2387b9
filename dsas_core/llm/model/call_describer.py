"""Describes each forward pass of a language model as a `Call`: rows, prompts, and masks of positions.

Padding and the first token of each row (the attention sink; BOS where there is one) are neither read nor steered.
Everything is derived from the arguments of the forward pass (`call_inputs`) and from the cache that it returns
(`texts`); never by counting calls. What they do not tell is an error where it matters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ...errors import DSASError, PromptError, UnsupportedError, quote
from ...model.hooks import Call, DescribeCall
from ...probes.running import generating_positions
from .call_inputs import (
    CallInputs,
    Packed,
    first_position,
    has_lengths,
    parameter_names,
    read_inputs,
    read_packed,
    real_positions,
    returned_cache,
)
from .runs import Runs
from .texts import Keeper, Text, Texts

PHASES = ("prompt", "generation", "all")


class CallDescriber:
    """Describes the forward passes of a language model.

    Which positions write the answer is told by `logits_to_keep` where it is given, as `generate` does: the last ones,
    whose logits are asked for. Thus drafts of assisted decoding are no prompt, and a further turn on the cache of the
    turn before is one. Where it is not given, several tokens behind a prompt are more of it (a prompt that is read in
    chunks), until a single one follows, which was written. Only the next call tells whether a chunk was the last: the
    end of each counts as a position that writes a token.

    Args:
        phase: which positions are steered: "generation" those that write the answer, from the last position of the
            prompt, which writes the first token, to the last token; "prompt" the others of the prompt; "all" both. In
            an encoder all are prompt, in its decoder all write.
        prompts: returns the number of prompts for which strengths are given; a batch of a multiple of that many rows
            (beams, samples) is divided among them. None where each row is a prompt.
        on_text: called with the name of the root when a new text begins, or another one is continued.
        stateful: whether a probe or a map depends on earlier positions. Then tokens that are taken back, as in assisted
            decoding, and rows of which no cached key tells what they continue raise an UnsupportedError.
        limit: highest number of positions that the model takes; more raise a PromptError. 0 for no limit.
        ends: ids of end tokens; what follows a generated one in its row is padding.
        on_tokens: called in each forward pass with the name of the root, the position of its first token, ids
            [batch, positions] or None, and a mask [batch, positions] of the tokens that are read.
        on_rows: called where rows of a cached text were repeated, dropped or reordered since the last call, with the
            name of the root and, for each row, the index of the row that it continues, int64 [batch]; `finish` has to
            be called after each forward pass for that. None follows no rows.
        by_prompt: whether a probe depends on where the prompt ends. Then calls that do not tell it raise an
            UnsupportedError, as they do where one phase is steered.
        latched: whether states of probes depend on positions of the prompt alone, so that what was written behind it
            may be taken back.
        keeper: keeps gates and traces of several texts at once, see `texts.Keeper`.
        runs: tells which rows are runs of one prompt; None where no probe or map goes by that.
        virtual: returns how many positions an adapter puts before each text, and whether it puts them into the cache,
            see `virtual_tokens`: they are neither read nor steered. None for none.

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
        *,
        by_prompt: bool = False,
        latched: bool = False,
        keeper: Keeper | None = None,
        virtual: Callable[[], tuple[int, bool]] | None = None,
        runs: Runs | None = None,
    ) -> None:
        if phase not in PHASES:
            raise DSASError(f"phase {quote(phase)}: expected one of {', '.join(PHASES)}")
        self.phase, self.prompts, self.on_tokens = phase, prompts, on_tokens
        self.limit, self.ends = limit, list(ends)
        self.virtual, self.runs = virtual, runs
        self.by_prompt, self.follows = by_prompt, on_rows is not None or stateful
        self._new_texts = partial(
            Texts, on_text=on_text, on_rows=on_rows, stateful=stateful, by_prompt=latched, keeper=keeper
        )
        self._texts: dict[str, Texts] = {}

    def describe(self, root: str, module: nn.Module | None = None) -> DescribeCall:
        """The function that describes the forward passes of one root, for `hooks.visit`.

        Args:
            root: name of the root.
            module: the root, whose forward tells names of positional arguments; None where only ids are given so.
        """
        self._texts[root] = self._new_texts(root)
        return partial(self._describe_call, root, ["input_ids"] if module is None else parameter_names(module))

    def finish(self, root: str, output: Any) -> None:
        """After a forward pass of a root: keep what its text and rows can be recognised by in the next.

        Args:
            root: name of the root.
            output: what it returned.
        """
        self._texts[root].end_call(returned_cache(output))

    def _describe_call(self, root: str, names: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        texts = self._texts[root]
        inputs = read_inputs(names, args, kwargs, texts.knows)
        if has_lengths(inputs):
            packed = read_packed(inputs, None, 0)
            if packed is not None:
                return self._describe_packed(root, inputs, packed)
        past = texts.count_past(inputs)
        batch, count, device = inputs.batch, inputs.count, inputs.given.device
        self._check_length(past + count)
        real = real_positions(inputs.arguments.get("attention_mask"), batch, count, past, device)
        packed = read_packed(inputs, real[:, past:], past)
        if packed is not None:
            return self._describe_packed(root, inputs, packed)
        if past == 0 and count > 1 and (begin := first_position(inputs, real)) > 1:
            raise UnsupportedError(
                f"positions begin at {begin}, but no cache holds those before: pass past_key_values, or position_ids "
                "from 0"
            )
        text, read = self._update_text(root, texts, inputs, past)
        if text.virtual:
            real = real & (torch.arange(past + count, device=device) >= text.virtual)
        first = (real.cumsum(1) == 1) & real
        mask = (real & ~first)[:, past:]
        in_prompt = (torch.arange(count, device=device) < read).expand_as(mask)
        if inputs.ids is not None and self.ends:
            mask = mask & ~self._behind_end(text, inputs.ids, ~in_prompt)
        if self.on_tokens is not None:
            self.on_tokens(root, text.start(past), inputs.ids, mask)
        writing = None
        if self.phase != "all":
            writing = generating_positions(mask.float(), in_prompt.float()) > 0 if root != "encoder" else ~in_prompt
        if self.runs is not None:
            text.groups = self.runs.find(root, inputs, text.groups, read, real[:, past:])
        return self._call(inputs, mask, in_prompt, writing, groups=text.groups, first=first[:, past:])

    def _call(
        self,
        inputs: CallInputs,
        read: torch.Tensor,
        in_prompt: torch.Tensor,
        writing: torch.Tensor | None,
        groups: torch.Tensor | None = None,
        first: torch.Tensor | None = None,
    ) -> Call:
        """The Call of positions that are read, of which one phase is steered."""
        batch, device = inputs.batch, inputs.given.device
        mask = read if writing is None else read & (writing if self.phase == "generation" else ~writing)
        prompts = self.prompts() if self.prompts is not None else 1
        rows, rest = divmod(batch, prompts) if prompts > 1 else (1, 0)
        if rest:
            raise DSASError(f"strengths are given for {prompts} prompts, but the call has {batch} rows")
        owners = torch.arange(batch, device=device)
        owners = owners // rows if rows > 1 else owners
        masks = mask.float(), in_prompt.float(), read.float()
        return Call(torch.ones(batch, device=device), owners, None, *masks, groups=groups, first=first)

    def _check_length(self, length: int) -> None:
        if 0 < self.limit < length:  # some have -1 for none
            raise PromptError(f"{length} tokens, but the model takes {self.limit}: shorten the prompt or the answer")

    def _describe_packed(self, root: str, inputs: CallInputs, packed: Packed) -> Call:
        """The Call of rows that hold several texts each, which gates without a memory read and steer one by one."""
        obstacle = ""
        if self.runs is not None:
            obstacle = "runs of one prompt that go by one another need a row for each"
        elif self.follows or self.by_prompt:
            obstacle = "a trace and a gate that goes by what came before need a row for each"
        elif self.prompts is not None and self.prompts() > 1:
            obstacle = "strengths are given for each row"
        elif self.phase != "all" and packed.writing is None:
            obstacle = f"phase {self.phase} needs to know where each one's prompt ends"
        if obstacle:
            raise UnsupportedError(
                f"one row holds several texts (continuous batching, packing), but {obstacle}: give each text a row of "
                "its own, as generate does with padding"
            )
        return self._call(inputs, packed.counted, packed.prompt, packed.writing if self.phase != "all" else None)

    def _behind_end(self, text: Text, ids: torch.Tensor, generated: torch.Tensor) -> torch.Tensor:
        """Positions behind a generated end token, which `generate` pads, bool [batch, positions]."""
        end = torch.stack([ids == token for token in self.ends]).any(0) & generated
        behind = end.cumsum(1) - end.long() > 0
        if text.finished is not None and text.now.length > ids.shape[1]:
            behind = behind | text.finished[:, None]
        text.finished = (end | behind).any(1)
        return behind

    def _update_text(self, root: str, texts: Texts, inputs: CallInputs, past: int) -> tuple[Text, int]:
        """Continue the text of the root, or begin a new one; and how many of the call's positions are its prompt's."""
        virtual, in_cache = (0, False) if self.virtual is None else self.virtual()
        continued = texts.find(inputs, past, virtual if in_cache else 0)
        text, count = texts.current, inputs.count
        assert text is not None
        if virtual and not continued and (past == virtual if in_cache else past == 0 and inputs.ids is None):
            text.virtual, text.prefixed = virtual, in_cache
        if continued and past == 0:  # all of the text again
            read, text.generating = text.prompt_length, True
        else:
            read = 0 if root == "decoder" else self._count_prompt(text, inputs, continued)
            if read:
                if text.generating:  # a further turn
                    text.parts, text.finished = [], None
                text.parts = [*text.parts, count] if continued else [count]
                text.prompt_length, text.told = past + read, inputs.asked is not None
            text.generating = read < count
        text.now.length, text.now.rows = past + count, inputs.batch
        if not continued or (inputs.cache is not None and text.cache is None):
            text.hold(inputs.cache)
        text.ids = inputs.ids if past == 0 else None
        return text, read

    def _count_prompt(self, text: Text, inputs: CallInputs, continued: bool) -> int:
        """How many positions of a call are the prompt's.

        Raises:
            UnsupportedError: it matters, and the call does not tell.
        """
        count, asked = inputs.count, inputs.asked
        matters = self.by_prompt or self.phase != "all"
        if asked is not None and count > 1 and (asked < count or continued):
            return count - asked + 1 if asked < count else 0
        if not continued:
            if matters and asked is not None and count > 1:
                raise UnsupportedError(
                    f"logits_to_keep={asked} asks for the logits of all tokens, which does not tell where the prompt "
                    "ends: leave it out if they are all the prompt's"
                )
            return count
        if count > 1:
            return 0 if text.generating else count
        sizes = text.parts
        if matters and asked is not None and not text.generating and len(sizes) > 1 and min(sizes) == max(sizes) > 1:
            raise UnsupportedError(
                f"one token follows a prompt of {len(sizes)} chunks of {sizes[0]} tokens each, and may be its last or "
                "the first that was written: choose a prefill_chunk_size that leaves a rest of several tokens"
            )
        return 0
