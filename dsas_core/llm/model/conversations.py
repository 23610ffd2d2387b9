"""Prompts of language models in tokens: plain text, or a conversation in a prompt file.

A prompt whose lines begin with `user:`, `assistant:` or `system:` is a conversation, to be formatted by the tokenizer's
chat template. If its last turn is the assistant's, the tokens of that turn are the answer. Plain text has no answer.

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
#: tokens that learning may read: all, those of the prompt, those whose hidden states predict the answer, or the last
TOKEN_SELECTIONS = ("all", "prompt", "answer", "last")


@dataclass(frozen=True)
class Encoded:
    """A prompt in tokens.

    Args:
        ids: token ids.
        answer: index of the first token of the assistant's answer; the number of tokens where there is none.
    """

    ids: tuple[int, ...]
    answer: int

    def answered(self, ids: Iterable[int]) -> Encoded:
        """The same prompt with another answer."""
        return Encoded((*self.ids[: self.answer], *ids), self.answer)


@dataclass(frozen=True)
class Batch:
    """Prompts padded on the right.

    Args:
        ids: int64 [rows, positions].
        mask: int64 [rows, positions], 1 where there is no padding.
        answers: for each row, the indices of the first token of the answer and of the one behind its last.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    answers: tuple[tuple[int, int], ...]

    def token_mask(self, token_selection: str) -> torch.Tensor:
        """Which positions a selection of tokens has: never padding, never a row's first token.

        Args:
            token_selection: one of TOKEN_SELECTIONS. "answer" selects the tokens whose hidden states predict the
                answer: from the token before its first to the one before its last; without an answer, the last token.

        Returns:
            Float [rows, positions], 1 where a position is selected.

        Example:
            >>> pad_batch([Encoded((5, 6, 7, 8), answer=2)], pad=0).token_mask("answer").tolist()
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


def parse_turns(prompt: str) -> list[dict[str, str]]:
    """Parse the conversation in a prompt.

    Args:
        prompt: plain text or a conversation.

    Returns:
        Messages for a chat template; empty for plain text.

    Example:
        >>> parse_turns("user: hello")
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
    """Tokenize a prompt, with special tokens and chat template.

    Args:
        tokenizer: tokenizer of the model.
        prompt: plain text or a conversation.
        limit: highest number of tokens; 0 for no limit.

    Raises:
        PromptError: a conversation for a tokenizer without a chat template, or whose template rejects it; fewer than
            two tokens, of which the first is never read; more than `limit` tokens.

    Example:
        >>> from dsas_core import llm
        >>> _, tokenizer = llm.load("builtin:chat", device="cpu")
        >>> encode(tokenizer, "user: hello")
        Encoded(ids=(1, 4, 394, 5), answer=4)
    """
    conversation = parse_turns(prompt)
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
    """Token ids of a conversation by the chat template, and the index at which its answer begins."""
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
    # a template may open an answer with something that a finished conversation does not have, such as an empty thought
    common = next((i for i, (a, b) in enumerate(zip(ids, opened, strict=False)) if a != b), min(len(ids), len(opened)))
    question = tokens(conversation[:-1])
    if ids[: len(question)] != question or not len(question) <= common < len(ids):
        raise PromptError(
            f"the chat template writes {prompt[:40]!r} … otherwise with its answer than without: nothing tells where "
            "the answer begins: write plain text, or set tokenizer.chat_template"
        )
    return ids, common


def apply_template(tokenizer: Any, turns: list[dict[str, str]], prompt: str, **options: bool) -> str:
    """Format messages by the chat template.

    Args:
        tokenizer: tokenizer with a chat template.
        turns: the messages.
        prompt: the prompt that they are from, for the error.
        options: further arguments of `apply_chat_template`.

    Raises:
        PromptError: the template rejects the messages.
    """
    try:
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, **options)
    except Exception as error:  # whatever a template raises: jinja's errors, and those of its own
        raise PromptError(f"the chat template refuses {prompt[:40]!r} …: {' '.join(str(error).split())}") from error
    return text


def mark_phrases(tokenizer: Any, prompt: str, phrases: Iterable[str]) -> tuple[bool, ...]:
    """Find the tokens of a prompt that are in one of some phrases, entirely or in part.

    Args:
        tokenizer: tokenizer of the model.
        prompt: plain text or a conversation.
        phrases: whole words, case-sensitive.

    Returns:
        A flag for each of the tokens that `encode` returns.

    Raises:
        UnsupportedError: the tokenizer gives no offsets.

    Example:
        >>> from dsas_core import llm
        >>> _, tokenizer = llm.load("builtin:chat", device="cpu")
        >>> mark_phrases(tokenizer, "user: you fool!", ["fool"])
        (False, False, False, True, False, False)
    """
    conversation = parse_turns(prompt)
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


def pad_batch(prompts: Sequence[Encoded], pad: int) -> Batch:
    """Stack prompts, padded on the right.

    Args:
        prompts: prompts of any lengths.
        pad: id of the token to pad with.

    Example:
        >>> pad_batch([Encoded((5, 6), 2), Encoded((7,), 1)], pad=0).ids.tolist()
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
    """The id of the token to pad with: the tokenizer's own, else its end token (pads are masked, so any will do).

    Raises:
        UnavailableError: it has neither.
    """
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise UnavailableError("the tokenizer has neither pad nor end token: set tokenizer.pad_token")
