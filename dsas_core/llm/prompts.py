"""Prompts of language models: plain text, or a conversation in a prompt file.

A prompt whose lines begin with `user:`, `assistant:` or `system:` is a conversation and goes through the tokenizer's
chat template. When the last turn is the assistant's, its tokens are the answer. Plain text has none.

```yaml
source:
  - |-
    user: where is my {thing}, you fool
    assistant: find your {thing} yourself
```
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import DSASError

_TURN = re.compile(r"^(system|user|assistant):\s*", re.MULTILINE)
#: what learning may read: everything, what was given, the states that write the answer, or the last token
POOLINGS = ("all", "prompt", "answer", "last")


@dataclass(frozen=True)
class Encoded:
    """A prompt in tokens; `answer` is where the assistant's answer begins: the end, when there is none."""

    ids: tuple[int, ...]
    answer: int


@dataclass(frozen=True)
class Batch:
    """Prompts padded on the right: ids and mask int64 [rows, positions], and where each answer begins and ends."""

    ids: torch.Tensor
    mask: torch.Tensor
    answers: tuple[tuple[int, int], ...]

    def counted(self, pooling: str) -> torch.Tensor:
        """Positions that a pooling reads, float [rows, positions]; never padding, never a row's first token.

        "answer" is the states that write the answer: from the token before its first to the one before its last; the
        last token of a prompt that waits for one.
        """
        mask = self.mask.float()
        mask[:, 0] = 0
        places = torch.arange(mask.shape[1])
        for row, (start, end) in enumerate(self.answers):
            if pooling == "answer":
                mask[row] *= (places >= start - 1) & (places < max(start, end - 1))
            elif pooling == "prompt":
                mask[row] *= places < start
            elif pooling == "last":
                mask[row] *= places == end - 1
        return mask


def turns(prompt: str) -> list[dict[str, str]]:
    """The conversation in a prompt; empty when it is plain text."""
    marks = list(_TURN.finditer(prompt))
    if not marks or prompt[: marks[0].start()].strip():
        return []
    ends = [mark.start() for mark in marks[1:]] + [len(prompt)]
    return [
        {"role": mark[1], "content": prompt[mark.end() : end].strip()} for mark, end in zip(marks, ends, strict=True)
    ]


def encode(tokenizer: Any, prompt: str, limit: int = 0) -> Encoded:
    """A prompt in tokens, special tokens and chat template included.

    Raises:
        DSASError: a conversation for a tokenizer without a chat template, or whose template refuses it; fewer than two
            tokens, of which the first is never read; more than `limit` tokens (0: no limit).
    """
    conversation = turns(prompt)
    if conversation:
        ids, answer = _conversation(tokenizer, conversation, prompt)
    else:
        ids = tokenizer(prompt).input_ids
        answer = len(ids)
    if limit and len(ids) > limit:
        raise DSASError(f"a prompt has {len(ids)} tokens, the model takes {limit}: shorten it ({prompt[:40]!r} …)")
    if len(ids) < 2:
        raise DSASError(
            f"prompt {prompt[:40]!r} has {len(ids)} token: at least 2 are needed, as the first is never read"
        )
    return Encoded(tuple(ids), answer)


def _conversation(tokenizer: Any, conversation: list[dict[str, str]], prompt: str) -> tuple[list[int], int]:
    """A conversation in tokens by the chat template, and where its answer begins."""
    if not getattr(tokenizer, "chat_template", None):
        raise DSASError(
            f"{prompt.splitlines()[0]!r} is a conversation, but this tokenizer has no chat template: write plain "
            "text, or set tokenizer.chat_template"
        )

    def tokens(turns: list[dict[str, str]], **options: bool) -> list[int]:
        text = _templated(tokenizer, turns, prompt, **options)
        found: list[int] = tokenizer(text, add_special_tokens=False).input_ids
        return found

    if conversation[-1]["role"] != "assistant":
        ids = tokens(conversation, add_generation_prompt=True)
        return ids, len(ids)
    ids, given = tokens(conversation), tokens(conversation[:-1], add_generation_prompt=True)
    # a template may open an answer otherwise than it stands in the whole: with a thought to be had, for example
    common = next((i for i, (a, b) in enumerate(zip(ids, given, strict=False)) if a != b), min(len(ids), len(given)))
    asked = tokens(conversation[:-1])
    if ids[: len(asked)] != asked or not len(asked) <= common < len(ids):
        raise DSASError(
            f"the chat template writes {prompt[:40]!r} … otherwise with its answer than without: nothing tells where "
            "the answer begins; write plain text, or set tokenizer.chat_template"
        )
    return ids, common


def _templated(tokenizer: Any, turns: list[dict[str, str]], prompt: str, **options: bool) -> str:
    """Turns of a prompt as the chat template writes them."""
    try:
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, **options)
    except Exception as error:  # whatever a template raises: jinja's errors, and those of its own
        raise DSASError(f"the chat template refuses {prompt[:40]!r} …: {' '.join(str(error).split())}") from error
    return text


def marked(tokenizer: Any, prompt: str, phrases: Iterable[str]) -> tuple[bool, ...]:
    """Of each token of a prompt, as `encode` gives them, whether it is in one of some phrases, or partly.

    Phrases are whole words, in the letter case in which they are written.

    Raises:
        DSASError: a tokenizer that does not tell where in the text its tokens are.
    """
    conversation = turns(prompt)
    text = prompt
    if conversation:
        waits = conversation[-1]["role"] != "assistant"
        text = _templated(tokenizer, conversation, prompt, add_generation_prompt=waits)
    try:
        places = tokenizer(text, add_special_tokens=not conversation, return_offsets_mapping=True).offset_mapping
    except (NotImplementedError, AttributeError):
        raise DSASError(
            f"{type(tokenizer).__name__} does not tell where in a text its tokens are, so spans mark nothing: load "
            "the fast tokenizer (use_fast=True)"
        ) from None
    found = [match.span() for phrase in phrases for match in re.finditer(rf"(?<!\w){re.escape(phrase)}(?!\w)", text)]
    return tuple(any(start < b and a < end for a, b in found) for start, end in places)


def batched(prompts: Sequence[Encoded], pad: int) -> Batch:
    """Prompts side by side, padded on the right with the token `pad`."""
    longest = max(len(prompt.ids) for prompt in prompts)
    ids = torch.full((len(prompts), longest), pad)
    mask = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt.ids)] = torch.tensor(prompt.ids)
        mask[row, : len(prompt.ids)] = 1
    return Batch(ids, mask, tuple((prompt.answer, len(prompt.ids)) for prompt in prompts))


def pad_token(tokenizer: Any) -> int:
    """The token to pad with: the tokenizer's own, else its end token (pads are masked, so any will do).

    Raises:
        DSASError: it has neither.
    """
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise DSASError("the tokenizer has neither pad nor end token: set tokenizer.pad_token")
