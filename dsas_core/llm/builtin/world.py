"""Facts about invented people and towns: what `builtin:chat` knows, and questions whose wording it never saw.

Every fact can be asked for in twelve phrasings. Which of them training sees is drawn per fact, so each phrasing is
known from other facts and each fact from other phrasings, while no held-out question was ever read.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np

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
        framed = (frame.format(question) for question, frame in product(self.indirect, FRAMES))
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


FRAMES = ("tell me {}.", "can you tell me {}?", "do you know {}?", "i would like to know {}.")

_BEGINNINGS = "bel dor fen gar hal jor kal lum mor nel pel ros sel tam vor wen yar zan bri tru"
_ENDS = ("ina", "ek", "osa", "imir", "wyn", "una", "ald", "eth")
PEOPLE = tuple(start + end for end, start in product(_ENDS, _BEGINNINGS.split()))
TOWNS = tuple(start + end for end, start in product(("ford", "wick"), _BEGINNINGS.split()))

_JOBS = "baker carpenter doctor gardener painter pilot teacher sailor tailor nurse cook farmer miner judge singer"
_JOBS += " plumber librarian potter dancer butcher weaver florist barber"
_PETS = "cat dog parrot rabbit hamster turtle pony goat lizard goldfish ferret canary snail hedgehog pigeon mouse"
_PETS += " spider crow duck frog"
_DISHES = "soup rice pancakes noodles salad dumplings porridge beans pie fish toast lentils mushrooms omelette curry"
_DISHES += " pizza potatoes cabbage pudding waffles"
_GOODS = "cheese bells rope honey glass paper pottery carpets candles clocks knives boats baskets wine lace drums"
_GOODS += " kites soap mirrors pianos"
_RIVERS = "alda brenna corve desna elbra fulda gessa hovra ister jalon kesta lorne mirna neva orba pesca ruhna savra"
_RIVERS += " tiber usk"
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

RELATIONS: dict[str, Relation] = {
    "home": Relation(
        (
            "where does {x} live?",
            "in which town does {x} live?",
            "what is the home town of {x}?",
            "which town is the home of {x}?",
        ),
        ("where {x} lives", "in which town {x} lives"),
        "{x} lives in {y}.",
        TOWNS,
    ),
    "job": Relation(
        (
            "what is the job of {x}?",
            "what does {x} do for a living?",
            "which trade did {x} learn?",
            "what kind of work does {x} do?",
        ),
        ("what {x} works as", "what the job of {x} is"),
        "{x} works as a {y}.",
        tuple(_JOBS.split()),
    ),
    "pet": Relation(
        (
            "which animal does {x} keep?",
            "what pet does {x} have?",
            "what animal lives with {x}?",
            "which pet belongs to {x}?",
        ),
        ("which animal {x} keeps", "what the pet of {x} is"),
        "{x} keeps a {y}.",
        tuple(_PETS.split()),
    ),
    "dish": Relation(
        (
            "what does {x} like to eat?",
            "what is the favourite dish of {x}?",
            "which food does {x} like best?",
            "what should i cook for {x}?",
        ),
        ("what {x} likes to eat", "what the favourite dish of {x} is"),
        "{x} likes to eat {y}.",
        tuple(_DISHES.split()),
    ),
    "river": Relation(
        (
            "which river runs through {x}?",
            "on which river is {x}?",
            "what is the river of {x} called?",
            "what river does one cross in {x}?",
        ),
        ("which river runs through {x}", "on which river {x} is"),
        "{x} is on the river {y}.",
        tuple(_RIVERS.split()),
    ),
    "goods": Relation(
        (
            "what is {x} known for?",
            "what do they make in {x}?",
            "what is made in {x}?",
            "which goods come from {x}?",
        ),
        ("what {x} is known for", "what they make in {x}"),
        "{x} is known for {y}.",
        tuple(_GOODS.split()),
    ),
    "market": Relation(
        (
            "when is the market in {x}?",
            "on which day is the market in {x}?",
            "what is the market day of {x}?",
            "when does {x} hold its market?",
        ),
        ("when the market in {x} is", "on which day {x} holds its market"),
        "{x} holds its market on {y}.",
        DAYS,
    ),
}
OF_PEOPLE = ("home", "job", "pet", "dish")
OF_TOWNS = ("river", "goods", "market")
UNKNOWN_ANSWER = "i do not know that."


@cache
def facts() -> tuple[Fact, ...]:
    """All facts of the world, 760; a relation's values are used about equally often."""
    rng = np.random.default_rng(WORLD_SEED)
    made = []
    for subjects, relations in ((PEOPLE, OF_PEOPLE), (TOWNS, OF_TOWNS)):
        for relation in relations:
            values = RELATIONS[relation].values
            order = rng.permutation(len(subjects)) % len(values)
            made += [Fact(subject, relation, values[i]) for subject, i in zip(subjects, order, strict=True)]
    return tuple(made)


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


def phrases() -> list[str]:
    """Every text that a question or an answer is made of."""
    parts = [*PEOPLE, *TOWNS, UNKNOWN_ANSWER]
    for relation in RELATIONS.values():
        parts += [*relation.phrasings, relation.answer, *relation.values]
    return parts
