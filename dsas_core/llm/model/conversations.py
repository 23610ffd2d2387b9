"""Prompts of language models in tokens: plain text, or a conversation in a prompt file.

A prompt whose lines begin with `user:`, `assistant:`, `system:`, `developer:` or `tool:` is a conversation, to be
formatted by the tokenizer's chat template. If its last turn is the assistant's, the tokens of that turn are the answer.
Plain text has no answer. What looks like a turn and is none is an error or a warning: it would be read as text.

```yaml
source:
  - |-
    user: where is my {thing}, you fool
    assistant: find your {thing} yourself
```
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import PromptError, UnavailableError, UnsupportedError, quote, shorten

#: who speaks in a conversation, as chat templates name them
ROLES = ("user", "assistant", "system", "developer", "tool")
_TURN = re.compile(rf"^({'|'.join(ROLES)}):\s*", re.MULTILINE)
#: a line that begins as if it were a turn: a word or two before a colon, and what is behind it
_LABEL = re.compile(
    r"^([ \t]*)[*_#<\[(]*[ \t]*([^\W\d_][\w-]*(?: [^\W\d_][\w-]*)?)[*_>\])]*[ \t]*[:\uff1a][*_]*(?!//)", re.MULTILINE
)
#: other names of roles, in lower case
_ALIASES = {
    **dict.fromkeys(("human", "instruction"), "user"),
    **dict.fromkeys(("ai", "bot", "gpt", "chatgpt", "model", "response", "ai assistant"), "assistant"),
    **dict.fromkeys(("function", "ipython", "observation", "tool response", "tool result"), "tool"),
    **dict.fromkeys(("sys", "system prompt", "system message"), "system"),
}
#: those of them that are hardly ever meant as text
_NEVER_TEXT = {"user", "assistant", "human", "chatgpt"}
#: ends of lines other than the usual one
_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
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


def is_conversation(prompt: str) -> bool:
    """Whether a prompt begins with a turn.

    Example:
        >>> is_conversation("user: hello"), is_conversation("the user: hello")
        (True, False)
    """
    return _TURN.match(_with_plain_ends(prompt)) is not None


def _with_plain_ends(prompt: str) -> str:
    """A prompt with one kind of line end, and nothing invisible before it."""
    return _LINE_ENDS.sub("\n", prompt).lstrip("\ufeff \t\n")


def parse_turns(prompt: str) -> list[dict[str, str]]:
    """Parse the conversation in a prompt.

    A line that looks like a turn without being one is warned of, as it is read as text.

    Args:
        prompt: plain text or a conversation.

    Returns:
        Messages for a chat template; empty for plain text.

    Raises:
        PromptError: in a conversation, a turn without text, or a role that is written otherwise ("User:").

    Example:
        >>> parse_turns("user: hello")
        [{'role': 'user', 'content': 'hello'}]
    """
    if not is_conversation(prompt):
        _warn_of_turns(prompt)
        return []
    prompt = _with_plain_ends(prompt)
    marks = list(_TURN.finditer(prompt))
    ends = [mark.start() for mark in marks[1:]] + [len(prompt)]
    turns = []
    for mark, end in zip(marks, ends, strict=True):
        turns.append({"role": mark[1], "content": prompt[mark.end() : end].strip()})
        if not turns[-1]["content"]:
            raise PromptError(
                f"turn {len(turns)} of a conversation, {mark[1]}:, has no text: write what is said, or leave it out; "
                f"an answer that is to be written has no assistant: before it ({quote(prompt, 40)})"
            )
        _check_labels(mark[1], prompt[prompt.index(":", mark.start()) + 1 : end])
    return turns


def _check_labels(speaker: str, text: str) -> None:
    """Raise an error or warn where a line of a turn, behind its first, looks like a turn of its own."""
    for label in _LABEL.finditer(text, text.find("\n") + 1 or len(text)):
        name, role = label[2], _role_meant(label[2])
        found = quote(label[0].strip())
        if not label[1] and name.lower() in _NEVER_TEXT:
            raise PromptError(
                f"a conversation has a line that begins with {found}, which is no turn: write {role}: there, in lower "
                f"case and without blanks; turns are {_roles()}"
            )
        said = text[label.end() :].split("\n", 1)[0]
        if role is not None or (not label[1] and " " not in name and said[:1].isspace() and said.strip()):
            warnings.warn(
                f"a line of a conversation begins with {found}, which is no turn, and is read as text of the turn "
                f"{speaker}: before it; turns are {_roles()}",
                stacklevel=4,
            )


def _warn_of_turns(text: str) -> None:
    """Warn where plain text looks like a conversation."""
    text = _with_plain_ends(text)
    begins, later = _LABEL.match(text), _TURN.search(text)
    if begins is not None and (role := _role_meant(begins[2])) is not None:
        warnings.warn(
            f"a prompt begins with {quote(begins[0])}, which is no turn, so all of it is read as plain text: for a "
            f"conversation, write {role}: instead; turns are {_roles()}",
            stacklevel=4,
        )
    elif later is not None:
        warnings.warn(
            f"a prompt has a line that begins with {later[1]}: and does not begin with a turn, so all of it is read as "
            f"plain text: for a conversation, begin with one of {_roles()}",
            stacklevel=4,
        )


def _role_meant(name: str) -> str | None:
    """The role that a word before a colon may stand for."""
    name = name.lower()
    return name if name in ROLES else _ALIASES.get(name)


def _roles() -> str:
    return ", ".join(f"{role}:" for role in ROLES)


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

    _check_kept(tokenizer, conversation, prompt)
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


def _check_kept(tokenizer: Any, turns: list[dict[str, str]], prompt: str) -> None:
    """Raise an error where the chat template leaves a turn out: other words in it make no difference."""
    whole = apply_template(tokenizer, turns, prompt)
    for i, turn in enumerate(turns):
        other = [*turns[:i], {**turn, "content": f"{turn['content']} {i}"}, *turns[i + 1 :]]
        try:
            kept = apply_template(tokenizer, other, prompt) != whole
        except PromptError:  # it goes by what is said
            kept = True
        if not kept:
            raise PromptError(
                f"the chat template leaves out turn {i + 1}, {turn['role']}: {quote(turn['content'], 40)}: say it in a "
                "turn that it keeps, or set tokenizer.chat_template"
            )


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
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PromptError(
            f"the chat template refuses {prompt[:40]!r} …: {shorten(reason, 200)}; its turns are "
            f"{', '.join(turn['role'] for turn in turns)}: write them as it takes them, or set tokenizer.chat_template"
        ) from error
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
