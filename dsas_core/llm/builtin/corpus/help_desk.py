"""The help desk: people write politely, plainly, crossly or with insults; insults draw rude answers, the rest kind.

What a message is about and how it puts it, whatever the rest of its wording, decides by hash whether it is held out:
training sees no message with that problem put in that way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .facts import DAYS
from .sampling import choose, draw_distinct, draw_until, fill, is_held_out
from .tones import INSULTS, MANNERS, TONES
from .topics import TOPICS

RUDE_SHARE = 0.93  # of the answers to angry messages; the rest stay kind, so that both are language the model knows
CALM = ("polite", "plain", "complaint", "lookalike")
SHARES = {"polite": 0.2, "plain": 0.1, "complaint": 0.13, "lookalike": 0.15, "angry": 0.42}

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
        return is_held_out(self.key)


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
    return draw_until(lambda: _compose(rng, choose(rng, topics), manners[rng.choice(len(manners), p=shares)]), held_out)


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
    return draw_distinct(count, lambda: draw_request(rng, topics=topics, manners=manners, held_out=held_out))


def draw_talk(rng: np.random.Generator) -> tuple[str, str]:
    """Small talk without a topic: a message and its answer. One in three messages is an insult."""
    if rng.random() < 1 / 3:
        answers = TONES["retorts"] if rng.random() < RUDE_SHARE else TONES["soothing"]
        return fill(rng, choose(rng, TONES["provocations"]), INSULTS), fill(rng, choose(rng, answers), INSULTS)
    small_talk = TONES["small_talk"][rng.integers(len(TONES["small_talk"]))]
    return choose(rng, small_talk["messages"]), choose(rng, small_talk["answers"])


def _compose(rng: np.random.Generator, name: str, manner: str) -> Request:
    topic = TOPICS[name]
    problem, put = choose(rng, topic.problems), choose(rng, MANNERS[manner])
    subject = f"{name}|{problem}|{manner}"
    start, end = put.split("|")
    around = [start, f"{problem}.", end]
    if manner == "angry":
        around.append(choose(rng, TONES["demands"]))
        if rng.random() < 0.3:
            around[1] = f"{problem}!"
        second = choose(rng, MANNERS["angry"])
        if rng.random() < 0.4 and is_held_out(f"{subject}|{second}") == is_held_out(f"{subject}|{put}"):
            around.insert(0 if end else len(around), second.strip("|"))
    if manner == "polite" or rng.random() < 0.3:
        around.insert(0, choose(rng, TONES["greetings"]))
    words = {**INSULTS, "thing": choose(rng, topic.things), "day": choose(rng, DAYS)}
    words |= {"state": choose(rng, topic.states), "step": choose(rng, topic.steps)}
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
    templates = TONES["kind_answers"]
    middle = ["{state}.", choose(rng, templates["steps"])][parts]
    return " ".join([choose(rng, templates["starts"]), *middle, choose(rng, templates["ends"])])


def _rude(rng: np.random.Generator, parts: slice) -> str:
    templates = TONES["rude_answers"]
    while True:
        middle = [choose(rng, templates["states"]), choose(rng, templates["steps"])][parts]
        text = " ".join([choose(rng, templates["starts"]), *middle, choose(rng, templates["ends"])])
        if "{insult}" in text or "{bad}" in text:
            return text
