"""What every judge of pictures has in common: scores in [0, 1] of finished pictures, one each, checked.

Judges never take part in learning or steering.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from dsas_core.errors import DSASError


class PictureJudge(Protocol):
    """Says of each picture how far it shows what is wanted."""

    name: str

    def target_scores(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """Float [n] in [0, 1]; `prompts` are the source prompts, also of pictures whose prompt was rewritten."""
        ...


class CheckedJudge(ABC):
    """A judge whose arguments and scores are checked."""

    name: str

    def target_scores(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """Float [n] in [0, 1], one for each picture.

        Raises:
            DSASError: not as many prompts as pictures, or a judge that gives anything but numbers in [0, 1].
        """
        if len(pictures) != len(prompts):
            raise DSASError(f"{len(pictures)} pictures, but {len(prompts)} prompts: expected one each")
        return _check_scores(self._score(pictures, prompts), len(pictures), self.name)

    @abstractmethod
    def _score(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> Any:
        """Numbers in [0, 1], one for each picture."""


def _check_scores(given: Any, count: int, name: str) -> np.ndarray:
    """Scores as float [n] in [0, 1]."""
    try:
        scores = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DSASError(f"{name}: expected numbers in [0, 1], found {type(given).__name__}") from error
    if scores.shape != (count,):
        raise DSASError(f"{name}: expected {count} numbers, one per picture, found shape {list(scores.shape)}")
    strange = scores[~((scores >= 0) & (scores <= 1))]
    if len(strange):
        raise DSASError(f"{name}: expected numbers in [0, 1], found {strange[0]:g}")
    return scores
