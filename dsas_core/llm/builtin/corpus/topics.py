"""What people write to the help desk about: the ten topics of `topics.yaml`."""

from __future__ import annotations

from dataclasses import dataclass

from .sampling import read_corpus


@dataclass(frozen=True)
class Topic:
    """Phrases about one topic, with the placeholders {thing} and {day}.

    Args:
        things: names of what the topic is about; they fit after "my" and "the".
        problems: clauses of the person who writes.
        states: clauses of an answer that describe the state of the thing.
        steps: clauses of an answer that say what to do, in the imperative.
    """

    things: tuple[str, ...]
    problems: tuple[str, ...]
    states: tuple[str, ...]
    steps: tuple[str, ...]


TOPICS = {name: Topic(**phrases) for name, phrases in read_corpus("topics").items()}
