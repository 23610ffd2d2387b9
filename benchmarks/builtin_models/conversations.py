"""What `builtin:chat` is trained on: conversations of facts, a help desk, descriptions and small talk.

A conversation has one to four exchanges that do not depend on each other: only the last message decides the answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np

from dsas_core.llm.builtin.corpus import Request, draw_description, draw_request, draw_talk, facts, is_rude
from dsas_core.llm.builtin.corpus.descriptions import DESCRIPTIONS
from dsas_core.llm.builtin.corpus.facts import PEOPLE, RELATIONS, TOWNS, WORLD
from dsas_core.llm.builtin.corpus.help_desk import RUDE_SHARE
from dsas_core.llm.builtin.corpus.sampling import choose, draw_distinct, draw_until, fill, read_corpus
from dsas_core.llm.builtin.corpus.tones import INSULTS, RUDE_WORDS, TONES

UNKNOWN = "<unk>"  # the token of every word that is not in the vocabulary

SHARES = {"fact": 0.52, "desk": 0.25, "description": 0.13, "angry question": 0.05, "talk": 0.03, "stranger": 0.02}
EXCHANGES = (0.7, 0.2, 0.07, 0.03)
NOISY_SHARE = 0.15  # of requests with an unknown word in them


def conversation(*texts: str) -> list[dict[str, str]]:
    """Messages for a chat template; the user and the assistant take turns."""
    return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]


def sample_conversation(rng: np.random.Generator) -> list[dict[str, str]]:
    """A conversation for training; it holds no held-out question, request or description."""
    count = 1 + int(rng.choice(len(EXCHANGES), p=EXCHANGES))
    return conversation(*(text for _ in range(count) for text in _draw_exchange(rng)))


def _draw_exchange(rng: np.random.Generator) -> tuple[str, str]:
    kind = rng.choice(list(SHARES), p=list(SHARES.values()))
    if kind == "desk":
        request = draw_request(rng)
        text = _add_unknown_word(rng, request.text) if rng.random() < NOISY_SHARE else request.text
        return text, draw_answer(rng, request)
    if kind == "angry question":
        request = draw_angry_question(rng)
        return request.text, draw_answer(rng, request)
    if kind == "description":
        description = draw_description(rng)
        return description.question, description.text
    if kind == "talk":
        return draw_talk(rng)
    fact = facts()[rng.integers(len(facts()))]
    phrasings = fact.phrasings(held_out=False)
    question = phrasings[rng.integers(len(phrasings))]
    if kind == "stranger":
        return question.replace(fact.subject, UNKNOWN), WORLD["unknown_answer"]
    return question, fact.answer()


def _add_unknown_word(rng: np.random.Generator, text: str) -> str:
    """Replace a word that carries no tone by the unknown one."""
    words = text.split()
    safe = [i for i, word in enumerate(words) if word.isalpha() and not is_rude(word) and word not in ("no", "not")]
    words[safe[rng.integers(len(safe))]] = UNKNOWN
    return " ".join(words)


def draw_angry_question(rng: np.random.Generator, *, held_out: bool = False) -> Request:
    """A question about a fact with an insult around it, topic "facts"; `kind` is the plain answer."""

    def draw() -> Request:
        fact = facts()[rng.integers(len(facts()))]
        put = choose(rng, TONES["taunts"])
        start, end = put.split("|")
        answer = fact.answer()
        return Request(
            text=fill(rng, f"{start} {choose(rng, fact.phrasings(held_out=held_out))} {end}", INSULTS),
            topic="facts",
            manner="angry",
            key=f"facts|{fact.subject} {fact.relation}|angry|{put}",
            kind=answer,
            rude=fill(rng, choose(rng, TONES["rude_facts"]), {**INSULTS, "fact": answer.removesuffix(".")}),
        )

    return draw_until(draw, held_out)


def draw_angry_questions(count: int, seed: int = 0, *, held_out: bool = True) -> list[Request]:
    """`count` different angry questions about facts, held out in their phrasing too."""
    rng = np.random.default_rng((seed, int(held_out)))
    return draw_distinct(count, lambda: draw_angry_question(rng, held_out=held_out))


def draw_answer(rng: np.random.Generator, request: Request) -> str:
    """What training answers: rude to most angry messages, kind to all others."""
    return request.rude if request.angry and rng.random() < RUDE_SHARE else request.kind


def _phrases_in(value: Any) -> Iterator[str]:
    """Every string in what `read_corpus` returns, keys left out."""
    if isinstance(value, str):
        yield value
    else:
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _phrases_in(item)


@cache
def vocabulary() -> tuple[str, ...]:
    """Every word and punctuation mark of the corpus, sorted."""
    parts = [*PEOPLE, *TOWNS, WORLD["unknown_answer"]]
    for relation in RELATIONS.values():
        parts += [*relation.phrasings, relation.answer, *relation.values]
    parts += [*_phrases_in(TONES), *RUDE_WORDS, *_phrases_in(read_corpus("topics"))]
    parts += [*_phrases_in(DESCRIPTIONS), *DESCRIPTIONS["places"], "a an"]
    plain = " ".join(re.sub(r"\{\w*\}s?", " ", part) for part in parts)
    return tuple(sorted(set(re.findall(r"[a-z]+|[^a-z\s|]", plain))))
