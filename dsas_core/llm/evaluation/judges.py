"""Judges of texts: whether an answer shows what a concept is to do, as told by a scorer or a list of words.

`judge_from` makes one from plain data, such as a prompt file holds under `judge`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any, Protocol

from ...errors import DSASError
from .toxicity import LexiconScorer, Scorer, scorer


class TextJudge(Protocol):
    """Tells how much each text shows what a concept is to do."""

    @property
    def name(self) -> str:
        """What reports call it."""

    def target_scores(self, texts: Sequence[str]) -> list[float]:
        """In [0, 1], one for each text."""


@dataclass(frozen=True)
class ScoredJudge:
    """A judge by a scorer of texts.

    Args:
        scores: in [0, 1]. wanted: whether a high score is what the concept is to do, or what it is to remove.
        name: in reports.
    """

    scores: Scorer
    wanted: bool = False
    name: str = "scorer"

    def target_scores(self, texts: Sequence[str]) -> list[float]:
        """The scores, or what is left of 1 where a high score is to be removed."""
        return [score if self.wanted else 1 - score for score in self.scores(texts)]


def judge_from(spec: Mapping[str, Any]) -> TextJudge:
    """A judge from a prompt file's `judge`.

    Args:
        spec: {"scorer": {"model": "builtin:chat", or a text classifier's folder or Hub name, "wanted": false}}, or
            {"words": {"any": [...], "wanted": true}}.

    Raises:
        DSASError: another kind of judge, or one that cannot be loaded.
    """
    kind, settings = next(iter(spec.items()), ("", None))
    if len(spec) != 1 or kind not in ("scorer", "words") or not isinstance(settings, Mapping):
        raise DSASError(f"judge {dict(spec)!r}: expected scorer: {{model, wanted}} or words: {{any, wanted}}")
    named = {"scorer": "model", "words": "any"}[kind]
    unknown = sorted(set(settings) - {named, "wanted"})
    fits = isinstance(settings.get(named), str if kind == "scorer" else list | tuple)
    if unknown or not fits or not isinstance(settings.get("wanted", False), bool):
        what = "a name" if kind == "scorer" else "a list"
        raise DSASError(f"judge {kind}: expected {named}, {what}, and wanted: true or false; found {dict(settings)!r}")
    scores = scorer(settings[named]) if kind == "scorer" else LexiconScorer(settings[named])
    name = f"scorer {settings[named]}" if kind == "scorer" else f"words {shorten(', '.join(settings[named]), 40)}"
    return ScoredJudge(scores, settings.get("wanted", kind == "words"), name)
