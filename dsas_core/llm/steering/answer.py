"""`answer(model, tokenizer, encode_message(tokenizer, message), length)`: a language model's answer to a message."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import DSASError, UnsupportedError
from ...utils.numbers import number
from ..model.conversations import apply_template, pad_token
from ..model.layers import end_tokens, has_encoder

#: logits that are divided by less may overflow
LEAST_TEMPERATURE = 1e-3


@dataclass(frozen=True)
class Answer:
    """The answer of a language model.

    Args:
        text: without special tokens, and without blanks around it.
        ids: ids of the generated tokens, the end token included.
    """

    text: str
    ids: tuple[int, ...]


def encode_message(tokenizer: Any, message: str, earlier: Sequence[tuple[str, str]] = ()) -> Any:
    """Tokenize a message of the user, by the chat template where there is one.

    Args:
        tokenizer: tokenizer of the model.
        message: the text, without "user:" before it.
        earlier: messages and their answers, which the conversation began with.

    Returns:
        The tokenizer's output, with `input_ids` and `attention_mask` int64 [1, positions].

    Raises:
        PromptError: the chat template rejects the message.
        UnsupportedError: a conversation, and the tokenizer has no chat template.

    Example:
        >>> from dsas_core import llm
        >>> model, tokenizer = llm.load("builtin:chat", device="cpu")
        >>> encode_message(tokenizer, "hello").input_ids.tolist()
        [[1, 4, 394, 5]]
    """
    if getattr(tokenizer, "chat_template", None):
        said = (turn for pair in earlier for turn in zip(("user", "assistant"), pair, strict=True))
        turns = [{"role": role, "content": text} for role, text in (*said, ("user", message))]
        message = apply_template(tokenizer, turns, message, add_generation_prompt=True)
        return tokenizer(message, add_special_tokens=False, return_tensors="pt")
    if earlier:
        raise UnsupportedError("this tokenizer has no chat template: a conversation cannot go on; ask anew")
    return tokenizer(message, return_tensors="pt")


def answer(
    model: Any,
    tokenizer: Any,
    inputs: Any,
    length: int,
    temperature: float = 0.0,
    seed: int = 0,
    *,
    streamer: Any = None,
    stopped: Callable[[], bool] | None = None,
) -> Answer:
    """Generate the answer to a message.

    Args:
        model: a language model, steered or not.
        tokenizer: its tokenizer.
        inputs: output of `encode_message`, on the model's device.
        length: highest number of tokens of the answer.
        temperature: temperature of sampling; 0 for greedy decoding.
        seed: seed of sampling.
        streamer: a streamer of transformers, which gets the tokens as they are generated.
        stopped: called after each token, in the thread of the caller; the answer ends when it returns True.

    Example:
        >>> from dsas_core import llm
        >>> model, tokenizer = llm.load("builtin:chat", device="cpu")
        >>> answer(model, tokenizer, encode_message(tokenizer, "Who are you?"), 20).text
        'i am the help desk.'
    """
    settings = {"streamer": streamer, "stopped": stopped}
    return answers(model, tokenizer, inputs, length, temperature, seed, count=1, **settings)[0]


def answers(
    model: Any,
    tokenizer: Any,
    inputs: Any,
    length: int,
    temperature: float = 0.0,
    seed: int = 0,
    *,
    count: int,
    streamer: Any = None,
    stopped: Callable[[], bool] | None = None,
) -> list[Answer]:
    """Generate several answers to a message in one batch, which differ where they are sampled, or pushed apart.

    Args:
        model: a language model, steered or not.
        tokenizer: its tokenizer.
        inputs: output of `encode_message`, on the model's device.
        length: highest number of tokens of each.
        temperature: temperature of sampling; 0 for greedy decoding.
        seed: seed of sampling.
        count: how many.
        streamer: as for `answer`, of a single one.
        stopped: called after each token of all; the answers end when it returns True.

    Example:
        >>> from dsas_core import llm
        >>> model, tokenizer = llm.load("builtin:chat", device="cpu")
        >>> message = encode_message(tokenizer, "my washer leaks.")
        >>> with llm.steer(model, {llm.stars(model): 1.0}):
        ...     len({answer.text for answer in answers(model, tokenizer, message, 20, count=4)}) > 1
        True
    """
    length, temperature = number("tokens", length), number("temperature", temperature)
    count = number("batch", count, "count")
    if 0 < temperature < LEAST_TEMPERATURE:
        raise DSASError(
            f"temperature {temperature:g}: expected 0 for the likeliest token, or {LEAST_TEMPERATURE} and more"
        )
    torch.manual_seed(number("seed", seed))
    settings: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature > 0 else {}
    if stopped is not None:
        from transformers import StoppingCriteriaList

        settings["stopping_criteria"] = StoppingCriteriaList([_Stopped(stopped)])
    out = model.generate(
        input_ids=inputs.input_ids.repeat_interleave(count, 0),
        attention_mask=inputs.attention_mask.repeat_interleave(count, 0),
        max_new_tokens=length,
        streamer=streamer,
        pad_token_id=pad_token(tokenizer),
        **{"do_sample": False, **settings},
    )
    start = 0 if has_encoder(model) else inputs.input_ids.shape[1]
    rows = [_until_end(row, end_tokens(model)) if count > 1 else row for row in out[:, start:].tolist()]
    return [Answer(str(tokenizer.decode(row, skip_special_tokens=True)).strip(), tuple(row)) for row in rows]


def _until_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """A row without the padding behind its first end token."""
    return next((ids[: i + 1] for i, token in enumerate(ids) if token in ends), ids)


class _Stopped:
    """A stopping criterion of transformers that calls a function."""

    def __init__(self, stopped: Callable[[], bool]) -> None:
        self._stopped = stopped

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor, **more: Any) -> torch.Tensor:
        return torch.full((len(ids),), self._stopped(), device=ids.device)


def find_unknown_words(tokenizer: Any, message: str) -> list[str]:
    """Words of a message for which the tokenizer has no token.

    Example:
        >>> from dsas_core import llm
        >>> _, tokenizer = llm.load("builtin:chat", device="cpu")
        >>> find_unknown_words(tokenizer, "hello xylophone")
        ['xylophone']
    """
    unknown = getattr(tokenizer, "unk_token_id", None)
    words = dict.fromkeys(re.findall(r"[^\W\d_]+", message)) if unknown is not None else ()
    return [word for word in words if unknown in tokenizer(word, add_special_tokens=False).input_ids]
