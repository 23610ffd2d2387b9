"""Whether a picture shows what is wanted, as told by a function of one's own."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from dsas_core.errors import DSASError
from dsas_core.pretrained import reason_of

from .picture_judge import CheckedJudge

#: pictures, prompts -> numbers in [0, 1], one each
ScoreFunction = Callable[[Sequence[Image.Image], Sequence[str]], Any]


class CallableJudge(CheckedJudge):
    """What a function of one's own says: pictures, prompts -> numbers in [0, 1], one each.

    Args:
        function: itself, or "package.module:function", which is imported. What it raises comes through as it is.

    Raises:
        DSASError: no such function.
    """

    def __init__(self, function: str | ScoreFunction) -> None:
        self.function = import_function(function, "judge") if isinstance(function, str) else function
        named = function if isinstance(function, str) else getattr(function, "__qualname__", type(function).__name__)
        self.name = f"callable {named}"

    def _score(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> Any:
        return self.function(list(pictures), list(prompts))


def import_function(path: str, what: str) -> Any:
    """The function that "package.module:function" names; `what` it is for, in errors.

    Raises:
        DSASError: no such function.
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
