"""The arms of the comparison: how a model is steered while something is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.real_text.reading import OnRows
from dsas_core import llm
from dsas_core.concept.concept import Concept
from dsas_core.evaluation import build_arm

#: name -> label in reports
ARMS = {
    "unsteered": "unsteered",
    "prefix": "polite prefix",
    "on": "always on",
    "dsas": "DSAS",
    "oracle": "gate that knows",
    "random_gate": "gate at random",
    "random_direction": "random direction",
}
#: what the polite prefix says before each prompt
PREFIX = "The following was written by a polite and respectful person."


@dataclass(frozen=True)
class Arm:
    """One way to steer.

    Args:
        concept: what steers; None for the model as it is.
        strength: in units of the concept.
        gate: as in `llm.steer`.
        prefix: words before each prompt.
        share: of texts that a gate at random opens for, a coin for each text; None without one.

    Example:
        >>> Arm().key
        {'concept': None, 'strength': 0.0, 'gate': None, 'prefix': '', 'share': None}
    """

    concept: Concept | None = None
    strength: float = 0.0
    gate: str | None = None
    prefix: str = ""
    share: float | None = None

    @property
    def key(self) -> dict[str, Any]:
        """Everything that tells the arm from others, as plain data."""
        return {
            "concept": None if self.concept is None else self.concept.digest,
            "strength": self.strength,
            "gate": self.gate,
            "prefix": self.prefix,
            "share": self.share,
        }

    @property
    def by_prompt(self) -> bool:
        """Whether a gate decides at the end of a prompt, so that texts are to be read as they are written."""
        return self.concept is not None and self.gate is None and self.concept.by_prompt

    @contextmanager
    def attach(self, model: Any, texts: Sequence[object] = ()) -> Iterator[OnRows | None]:
        """Steer a model until the end of the block.

        Args:
            model: the model.
            texts: that will run, for a gate at random.

        Yields:
            What a `ModelReader` is to call before each batch.
        """
        if self.concept is None:
            yield None
            return
        with llm.steer(model, {self.concept: self.strength}, gate=self.gate) as steering:
            if self.share is None:
                yield None
                return
            opened = np.random.default_rng(0).permutation(len(texts)) < round(self.share * len(texts))
            name = self.concept.name

            def open_rows(rows: Sequence[int]) -> None:
                steering.strengths[name] = [self.strength * bool(opened[row]) for row in rows]

            yield open_rows


def turn_at_random(concept: Concept, seed: int) -> Concept:
    """The concept with its gates, and with maps of the same size in random directions."""
    return build_arm(concept, "random_direction", seed=seed)[0]
