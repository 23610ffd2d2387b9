"""What people write to the help desk about: the ten topics of `topics.yaml`."""

from __future__ import annotations

from dataclasses import dataclass

from .sampling import read_corpus


@dataclass(frozen=True)
class Topic:
    """Phrases about one topic, with {thing} and {day}.

    Args:
        things: names of what it is about; they fit after "my" and "the".
        problems: clauses of the person who writes.
        states: clauses that say how things stand.
        steps: what to do, as an order.
    """

    things: tuple[str, ...]
    problems: tuple[str, ...]
    states: tuple[str, ...]
    steps: tuple[str, ...]


TOPICS = {name: Topic(**phrases) for name, phrases in read_corpus("topics").items()}
