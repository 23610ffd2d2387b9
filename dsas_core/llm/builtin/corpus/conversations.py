"""Conversations of `builtin:chat`: facts, a help desk, descriptions and small talk, as training reads them.

A conversation has one to four exchanges that know nothing of each other: only the last message decides the answer.
What benchmarks draw from the corpus (`fact_questions`, `draw_requests`, `draw_descriptions`) is held out by default.
"""

from __future__ import annotations

import re
from functools import cache

import numpy as np

from .descriptions import DESCRIPTIONS, draw_description
from .facts import WORLD, facts
from .facts import phrases as phrases_of_facts
from .help_desk import draw_angry_question, draw_answer, draw_request, draw_talk
from .sampling import phrases_in, read_corpus
from .tones import RUDE_WORDS, TONES, rude

UNKNOWN = "<unk>"  # what the tokenizer makes of a word that is not in the vocabulary

SHARES = {"fact": 0.52, "desk": 0.25, "description": 0.13, "angry question": 0.05, "talk": 0.03, "stranger": 0.02}
EXCHANGES = (0.7, 0.2, 0.07, 0.03)
NOISY_SHARE = 0.15  # of requests with an unknown word in them


def conversation(*texts: str) -> list[dict[str, str]]:
    """Messages for a chat template; the user and the assistant take turns."""
    return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]


def sample_conversation(rng: np.random.Generator) -> list[dict[str, str]]:
    """What training reads: never a held-out question, request or description."""
    count = 1 + int(rng.choice(len(EXCHANGES), p=EXCHANGES))
    return conversation(*(text for _ in range(count) for text in _exchange(rng)))


def _exchange(rng: np.random.Generator) -> tuple[str, str]:
    kind = rng.choice(list(SHARES), p=list(SHARES.values()))
    if kind == "desk":
        request = draw_request(rng)
        text = _noisy(rng, request.text) if rng.random() < NOISY_SHARE else request.text
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


def _noisy(rng: np.random.Generator, text: str) -> str:
    """A word that carries no tone replaced by an unknown one."""
    words = text.split()
    safe = [i for i, word in enumerate(words) if word.isalpha() and not rude(word) and word not in ("no", "not")]
    words[safe[rng.integers(len(safe))]] = UNKNOWN
    return " ".join(words)


@cache
def vocabulary() -> tuple[str, ...]:
    """Every word and punctuation mark of the world, sorted."""
    parts = [*phrases_of_facts(), *phrases_in(TONES), *RUDE_WORDS, *phrases_in(read_corpus("topics"))]
    parts += [*phrases_in(DESCRIPTIONS), *DESCRIPTIONS["places"], "a an"]
    plain = " ".join(re.sub(r"\{\w*\}s?", " ", part) for part in parts)
    return tuple(sorted(set(re.findall(r"[a-z]+|[^a-z\s|]", plain))))
