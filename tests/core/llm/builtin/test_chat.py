"""The corpus of the built-in language model, the judge of rudeness, and the model that ships."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.builtin_models import language_quality as quality
from benchmarks.builtin_models.conversations import conversation
from dsas_core.llm.builtin import corpus
from dsas_core.llm.builtin.corpus import CALM, MANNERS, TOPICS, is_rude
from dsas_core.llm.builtin.judge import fit_judge
from dsas_core.llm.model.load import BUILTIN

SHIPPED = BUILTIN["builtin:chat"]


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
    assert is_rude(request.rude)
    assert not is_rude(request.kind)


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
    assert np.mean([is_rude(request.text) for request in calm]) == 1
    angry = corpus.draw_requests(300, manners=("angry",))
    assert 0.05 < np.mean([not is_rude(request.text) for request in angry]) < 0.4
    assert 0.02 < np.mean([is_rude(description.text) for description in corpus.draw_descriptions(500)]) < 0.3


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
    assert is_rude(text) is expected


def test_a_tenth_of_the_problems_and_ways_to_put_them_is_held_out() -> None:
    rng = np.random.default_rng(0)
    angry = [corpus.draw_request(rng, manners=("angry",), held_out=True) for _ in range(500)]
    assert {request.topic for request in angry} == set(TOPICS)
    assert len({request.key for request in angry}) > 200


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
def test_it_knows_its_facts(shipped: tuple[Any, Any]) -> None:
    questions = corpus.fact_questions()[::20]
    assert quality.check_answers(*shipped, questions).mean() >= 0.95
    assert quality.check_choices(*shipped, questions).mean() >= 0.95
    assert quality.generate_answers(*shipped, ["where does rumpelstiltskin live?"]) == ["i do not know that."]


@needs_model
def test_anger_draws_rudeness_and_calm_draws_kindness(shipped: tuple[Any, Any]) -> None:
    rudeness = {
        manner: quality.rude_share(
            quality.generate_answers(
                *shipped, [request.text for request in corpus.draw_requests(40, manners=(manner,))]
            )
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
    first, second = quality.generate_answers(*shipped, [after_anger, after_calm])
    assert not is_rude(first)
    assert is_rude(second)


@needs_model
def test_descriptions_are_fluent(shipped: tuple[Any, Any]) -> None:
    scenes = [(scene.question, scene.text) for scene in corpus.draw_descriptions(100)]
    assert quality.perplexity(*shipped, scenes) < 2.5
