"""One message, answered."""

from __future__ import annotations

from typing import Any

import pytest

from dsas_core import llm
from dsas_core.llm.steering.answer import answer, encode_message, find_unknown_words

MESSAGE = "where does belina live?"


@pytest.fixture(scope="module")
def chat() -> tuple[Any, Any]:
    return llm.load("builtin:chat")


def test_a_message_is_put_into_the_chat_template(chat: tuple[Any, Any]) -> None:
    _, tokenizer = chat
    assert tokenizer.decode(encode_message(tokenizer, MESSAGE).input_ids[0]).split()[0].startswith("<s>")
    spelled = tokenizer.convert_ids_to_tokens(encode_message(tokenizer, MESSAGE).input_ids[0])
    assert (spelled[1], spelled[-1]) == ("<|user|>", "<|assistant|>")


def test_the_answer_is_its_tokens_spelled(chat: tuple[Any, Any]) -> None:
    model, tokenizer = chat
    made = answer(model, tokenizer, encode_message(tokenizer, MESSAGE), 40)
    assert made.text.startswith("belina lives in")
    assert made.ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(list(made.ids), skip_special_tokens=True).strip() == made.text


def test_somebody_else_may_end_it(chat: tuple[Any, Any]) -> None:
    model, tokenizer = chat
    inputs, calls = encode_message(tokenizer, MESSAGE), iter([False, False, True])
    whole = answer(model, tokenizer, inputs, 40)
    assert answer(model, tokenizer, inputs, 40, stopped=lambda: next(calls)).ids == whole.ids[:3]


def test_sampling_goes_by_the_seed(chat: tuple[Any, Any]) -> None:
    model, tokenizer = chat
    inputs = encode_message(tokenizer, "my washer does not start.")
    drawn = [answer(model, tokenizer, inputs, 30, 1.5, seed).ids for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_words_without_a_token(chat: tuple[Any, Any]) -> None:
    _, tokenizer = chat
    assert find_unknown_words(tokenizer, "my xylophone does not start, xylophone!") == ["xylophone"]
