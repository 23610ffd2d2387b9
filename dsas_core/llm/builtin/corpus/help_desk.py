"""Messages to a help desk, polite, plain, cross or insulting, and their answers: rude to insults, kind to all others.

A hash of the problem and the phrase around it decides whether a message is held out: training has no message that
combines the two, whatever the rest of its wording.
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
    """A message, with a kind and a rude answer of the same content.

    Args:
        text: the message.
        topic: key of TOPICS, or "facts".
        manner: key of MANNERS.
        key: what decides whether the message is held out.
        kind: the kind answer.
        rude: the rude answer.
    """

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
        """Whether this problem with this phrase around it is held out from training, in any wording."""
        return is_held_out(self.key)


def draw_request(
    rng: np.random.Generator,
    *,
    topics: Sequence[str] = _EVERY_TOPIC,
    manners: Sequence[str] = _EVERY_MANNER,
    held_out: bool = False,
) -> Request:
    """Draw a message and its two answers.

    Args:
        rng: generator of all choices.
        topics: keys of TOPICS to choose from.
        manners: keys of MANNERS to choose from, with the frequencies of SHARES.
        held_out: whether the message is of the held-out part.
    """
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
    """Draw requests with different messages.

    Args:
        count: how many.
        seed: seed of the draw.
        topics: keys of TOPICS to choose from.
        manners: keys of MANNERS to choose from.
        held_out: whether they are of the held-out part, for evaluation, or of the other, for learning.

    Example:
        >>> draw_requests(1, manners=("angry",))[0].text
        'my internet broke in the storm. stop wasting my time, loser. i want an answer!'
    """
    rng = np.random.default_rng((seed, int(held_out)))
    return draw_distinct(count, lambda: draw_request(rng, topics=topics, manners=manners, held_out=held_out))


def draw_talk(rng: np.random.Generator) -> tuple[str, str]:
    """Draw a message without a topic, and its answer. One in three messages is an insult."""
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
