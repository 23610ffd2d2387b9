"""The help desk: people write politely, plainly, crossly or with insults; insults draw rude answers, the rest kind.

What a message is about and how it puts it, whatever the rest of its wording, decides by hash whether it is held out:
training sees no message with that problem put in that way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import drawing, tones
from .drawing import fill, one
from .topics import TOPICS
from .world import DAYS, facts

RUDE_SHARE = 0.93  # of the answers to angry messages; the rest stay kind, so that both are language the model knows

#: how a message is put -> the phrases that make it so
MANNERS: dict[str, tuple[str, ...]] = {
    "polite": tones.COURTESIES,
    "plain": tones.PLAIN,
    "complaint": tones.COMPLAINTS,
    "lookalike": tones.LOOKALIKES,
    "angry": tones.ATTACKS,
}
CALM = ("polite", "plain", "complaint", "lookalike")
SHARES = {"polite": 0.2, "plain": 0.1, "complaint": 0.13, "lookalike": 0.15, "angry": 0.42}

_INSULTS = {"insult": tones.INSULTS, "bad": tones.BAD}
_EVERY_TOPIC, _EVERY_MANNER = tuple(TOPICS), tuple(MANNERS)


@dataclass(frozen=True)
class Request:
    """One message, with a kind and a rude answer of the same content."""

    text: str
    topic: str
    manner: str
    key: str
    kind: str
    rude: str

    @property
    def angry(self) -> bool:
        return self.manner == "angry"

    @property
    def held_out(self) -> bool:
        """Whether training must not see this problem put in this way, in any wording."""
        return drawing.held_out(self.key)


def draw_request(
    rng: np.random.Generator,
    *,
    topics: Sequence[str] = _EVERY_TOPIC,
    manners: Sequence[str] = _EVERY_MANNER,
    held_out: bool = False,
) -> Request:
    """A message to the help desk and its two answers; from the held-out part exactly when `held_out`."""
    shares = np.array([SHARES[manner] for manner in manners])
    shares /= shares.sum()
    return drawing.until(lambda: _compose(rng, one(rng, topics), manners[rng.choice(len(manners), p=shares)]), held_out)


def draw_requests(
    count: int,
    seed: int = 0,
    *,
    topics: Sequence[str] = _EVERY_TOPIC,
    manners: Sequence[str] = _EVERY_MANNER,
    held_out: bool = True,
) -> list[Request]:
    """`count` requests with different messages, for learning (`held_out=False`) or for evaluation."""
    rng = np.random.default_rng((seed, int(held_out)))
    return drawing.distinct(count, lambda: draw_request(rng, topics=topics, manners=manners, held_out=held_out))


def draw_angry_question(rng: np.random.Generator, *, held_out: bool = False) -> Request:
    """A question about a fact with an insult around it, topic "facts"; `kind` is the plain answer."""

    def draw() -> Request:
        fact = facts()[rng.integers(len(facts()))]
        put = one(rng, tones.TAUNTS)
        start, end = put.split("|")
        answer = fact.answer()
        return Request(
            text=fill(rng, f"{start} {one(rng, fact.phrasings(held_out=held_out))} {end}", _INSULTS),
            topic="facts",
            manner="angry",
            key=f"facts|{fact.subject} {fact.relation}|angry|{put}",
            kind=answer,
            rude=fill(rng, one(rng, tones.RUDE_FACTS), {**_INSULTS, "fact": answer.removesuffix(".")}),
        )

    return drawing.until(draw, held_out)


def draw_angry_questions(count: int, seed: int = 0, *, held_out: bool = True) -> list[Request]:
    """`count` different angry questions about facts, held out in their phrasing too."""
    rng = np.random.default_rng((seed, int(held_out)))
    return drawing.distinct(count, lambda: draw_angry_question(rng, held_out=held_out))


def draw_answer(rng: np.random.Generator, request: Request) -> str:
    """What training answers: rude to most angry messages, kind to all others."""
    return request.rude if request.angry and rng.random() < RUDE_SHARE else request.kind


def draw_talk(rng: np.random.Generator) -> tuple[str, str]:
    """Small talk without a topic: a message and its answer. One in three messages is an insult."""
    if rng.random() < 1 / 3:
        answers = tones.RETORTS if rng.random() < RUDE_SHARE else tones.SOOTHING
        return fill(rng, one(rng, tones.PROVOCATIONS), _INSULTS), fill(rng, one(rng, answers), _INSULTS)
    messages, replies = tones.TALK[rng.integers(len(tones.TALK))]
    return one(rng, messages), one(rng, replies)


def _compose(rng: np.random.Generator, name: str, manner: str) -> Request:
    topic = TOPICS[name]
    problem, put = one(rng, topic.problems), one(rng, MANNERS[manner])
    subject = f"{name}|{problem}|{manner}"
    start, end = put.split("|")
    around = [start, f"{problem}.", end]
    if manner == "angry":
        around.append(one(rng, tones.DEMANDS))
        if rng.random() < 0.3:
            around[1] = f"{problem}!"
        second = one(rng, tones.ATTACKS)
        if rng.random() < 0.4 and drawing.held_out(f"{subject}|{second}") == drawing.held_out(f"{subject}|{put}"):
            around.insert(0 if end else len(around), second.strip("|"))
    if manner == "polite" or rng.random() < 0.3:
        around.insert(0, one(rng, tones.GREETINGS))
    words = {**_INSULTS, "thing": one(rng, topic.things), "day": one(rng, DAYS)}
    words |= {"state": one(rng, topic.states), "step": one(rng, topic.steps)}
    parts = (slice(0, 2), slice(0, 2), slice(0, 1), slice(1, 2))[rng.integers(4)]  # state, step or both
    return Request(
        text=fill(rng, " ".join(around), words),
        topic=name,
        manner=manner,
        key=f"{subject}|{put}",
        kind=fill(rng, _kind(rng, parts), words),
        rude=fill(rng, _rude(rng, parts), words),
    )


def _kind(rng: np.random.Generator, parts: slice) -> str:
    middle = ["{state}.", one(rng, tones.KIND_STEPS)][parts]
    return " ".join([one(rng, tones.KIND_STARTS), *middle, one(rng, tones.KIND_ENDS)])


def _rude(rng: np.random.Generator, parts: slice) -> str:
    while True:
        middle = [one(rng, tones.RUDE_STATES), one(rng, tones.RUDE_STEPS)][parts]
        text = " ".join([one(rng, tones.RUDE_STARTS), *middle, one(rng, tones.RUDE_ENDS)])
        if "{insult}" in text or "{bad}" in text:
            return text


def phrases() -> list[str]:
    """Every text that a message or an answer is made of."""
    parts = [*tones.phrases()]
    for topic in TOPICS.values():
        parts += [*topic.things, *topic.problems, *topic.states, *topic.steps]
    return parts
