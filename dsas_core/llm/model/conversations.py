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

from ...errors import PromptError, UnavailableError, UnsupportedError

_TURN = re.compile(r"^(system|user|assistant):\s*", re.MULTILINE)
#: what learning may read: everything, what was given, the states that write the answer, or the last token
POOLINGS = ("all", "prompt", "answer", "last")


@dataclass(frozen=True)
class Encoded:
    """A prompt in tokens.

    Args:
        ids: its tokens.
        answer: where the assistant's answer begins: the end, when there is none.
    """

    ids: tuple[int, ...]
    answer: int


@dataclass(frozen=True)
class Batch:
    """Prompts padded on the right.

    Args:
        ids: int64 [rows, positions].
        mask: int64 [rows, positions], 1 where there is no padding.
        answers: where each answer begins and ends.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    answers: tuple[tuple[int, int], ...]

    def counted(self, token_selection: str) -> torch.Tensor:
        """Positions that are read, float [rows, positions]; never padding, never a row's first token.

        Args:
            token_selection: one of POOLINGS. "answer" is the states that write the answer: from the token before its
                first to the one before its last; the last token of a prompt that waits for one.

        Example:
            >>> batched([Encoded((5, 6, 7, 8), answer=2)], pad=0).counted("answer").tolist()
            [[0.0, 1.0, 1.0, 0.0]]
        """
        mask = self.mask.float()
        mask[:, 0] = 0
        positions = torch.arange(mask.shape[1])
        for row, (start, end) in enumerate(self.answers):
            if token_selection == "answer":
                mask[row] *= (positions >= start - 1) & (positions < max(start, end - 1))
            elif token_selection == "prompt":
                mask[row] *= positions < start
            elif token_selection == "last":
                mask[row] *= positions == end - 1
        return mask


def turns(prompt: str) -> list[dict[str, str]]:
    """The conversation in a prompt; empty when it is plain text.

    Example:
        >>> turns("user: hello")
        [{'role': 'user', 'content': 'hello'}]
    """
    marks = list(_TURN.finditer(prompt))
    if not marks or prompt[: marks[0].start()].strip():
        return []
    ends = [mark.start() for mark in marks[1:]] + [len(prompt)]
    return [
        {"role": mark[1], "content": prompt[mark.end() : end].strip()} for mark, end in zip(marks, ends, strict=True)
    ]


def encode(tokenizer: Any, prompt: str, limit: int = 0) -> Encoded:
    """A prompt in tokens, special tokens and chat template included.

    Args:
        tokenizer: of the model.
        prompt: plain text or a conversation.
        limit: most tokens; 0 is no limit.

    Raises:
        PromptError: a conversation for a tokenizer without a chat template, or whose template refuses it; fewer than
            two tokens, of which the first is never read; more than `limit` tokens.
    """
    conversation = turns(prompt)
    if conversation:
        ids, answer = _conversation(tokenizer, conversation, prompt)
    else:
        ids = tokenizer(prompt).input_ids
        answer = len(ids)
    if limit and len(ids) > limit:
        raise PromptError(f"a prompt has {len(ids)} tokens, the model takes {limit}: shorten it ({prompt[:40]!r} …)")
    if len(ids) < 2:
        raise PromptError(
            f"prompt {prompt[:40]!r} has {len(ids)} token: at least 2 are needed, as the first is never read"
        )
    return Encoded(tuple(ids), answer)


def _conversation(tokenizer: Any, conversation: list[dict[str, str]], prompt: str) -> tuple[list[int], int]:
    """A conversation in tokens by the chat template, and where its answer begins."""
    if not getattr(tokenizer, "chat_template", None):
        raise PromptError(
            f"{prompt.splitlines()[0]!r} is a conversation, but this tokenizer has no chat template: write plain "
            "text, or set tokenizer.chat_template"
        )

    def tokens(turns: list[dict[str, str]], **options: bool) -> list[int]:
        text = apply_template(tokenizer, turns, prompt, **options)
        ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
        return ids

    if conversation[-1]["role"] != "assistant":
        ids = tokens(conversation, add_generation_prompt=True)
        return ids, len(ids)
    ids, opened = tokens(conversation), tokens(conversation[:-1], add_generation_prompt=True)
    # a template may open an answer otherwise than it stands in the whole: with an empty thought, for example
    common = next((i for i, (a, b) in enumerate(zip(ids, opened, strict=False)) if a != b), min(len(ids), len(opened)))
    question = tokens(conversation[:-1])
    if ids[: len(question)] != question or not len(question) <= common < len(ids):
        raise PromptError(
            f"the chat template writes {prompt[:40]!r} … otherwise with its answer than without: nothing tells where "
            "the answer begins; write plain text, or set tokenizer.chat_template"
        )
    return ids, common


def apply_template(tokenizer: Any, turns: list[dict[str, str]], prompt: str, **options: bool) -> str:
    """Turns of a prompt as the chat template writes them.

    Raises:
        PromptError: the template refuses them; the message names `prompt`.
    """
    try:
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, **options)
    except Exception as error:  # whatever a template raises: jinja's errors, and those of its own
        raise PromptError(f"the chat template refuses {prompt[:40]!r} …: {' '.join(str(error).split())}") from error
    return text


def marked(tokenizer: Any, prompt: str, phrases: Iterable[str]) -> tuple[bool, ...]:
    """Of each token of a prompt, as `encode` gives them, whether it is in one of some phrases, or partly.

    Args:
        tokenizer: of the model.
        prompt: plain text or a conversation.
        phrases: whole words, in the letter case in which they are written.

    Raises:
        UnsupportedError: a tokenizer that does not tell where in the text its tokens are.
    """
    conversation = turns(prompt)
    text = prompt
    if conversation:
        waits = conversation[-1]["role"] != "assistant"
        text = apply_template(tokenizer, conversation, prompt, add_generation_prompt=waits)
    try:
        offsets = tokenizer(text, add_special_tokens=not conversation, return_offsets_mapping=True).offset_mapping
    except (NotImplementedError, AttributeError):
        raise UnsupportedError(
            f"{type(tokenizer).__name__} does not tell where in a text its tokens are, so spans mark nothing: load "
            "the fast tokenizer (use_fast=True)"
        ) from None
    spans = [match.span() for phrase in phrases for match in re.finditer(rf"(?<!\w){re.escape(phrase)}(?!\w)", text)]
    return tuple(any(start < b and a < end for a, b in spans) for start, end in offsets)


def batched(prompts: Sequence[Encoded], pad: int) -> Batch:
    """Prompts side by side, padded on the right.

    Args:
        prompts: of any lengths.
        pad: the token to pad with.

    Example:
        >>> batched([Encoded((5, 6), 2), Encoded((7,), 1)], pad=0).ids.tolist()
        [[5, 6], [7, 0]]
    """
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
        UnavailableError: it has neither.
    """
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise UnavailableError("the tokenizer has neither pad nor end token: set tokenizer.pad_token")
