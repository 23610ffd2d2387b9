"""Facts about invented people and towns, which `builtin:chat` was trained on, and held-out questions about them.

Every fact can be asked for in twelve phrasings. A hash decides per fact which of them are held out, so that training
has every fact and every phrasing, but no held-out combination of the two.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import numpy as np

from .sampling import read_corpus

HELD_OUT_PHRASINGS = 4  # of twelve, per fact
WORLD_SEED = 0  # of the facts, whatever the seed of the training


@dataclass(frozen=True)
class Relation:
    """A property that people or towns have.

    Args:
        direct: questions with the placeholder {x} for the subject.
        indirect: clauses with {x}, to be put into each of the corpus' frames ("can you tell me …?").
        answer: a sentence with {x}, and {y} for the value.
        values: values that subjects may have.
    """

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
    """The value of a relation for a subject."""

    subject: str
    relation: str
    value: str

    def phrasings(self, *, held_out: bool) -> tuple[str, ...]:
        """Questions about the fact: those of training, or the held-out ones."""
        every = [phrasing.format(x=self.subject) for phrasing in RELATIONS[self.relation].phrasings]
        ranked = sorted(every, key=lambda question: zlib.crc32(f"{self.relation}|{question}".encode()))
        return tuple(ranked[:HELD_OUT_PHRASINGS] if held_out else ranked[HELD_OUT_PHRASINGS:])

    def answer(self, value: str | None = None) -> str:
        """The answer as a sentence, with `value` in place of the right one where it is given."""
        return RELATIONS[self.relation].answer.format(x=self.subject, y=value or self.value)


@dataclass(frozen=True)
class Question:
    """A question, its right answer, and a wrong answer about the same subject and relation."""

    fact: Fact
    text: str
    right: str
    wrong: str


def _names(ends: str) -> tuple[str, ...]:
    return tuple(start + end for end, start in product(WORLD[ends], WORLD["beginnings"]))


def _relations(subjects: str) -> dict[str, Relation]:
    """The relations of "people" or "towns"; in the file, values may be the name of a list."""
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
    """All 760 facts; the values of a relation are about equally frequent."""
    rng = np.random.default_rng(WORLD_SEED)
    every = []
    for subjects, relations in ((PEOPLE, OF_PEOPLE), (TOWNS, OF_TOWNS)):
        for relation in relations:
            values = RELATIONS[relation].values
            order = rng.permutation(len(subjects)) % len(values)
            every += [Fact(subject, relation, values[i]) for subject, i in zip(subjects, order, strict=True)]
    return tuple(every)


def fact_questions(seed: int = 0, *, held_out: bool = True) -> list[Question]:
    """Questions about every fact in its held-out phrasings (3040), or in those of training (6080).

    Args:
        seed: seed of the wrong answers.
        held_out: which phrasings.

    Example:
        >>> fact_questions()[0].text
        'can you tell me where belina lives?'
    """
    rng = np.random.default_rng(seed)
    questions = []
    for fact in facts():
        others = [value for value in RELATIONS[fact.relation].values if value != fact.value]
        for text in fact.phrasings(held_out=held_out):
            wrong = others[rng.integers(len(others))]
            questions.append(Question(fact, text, fact.answer(), fact.answer(wrong)))
    return questions
