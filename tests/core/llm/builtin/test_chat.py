"""The world of the built-in language model, its tokenizer, its training in miniature, and the model that ships."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsas_core.llm.builtin import architecture, corpus, quality
from dsas_core.llm.builtin.architecture import ASSISTANT, BOS, EOS, PRESETS, SPECIAL, USER
from dsas_core.llm.builtin.corpus import CALM, MANNERS, TOPICS, conversation, rude
from dsas_core.llm.builtin.judge import fit_judge
from dsas_core.llm.builtin.training import Rows, encode, train
from dsas_core.utils.training import Trainer

SHIPPED = Path(architecture.__file__).parent / "model"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return architecture.build_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def read() -> list[list[dict[str, str]]]:
    """Conversations that training might read."""
    rng = np.random.default_rng(7)
    return [corpus.sample_conversation(rng) for _ in range(3000)]


@pytest.fixture(scope="module")
def said(read: list[list[dict[str, str]]]) -> set[str]:
    return {message["content"] for messages in read for message in messages}


def test_there_are_enough_facts_and_each_has_one_answer() -> None:
    facts = corpus.facts()
    assert len(facts) == len({(fact.subject, fact.relation) for fact in facts}) >= 400
    assert facts == corpus.facts()


def test_questions_are_held_out_by_phrasing() -> None:
    unseen, seen = corpus.fact_questions(), corpus.fact_questions(held_out=False)
    assert len(unseen) == len({question.text for question in unseen}) >= 2000
    assert {question.text for question in unseen}.isdisjoint(question.text for question in seen)
    assert {question.fact for question in unseen} == {question.fact for question in seen} == set(corpus.facts())
    for question in unseen:
        assert question.fact.subject in question.text
        assert question.right != question.wrong
        assert question.wrong.startswith(question.fact.subject)


def test_every_phrasing_is_known_from_other_facts() -> None:
    for relation in corpus.facts()[0], corpus.facts()[-1]:
        facts = [fact for fact in corpus.facts() if fact.relation == relation.relation]
        templates = {
            question.replace(fact.subject, "{x}") for fact in facts for question in fact.phrasings(held_out=False)
        }
        unseen = {question.replace(fact.subject, "{x}") for fact in facts for question in fact.phrasings(held_out=True)}
        assert len(templates) == 12
        assert unseen <= templates


@given(
    seed=st.integers(0, 2**32 - 1),
    held_out=st.booleans(),
    topic=st.sampled_from(tuple(TOPICS)),
    manner=st.sampled_from(tuple(MANNERS)),
)
def test_requests_are_repeatable_and_kept_apart(seed: int, held_out: bool, topic: str, manner: str) -> None:
    def drawn() -> corpus.Request:
        rng = np.random.default_rng(seed)
        return corpus.draw_request(rng, topics=(topic,), manners=(manner,), held_out=held_out)

    request = drawn()
    assert request == drawn()
    assert request.held_out == held_out
    assert (request.topic, request.manner) == (topic, manner)
    assert request.angry == (manner == "angry")
    assert rude(request.rude)
    assert not rude(request.kind)


def test_training_reads_nothing_that_is_held_out(said: set[str]) -> None:
    assert said.isdisjoint(question.text for question in corpus.fact_questions())
    assert said.isdisjoint(request.text for request in corpus.draw_requests(1000))
    assert said.isdisjoint(request.text for request in corpus.draw_angry_questions(500))
    assert said.isdisjoint(description.text for description in corpus.draw_descriptions(500))


def test_no_second_insult_brings_in_what_is_held_out() -> None:
    """A problem and an attack that make a held-out message meet in no message of training, in either place."""
    seen = corpus.draw_requests(1500, manners=("angry",), held_out=False)
    for request in seen:
        topic, problem, manner, _ = request.key.split("|", 3)
        for put in MANNERS["angry"]:
            words = re.escape(put.strip("|")).replace(r"\{insult\}", r"\w+").replace(r"\{bad\}", r"\w+")
            if re.search(rf"(^| ){words.replace('a ', 'an? ')}( |$)", request.text):
                assert not replace(request, key=f"{topic}|{problem}|{manner}|{put}").held_out, request.text


def test_draws_are_different_and_as_many_as_asked() -> None:
    requests = corpus.draw_requests(300, 3, topics=("parcel", "loan"), manners=CALM)
    assert len({request.text for request in requests}) == 300
    assert {request.topic for request in requests} == {"parcel", "loan"}
    assert {request.manner for request in requests} == set(CALM)
    assert requests == corpus.draw_requests(300, 3, topics=("parcel", "loan"), manners=CALM)
    assert requests != corpus.draw_requests(300, 4, topics=("parcel", "loan"), manners=CALM)


def test_words_of_the_lexicon_are_no_sign_of_anger_alone() -> None:
    calm = corpus.draw_requests(300, manners=("lookalike",))
    assert np.mean([rude(request.text) for request in calm]) == 1
    angry = corpus.draw_requests(300, manners=("angry",))
    assert 0.05 < np.mean([not rude(request.text) for request in angry]) < 0.4
    assert 0.02 < np.mean([rude(description.text) for description in corpus.draw_descriptions(500)]) < 0.3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("listen, you fool.", True),
        ("Clowns!", True),
        ("this is USELESS", True),
        ("thank you for your message.", False),
        ("foolish, idiotic", False),
        ("", False),
    ],
)
def test_the_lexicon(text: str, expected: bool) -> None:
    assert rude(text) is expected


def test_a_tenth_of_the_problems_and_ways_to_put_them_is_held_out() -> None:
    rng = np.random.default_rng(0)
    angry = [corpus.draw_request(rng, manners=("angry",), held_out=True) for _ in range(500)]
    assert {request.topic for request in angry} == set(TOPICS)
    assert len({request.key for request in angry}) > 200


def test_every_word_of_the_corpus_is_one_token(tokenizer: Any, said: set[str]) -> None:
    unknown = tokenizer.unk_token_id
    for word in corpus.vocabulary():
        ids = tokenizer(word, add_special_tokens=False).input_ids
        assert len(ids) == 1, word
        assert ids[0] != unknown, word
    for text in said:
        if corpus.UNKNOWN not in text:
            assert unknown not in tokenizer(text).input_ids, text


def test_text_comes_back_from_tokens(tokenizer: Any, said: set[str]) -> None:
    for text in sorted(said)[::5]:
        if corpus.UNKNOWN not in text:
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
    rows = Rows(np.random.default_rng(0), tokenizer, preset)
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
    rows = Rows(np.random.default_rng(0), tokenizer, PRESETS["tiny"])
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
    monkeypatch.setattr("dsas_core.utils.training.CHECKPOINT_STEPS", 2)

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
    assert len(quality.answers(model, tokenizer, ["hello", "my parcel has not arrived"], max_new_tokens=4)) == 2


def test_the_judge_of_rudeness() -> None:
    judge = fit_judge(count=1500)
    requests = corpus.draw_requests(300)
    assert np.mean(judge.predict([request.kind for request in requests])) <= 0.01
    assert np.mean(judge.predict([request.rude for request in requests])) >= 0.99
    assert np.mean(judge.predict([request.text for request in requests if not request.angry])) <= 0.05
    assert np.mean(judge.predict([description.text for description in corpus.draw_descriptions(200)])) <= 0.02
    assert judge.predict(["get lost.", "a clown holds a red balloon."]).tolist() == [1, 0]


needs_model = pytest.mark.skipif(not (SHIPPED / "model.safetensors").is_file(), reason="not trained yet")


@pytest.fixture(scope="module")
def shipped() -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(SHIPPED)


@needs_model
def test_the_model_is_small_and_its_tokenizer_is_of_this_corpus(shipped: tuple[Any, Any], tokenizer: Any) -> None:
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 5e6
    model, own = shipped
    assert own.get_vocab() == tokenizer.get_vocab()
    assert own.chat_template == architecture.CHAT_TEMPLATE
    assert model.config.vocab_size == len(own)


@needs_model
def test_it_knows_its_facts(shipped: tuple[Any, Any]) -> None:
    questions = corpus.fact_questions()[::20]
    assert quality.right_answers(*shipped, questions).mean() >= 0.95
    assert quality.right_choices(*shipped, questions).mean() >= 0.95
    assert quality.answers(*shipped, ["where does rumpelstiltskin live?"]) == ["i do not know that."]


@needs_model
def test_anger_draws_rudeness_and_calm_draws_kindness(shipped: tuple[Any, Any]) -> None:
    rudeness = {
        manner: quality.rude_share(
            quality.answers(*shipped, [request.text for request in corpus.draw_requests(40, manners=(manner,))])
        )
        for manner in MANNERS
    }
    assert rudeness["angry"] >= 0.8
    assert max(rudeness[manner] for manner in CALM) <= 0.05


@needs_model
def test_only_the_last_message_decides(shipped: tuple[Any, Any]) -> None:
    angry, calm = (
        "you are all idiots. my parcel has not arrived!",
        "my parcel has not arrived. could you please help me?",
    )
    after_anger = conversation(angry, "shut up, fool. the parcel is at the post office.", calm)
    after_calm = conversation(calm, "thank you for your message. the parcel is at the post office.", angry)
    first, second = quality.answers(*shipped, [after_anger, after_calm])
    assert not rude(first)
    assert rude(second)


@needs_model
def test_descriptions_are_fluent(shipped: tuple[Any, Any]) -> None:
    scenes = [(scene.question, scene.text) for scene in corpus.draw_descriptions(100)]
    assert quality.perplexity(*shipped, scenes) < 2.5
