"""How the built-in language model is trained: conversations, tokenizer, packed batches, a training in miniature."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.builtin_models import language_architecture as architecture
from benchmarks.builtin_models import language_quality as quality
from benchmarks.builtin_models.conversations import (
    UNKNOWN,
    conversation,
    draw_angry_questions,
    sample_conversation,
    vocabulary,
)
from benchmarks.builtin_models.language_architecture import ASSISTANT, BOS, EOS, PRESETS, SPECIAL, USER
from benchmarks.builtin_models.train_language import PackedConversations, encode, train
from benchmarks.builtin_models.trainer import Trainer
from dsas_core.llm.builtin import corpus
from dsas_core.llm.model.load import BUILTIN, load

SHIPPED = BUILTIN["builtin:chat"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return architecture.build_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def read() -> list[list[dict[str, str]]]:
    """Conversations that training might read."""
    rng = np.random.default_rng(7)
    return [sample_conversation(rng) for _ in range(3000)]


@pytest.fixture(scope="module")
def said(read: list[list[dict[str, str]]]) -> set[str]:
    return {message["content"] for messages in read for message in messages}


def test_training_reads_nothing_that_is_held_out(said: set[str]) -> None:
    assert said.isdisjoint(question.text for question in corpus.fact_questions())
    assert said.isdisjoint(request.text for request in corpus.draw_requests(1000))
    assert said.isdisjoint(request.text for request in draw_angry_questions(500))
    assert said.isdisjoint(description.text for description in corpus.draw_descriptions(500))


def test_every_word_of_the_corpus_is_one_token(tokenizer: Any, said: set[str]) -> None:
    unknown = tokenizer.unk_token_id
    for word in vocabulary():
        ids = tokenizer(word, add_special_tokens=False).input_ids
        assert len(ids) == 1, word
        assert ids[0] != unknown, word
    for text in said:
        if UNKNOWN not in text:
            assert unknown not in tokenizer(text).input_ids, text


def test_text_comes_back_from_tokens(tokenizer: Any, said: set[str]) -> None:
    for text in sorted(said)[::5]:
        if UNKNOWN not in text:
            assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_any_text_is_readable(tokenizer: Any) -> None:
    ids = tokenizer("Zeppelins, 7 ünïcode 🎈! My PARCEL hasn’t arrived").input_ids
    assert tokenizer.unk_token_id in ids
    assert tokenizer.decode(ids, skip_special_tokens=True).endswith("! my parcel has not arrived")
    assert tokenizer("").input_ids == [tokenizer.bos_token_id]
    assert len({tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}) == len(SPECIAL)


def test_the_chat_template(tokenizer: Any) -> None:
    chat = conversation("where does belina live?", "belina lives in fenford.", "thank you!")
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == (
        f"{BOS}{USER}where does belina live?{ASSISTANT}belina lives in fenford.{EOS}{USER}thank you!{ASSISTANT}"
    )
    ids = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"]
    assert ids == encode(tokenizer, chat, 100)
    assert ids.count(tokenizer.bos_token_id) == ids.count(tokenizer.eos_token_id) == 1
    with pytest.raises(Exception, match="roles are user and assistant"):
        tokenizer.apply_chat_template([{"role": "system", "content": "be kind"}], tokenize=False)


def test_the_template_marks_the_answer(tokenizer: Any) -> None:
    marked = tokenizer.apply_chat_template(
        conversation("hello", "hello, how can i help you?"), return_dict=True, return_assistant_tokens_mask=True
    )
    answer = [i for i, inside in zip(marked["input_ids"], marked["assistant_masks"], strict=True) if inside]
    assert tokenizer.decode(answer) == f"hello, how can i help you? {EOS}"


def test_batches_are_padded_on_the_left(tokenizer: Any) -> None:
    batch = tokenizer(["hello", "thank you for your message"], padding=True)
    assert batch["attention_mask"][0] == [0, 0, 0, 0, 1, 1]
    assert set(batch) == {"input_ids", "attention_mask"}


def test_packed_conversations_do_not_see_each_other(tokenizer: Any) -> None:
    preset = PRESETS["tiny"]
    torch.manual_seed(0)
    model = architecture.build_model(preset, tokenizer).eval()
    rows = PackedConversations(np.random.default_rng(0), tokenizer, preset)
    with torch.no_grad():
        packed = model(input_ids=rows.ids, attention_mask=rows.mask, position_ids=rows.positions).logits[0]
    starts = (rows.ids[0] == tokenizer.bos_token_id).nonzero()[:, 0].tolist()
    assert len(starts) > 1
    for start, end in zip(starts, [*starts[1:], preset.row], strict=True):
        alone = rows.ids[0, start:end]
        alone = alone[alone != tokenizer.pad_token_id]
        with torch.no_grad():
            expected = model(input_ids=alone[None]).logits[0]
        assert torch.allclose(packed[start : start + len(alone)], expected, atol=1e-5)


def test_the_loss_counts_answers_more_than_messages(tokenizer: Any) -> None:
    rows = PackedConversations(np.random.default_rng(0), tokenizer, PRESETS["tiny"])
    targets, weights = rows.ids[:, 1:], rows.weights
    assert weights.unique().tolist() == pytest.approx([0.0, 0.2, 1.0])
    assert (weights[targets == tokenizer.eos_token_id] == 1).all()
    assert (weights[targets == tokenizer.bos_token_id] == 0).all()
    assert (weights[targets == tokenizer.pad_token_id] == 0).all()


def test_long_conversations_lose_their_end(tokenizer: Any) -> None:
    chat = conversation(*("thank you for your message.", "you are welcome.") * 5)
    assert len(encode(tokenizer, chat, 200)) > 40 >= len(encode(tokenizer, chat, 40))


def test_a_small_training_is_repeatable_resumable_and_loadable(tmp_path: Path, monkeypatch: Any) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    preset = PRESETS["tiny"]
    train(preset, tmp_path / "work", tmp_path / "whole")
    monkeypatch.setattr("benchmarks.builtin_models.trainer.CHECKPOINT_STEPS", 2)

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    step = Trainer._step
    monkeypatch.setattr(Trainer, "_step", lambda self, i: stop() if i == 5 else step(self, i))
    with pytest.raises(KeyboardInterrupt):
        train(preset, tmp_path / "work", tmp_path / "halves")
    monkeypatch.setattr(Trainer, "_step", lambda self, i: step(self, i) if i >= 4 else stop())
    with pytest.raises(ValueError, match="another run"):
        train(preset, tmp_path / "work", tmp_path / "halves", seed=1)
    train(preset, tmp_path / "work", tmp_path / "halves")
    whole, halves = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "halves"))
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    assert {tensor.dtype for tensor in whole.values()} == {torch.float16}

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "whole")
    assert (
        len(quality.generate_answers(model, tokenizer, ["hello", "my parcel has not arrived"], max_new_tokens=4)) == 2
    )


@pytest.mark.skipif(not (SHIPPED / "model.safetensors").is_file(), reason="not trained yet")
def test_the_model_is_small_and_its_tokenizer_is_of_this_corpus(tokenizer: Any) -> None:
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 5e6
    model, own = load("builtin:chat", device="cpu")
    assert own.get_vocab() == tokenizer.get_vocab()
    assert own.chat_template == architecture.CHAT_TEMPLATE
    assert model.config.vocab_size == len(own)
