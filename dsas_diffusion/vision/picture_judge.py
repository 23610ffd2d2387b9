"""Judges of pictures: the interface, checks of their scores, and a judge from any function.

Judges take no part in learning or steering.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from dsas_core.errors import DSASError
from dsas_core.model.loading import reason_of

#: pictures, prompts -> numbers in [0, 1], one for each picture
ScoreFunction = Callable[[Sequence[Image.Image], Sequence[str]], Any]


class PictureJudge(Protocol):
    """Scores how much each picture shows what is wanted."""

    name: str

    def target_scores(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """Float [n] in [0, 1]; `prompts` are the source prompts, even if pictures are of rewritten prompts."""
        ...


class CheckedJudge(ABC):
    """A judge with checks of its arguments and scores; a subclass implements `_score`."""

    name: str

    def target_scores(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """Target scores, float [n] in [0, 1].

        Args:
            pictures: the pictures.
            prompts: the source prompt of each picture.

        Raises:
            DSASError: not as many prompts as pictures, or scores that are not numbers in [0, 1].
        """
        if len(pictures) != len(prompts):
            raise DSASError(f"{len(pictures)} pictures, but {len(prompts)} prompts: expected one each")
        return _check_scores(self._score(pictures, prompts), len(pictures), self.name)

    @abstractmethod
    def _score(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> Any:
        """Numbers in [0, 1], one for each picture."""


class CallableJudge(CheckedJudge):
    """A judge by a function: pictures, prompts -> numbers in [0, 1], one for each picture.

    Args:
        function: the function, or "package.module:function" to import. Its exceptions are passed on.

    Raises:
        DSASError: no such function.

    Example:
        >>> judge = CallableJudge(lambda pictures, prompts: [picture.width / 100 for picture in pictures])
        >>> judge.target_scores([Image.new("RGB", (50, 50))], ["a dog"]).tolist()
        [0.5]
    """

    def __init__(self, function: str | ScoreFunction) -> None:
        self.function = import_function(function, "judge") if isinstance(function, str) else function
        named = function if isinstance(function, str) else getattr(function, "__qualname__", type(function).__name__)
        self.name = f"callable {named}"

    def _score(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> Any:
        return self.function(list(pictures), list(prompts))


def import_function(path: str, what: str) -> Any:
    """Import a function.

    Args:
        path: "package.module:function".
        what: its role, for errors.

    Raises:
        DSASError: no such function.

    Example:
        >>> import_function("math:sqrt", "judge")(4.0)
        2.0
    """
    module, _, name = path.partition(":")
    if not module or not name:
        raise DSASError(f"{what} {path!r}: expected 'package.module:function'")
    try:
        function = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise DSASError(f"{what} {path!r}: {reason_of(error)}; is its folder in PYTHONPATH?") from error
    except AttributeError as error:
        raise DSASError(f"{what} {path!r}: {module} has no {name}") from error
    if not callable(function):
        raise DSASError(f"{what} {path!r} is no function: {type(function).__name__}")
    return function


def _check_scores(given: Any, count: int, name: str) -> np.ndarray:
    """Scores as float [n] in [0, 1]."""
    try:
        scores = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DSASError(f"{name}: expected numbers in [0, 1], found {type(given).__name__}") from error
    if scores.shape != (count,):
        raise DSASError(f"{name}: expected {count} numbers, one per picture, found shape {list(scores.shape)}")
    wrong = scores[~((scores >= 0) & (scores <= 1))]
    if len(wrong):
        raise DSASError(f"{name}: expected numbers in [0, 1], found {wrong[0]:g}")
    return scores
