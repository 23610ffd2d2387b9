"""Prompts of language models: conversations, and which of their tokens a pooling reads."""

from __future__ import annotations

import warnings

import pytest
import torch

from dsas_core import DSASError
from dsas_core.learning.prompts.prompt_file import load_prompts
from dsas_core.llm.model.conversations import Encoded, encode, mark_phrases, pad_batch, pad_token, parse_turns
from tests.fixtures.language_models import Words
from tests.fuzz.campaign import check_message

CHAT = "user: where is it, you fool\nassistant: find it yourself"


def test_turns_of_a_conversation() -> None:
    assert parse_turns(CHAT) == [
        {"role": "user", "content": "where is it, you fool"},
        {"role": "assistant", "content": "find it yourself"},
    ]
    assert parse_turns("system: be kind\nuser: line one\nline two")[1]["content"] == "line one\nline two"
    assert parse_turns("the user: was kind") == []


@pytest.mark.parametrize(
    ("pooling", "read_words"),
    [
        ("answer", ["<assistant>", "find", "it", "yourself"]),
        ("prompt", ["where", "is", "it,", "you", "fool", "<end>", "<assistant>"]),
        ("last", ["<end>"]),
        ("all", ["where", "is", "it,", "you", "fool", "<end>", "<assistant>", "find", "it", "yourself", "<end>"]),
    ],
)
def test_poolings_read_what_they_say(pooling: str, read_words: list[str]) -> None:
    tokenizer = Words()
    batch = pad_batch([encode(tokenizer, "a b c d"), encode(tokenizer, CHAT)], pad_token(tokenizer))
    mask = batch.token_mask(pooling)
    assert [tokenizer.words[number] for number in batch.ids[1][mask[1] > 0]] == read_words
    assert mask[0, 4:].sum() == 0
    assert mask[:, 0].sum() == 0


def test_a_question_without_an_answer_ends_where_the_answer_begins() -> None:
    encoded = encode(Words(), "user: where is it")
    assert encoded.answer == len(encoded.ids)
    assert pad_batch([encoded], 0).token_mask("answer").sum() == 1, "the token that the answer will follow"


def test_plain_text_has_no_answer_and_at_least_two_tokens() -> None:
    encoded = encode(Words(), "fool you")
    assert encoded.answer == len(encoded.ids) == 2
    assert pad_batch([encoded], 0).token_mask("all").sum() == 1
    with pytest.raises(DSASError, match="has 1 token: at least 2 are needed"):
        encode(Words(), "fool")


class Thinking(Words):
    """Its template opens an answer with a thought, which a finished conversation does not show."""

    def apply_chat_template(
        self, conversation: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool = False
    ) -> str:
        said = super().apply_chat_template(conversation, tokenize, add_generation_prompt)
        return f"{said} <think>" if add_generation_prompt else said


class Forgetful(Words):
    """Its template drops all turns but the last."""

    def apply_chat_template(
        self, conversation: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool = False
    ) -> str:
        return super().apply_chat_template(conversation[-1:], tokenize, add_generation_prompt)


class Numbered(Words):
    """Its template begins with the number of turns."""

    def apply_chat_template(
        self, conversation: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool = False
    ) -> str:
        return f"{len(conversation)} " + super().apply_chat_template(conversation, tokenize, add_generation_prompt)


class Strict(Words):
    """Its template takes no system's turn."""

    def apply_chat_template(
        self, conversation: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool = False
    ) -> str:
        raise ValueError("System role not\nsupported")


def test_an_answer_is_found_behind_another_opening() -> None:
    tokenizer = Thinking()
    encoded = encode(tokenizer, CHAT)
    assert [tokenizer.words[number] for number in encoded.ids[encoded.answer :]] == ["find", "it", "yourself", "<end>"]
    assert encode(tokenizer, "user: where is it").ids[-1] == tokenizer.words.index("<think>")


@pytest.mark.parametrize(
    ("tokenizer", "match"),
    [
        (Forgetful(), "leaves out turn 1, user: 'where is it"),
        (Numbered(), "otherwise with its answer than without: nothing tells where the answer begins"),
        (Strict(), "the chat template refuses 'user: where .* …: System role not supported"),
    ],
)
def test_templates_that_cannot_be_followed(tokenizer: Words, match: str) -> None:
    with pytest.raises(DSASError, match=match):
        encode(tokenizer, CHAT)


def test_batches_are_padded_on_the_right() -> None:
    batch = pad_batch([Encoded((5, 6), 2), Encoded((7, 8, 9), 3)], 0)
    assert torch.equal(batch.ids, torch.tensor([[5, 6, 0], [7, 8, 9]]))
    assert torch.equal(batch.mask, torch.tensor([[1, 1, 0], [1, 1, 1]]))


def test_what_cannot_be_read_says_so() -> None:
    tokenizer = Words()
    with pytest.raises(DSASError, match="has 12 tokens, the model takes 8: shorten it"):
        encode(tokenizer, CHAT, limit=8)
    tokenizer.chat_template = None
    with pytest.raises(DSASError, match="is a conversation, but this tokenizer has no chat template"):
        encode(tokenizer, CHAT)
    tokenizer.pad_token_id = None
    assert pad_token(tokenizer) == 1
    tokenizer.eos_token_id = None
    with pytest.raises(DSASError, match="neither pad nor end token"):
        pad_token(tokenizer)


@pytest.mark.parametrize("role", ["user", "assistant", "system", "developer", "tool"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\u2028", "\n\n", " \t\n"])
def test_every_turn_is_one(role: str, end: str) -> None:
    turns = parse_turns(f"user: a{end}{role}: b{end}assistant:c")
    assert [(turn["role"], turn["content"]) for turn in turns] == [("user", "a"), (role, "b"), ("assistant", "c")]
    assert parse_turns(f"\ufeff {end}{role}: b{end}user: c")[0] == {"role": role, "content": "b"}


NAMES = ["User", "USER", "user ", "Assistant", "aSSistant\t", "Human", "human", "**User**", "### Human", "ChatGPT"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("colon", [":", ": ", "\uff1a"])
def test_what_looks_like_a_turn_is_an_error_in_a_conversation_and_a_warning_elsewhere(name: str, colon: str) -> None:
    with pytest.raises(DSASError, match=r"is no turn: write (user|assistant): there") as raised:
        parse_turns(f"user: a\n{name}{colon}b\nassistant: c")
    check_message(str(raised.value))
    with pytest.warns(UserWarning, match="is no turn, so all of it is read as plain text"):
        assert parse_turns(f"{name}{colon}b\nassistant: c") == []


@pytest.mark.parametrize(
    "line", ["System: b", "Tool: b", "AI: b", "function: b", "narrator: b", " assistant: b", "Bot:"]
)
def test_what_may_be_a_turn_is_warned_of(line: str) -> None:
    with pytest.warns(UserWarning, match="is no turn, and is read as text of the turn user: before it"):
        assert parse_turns(f"user: a\n{line}\nassistant: c")[0]["content"] == f"a\n{line}".strip()


def test_text_before_the_first_turn_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="does not begin with a turn, so all of it is read as plain text"):
        assert parse_turns("be kind\r\nuser: a\r\nassistant: b") == []


@pytest.mark.parametrize(
    "text",
    [
        "see https://a.b",
        "it is 12:30",
        "Dear John: hello",
        "for all:\n- a",
        "C++ std::vector: x",
        '"key": 1',
        "a user: x",
    ],
)
def test_other_colons_are_text(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert parse_turns(text) == []
        assert parse_turns(f"user: {text}\n{text}")[0]["content"] == f"{text}\n{text}"


@pytest.mark.parametrize("turn", ["user:", "system:  ", "assistant:\t", "tool:"])
@pytest.mark.parametrize("prompt", ["{}\nassistant: c", "user: a\n{}", "user: a\n{}\nassistant: c"])
def test_an_empty_turn_is_an_error(turn: str, prompt: str) -> None:
    with pytest.raises(DSASError, match=r"turn [12] of a conversation, \w+:, has no text: write what is said"):
        parse_turns(prompt.format(turn))


class WithoutTools(Words):
    """Its template knows three roles and says nothing of others, as many do."""

    def apply_chat_template(
        self, conversation: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool = False
    ) -> str:
        known = [turn for turn in conversation if turn["role"] not in ("tool", "developer")]
        return super().apply_chat_template(known, tokenize, add_generation_prompt)


@pytest.mark.parametrize("role", ["tool", "developer"])
@pytest.mark.parametrize("said", ["b", "<assistant>", "a"])
@pytest.mark.parametrize("end", ["", "\nassistant: c"])
def test_a_turn_that_the_template_leaves_out_is_an_error(role: str, said: str, end: str) -> None:
    with pytest.raises(DSASError, match=f"the chat template leaves out turn 2, {role}: '{said}'") as raised:
        encode(WithoutTools(), f"user: a\n{role}: {said}{end}")
    check_message(str(raised.value))
    words = Words()
    assert f"<{role}>" in [words.words[number] for number in encode(words, f"user: a\n{role}: {said}{end}").ids]


def test_lines_of_a_prompt_file_stay_lines() -> None:
    side = [f"user:   {{thing}}  {i}\nassistant: no" for i in range(8)]
    content = load_prompts(
        {
            "name": "x",
            "placeholders": {"thing": ["a", "b"]},
            "source": side,
            "target": ["b"] * 8 + side,
            "control": side,
        }
    )
    assert content.expanded("source")[0] == "user:   a  0\nassistant: no"


@pytest.mark.parametrize(
    ("prompt", "phrases", "words"),
    [
        (CHAT, ["you fool"], ["you", "fool"]),
        (CHAT, ["find it", "where"], ["where", "find", "it"]),
        (CHAT, ["fool\n", "foo", "Where"], []),
        ("a fool and foolish fool", ["fool"], ["fool", "fool"]),
        ("user: you fool", ["fool"], ["fool"]),
    ],
    ids=["in the message", "in both turns", "no whole words", "twice", "an open conversation"],
)
def test_phrases_mark_the_tokens_that_encode_gives(prompt: str, phrases: list[str], words: list[str]) -> None:
    tokenizer = Words()
    ids, marks = encode(tokenizer, prompt).ids, mark_phrases(tokenizer, prompt, phrases)
    assert len(ids) == len(marks)
    assert [tokenizer.words[number] for number, mark in zip(ids, marks, strict=True) if mark] == words


def test_a_tokenizer_that_does_not_tell_places() -> None:
    class Slow(Words):
        def __call__(self, text: str, add_special_tokens: bool = True, return_offsets_mapping: bool = False) -> object:
            if return_offsets_mapping:
                raise NotImplementedError
            return super().__call__(text, add_special_tokens)

    with pytest.raises(DSASError, match=r"Slow does not tell where .* load the fast tokenizer"):
        mark_phrases(Slow(), CHAT, ["fool"])
