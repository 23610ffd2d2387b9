"""Samples for a concept's card: on which prompts, and what happens where there are none to be had."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

from ..concept.concept import Concept
from ..errors import DSASError
from .calibration.slider_range import prompts_of
from .prompts.prompt_set import split_held_out


def sample_prompts(concept: Concept) -> tuple[list[str], int]:
    """A source prompt and a control prompt that a concept was not fitted on, and the seed of its learning.

    Raises:
        PromptError: the concept has no prompts with it.
    """
    drawn, seed = prompts_of(concept)
    _, held_out = split_held_out(drawn)
    return [held_out[side][0] for side in ("source", "control")], seed


def try_illustrate(concept: Concept, draw: Callable[[Concept], Concept]) -> Concept:
    """The concept with samples for its card; without, and with a warning, where that fails: it took long to learn."""
    try:
        return draw(concept)
    except DSASError as error:
        warnings.warn(f"its card has no samples: {error}", stacklevel=1)
        return replace(concept, samples=None)
