"""Facts about invented people and towns: what `builtin:chat` knows, and questions whose wording it never saw.

Every fact can be asked for in twelve phrasings. Which of them training sees is drawn per fact, so each phrasing is
known from other facts and each fact from other phrasings, while no held-out question was ever read.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import numpy as np

from .sampling import read_corpus

HELD_OUT_PHRASINGS = 4  # of twelve, per fact
WORLD_SEED = 0  # the world is one, whatever the training's seed


@dataclass(frozen=True)
class Relation:
    """One thing to know about a person or a town: questions with {x}, and the answer with {x} and {y}."""

    direct: tuple[str, ...]
    indirect: tuple[str, ...]
    answer: str
    values: tuple[str, ...]

    @property
    def phrasings(self) -> tuple[str, ...]:
        framed = (frame.format(question) for question, frame in product(self.indirect, WORLD["frames"]))
        return (*self.direct, *framed)


@dataclass(frozen=True)
class Fact:
    """`value` is the answer to `relation` about `subject`."""

    subject: str
    relation: str
    value: str

    def phrasings(self, *, held_out: bool) -> tuple[str, ...]:
        """The questions that training sees, or those that it must not see."""
        every = [phrasing.format(x=self.subject) for phrasing in RELATIONS[self.relation].phrasings]
        ranked = sorted(every, key=lambda question: zlib.crc32(f"{self.relation}|{question}".encode()))
        return tuple(ranked[:HELD_OUT_PHRASINGS] if held_out else ranked[HELD_OUT_PHRASINGS:])

    def answer(self, value: str | None = None) -> str:
        """The answer as a sentence, with another value where one is given."""
        return RELATIONS[self.relation].answer.format(x=self.subject, y=value or self.value)


@dataclass(frozen=True)
class Question:
    """A question with its right answer and a wrong one about the same subject and relation."""

    fact: Fact
    text: str
    right: str
    wrong: str


def _names(ends: str) -> tuple[str, ...]:
    return tuple(start + end for end, start in product(WORLD[ends], WORLD["beginnings"]))


def _relations(subjects: str) -> dict[str, Relation]:
    """The relations of "people" or "towns"; the values of one may be the name of another list."""
    lists = {"towns": TOWNS, "days": DAYS}
    relations = {name: Relation(**fields) for name, fields in WORLD[f"relations_of_{subjects}"].items()}
    return {
        name: replace(relation, values=lists[relation.values]) if isinstance(relation.values, str) else relation
        for name, relation in relations.items()
    }


WORLD = read_corpus("facts")
DAYS: tuple[str, ...] = WORLD["days"]
PEOPLE, TOWNS = _names("ends_of_people"), _names("ends_of_towns")
OF_PEOPLE, OF_TOWNS = _relations("people"), _relations("towns")
RELATIONS = {**OF_PEOPLE, **OF_TOWNS}


@cache
def facts() -> tuple[Fact, ...]:
    """All facts of the world, 760; a relation's values are used about equally often."""
    rng = np.random.default_rng(WORLD_SEED)
    every = []
    for subjects, relations in ((PEOPLE, OF_PEOPLE), (TOWNS, OF_TOWNS)):
        for relation in relations:
            values = RELATIONS[relation].values
            order = rng.permutation(len(subjects)) % len(values)
            every += [Fact(subject, relation, values[i]) for subject, i in zip(subjects, order, strict=True)]
    return tuple(every)


def fact_questions(seed: int = 0, *, held_out: bool = True) -> list[Question]:
    """Every fact in every held-out phrasing (3040 questions), or in every one that training saw (6080)."""
    rng = np.random.default_rng(seed)
    questions = []
    for fact in facts():
        others = [value for value in RELATIONS[fact.relation].values if value != fact.value]
        for text in fact.phrasings(held_out=held_out):
            wrong = others[rng.integers(len(others))]
            questions.append(Question(fact, text, fact.answer(), fact.answer(wrong)))
    return questions
