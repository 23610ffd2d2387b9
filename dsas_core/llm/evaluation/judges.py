"""Judges of texts, by a scorer or a list of words: whether an answer shows the effect that a concept should have.

`judge_from` builds a judge from plain data, such as the `judge` of a prompt file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any, Protocol

from ...errors import DSASError
from .toxicity import LexiconScorer, Scorer, scorer


class TextJudge(Protocol):
    """Scores how much each text shows the effect that a concept should have."""

    @property
    def name(self) -> str:
        """The judge's name in reports."""

    def target_scores(self, texts: Sequence[str]) -> list[float]:
        """Scores in [0, 1], one for each text."""


@dataclass(frozen=True)
class ScoredJudge:
    """A judge by a scorer of texts.

    Args:
        scores: the scorer, with scores in [0, 1].
        wanted: whether the concept should raise the score, or lower it.
        name: in reports.

    Example:
        >>> judge = ScoredJudge(LexiconScorer(["fool"]), wanted=False)
        >>> judge.target_scores(["you fool", "thank you"])
        [0.0, 1.0]
    """

    scores: Scorer
    wanted: bool = False
    name: str = "scorer"

    def target_scores(self, texts: Sequence[str]) -> list[float]:
        """The scores, or 1 minus the scores if the concept should lower them."""
        return [score if self.wanted else 1 - score for score in self.scores(texts)]


def judge_from(spec: Mapping[str, Any]) -> TextJudge:
    """A judge from a prompt file's `judge`.

    Args:
        spec: {"scorer": {"model": "builtin:chat", or a text classifier's folder or Hub name, "wanted": false}}, or
            {"words": {"any": [...], "wanted": true}}.

    Raises:
        DSASError: another kind of judge, or one that cannot be loaded.

    Example:
        >>> judge_from({"words": {"any": ["sun"]}}).target_scores(["the sun shines", "rain"])
        [1.0, 0.0]
    """
    kind, settings = next(iter(spec.items()), ("", None))
    if len(spec) != 1 or kind not in ("scorer", "words") or not isinstance(settings, Mapping):
        raise DSASError(f"judge {dict(spec)!r}: expected scorer: {{model, wanted}} or words: {{any, wanted}}")
    key, type_, what = ("model", str, "a name") if kind == "scorer" else ("any", list | tuple, "a list")
    value: Any = settings.get(key)
    wanted = settings.get("wanted", kind == "words")
    fits = isinstance(value, type_) and isinstance(wanted, bool)
    if set(settings) - {key, "wanted"} or not fits:
        raise DSASError(f"judge {kind}: expected {key}, {what}, and wanted: true or false; found {dict(settings)!r}")
    if kind == "scorer":
        return ScoredJudge(scorer(value), wanted, f"scorer {value}")
    return ScoredJudge(LexiconScorer(value), wanted, f"words {shorten(', '.join(value), 40)}")
