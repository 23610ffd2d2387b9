"""Samples for a concept's card: on which prompts, and a card without samples where they cannot be made."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

from ..concept.concept import Concept
from ..errors import DSASError, PromptError
from .calibration.slider_range import prompts_of
from .prompts.held_out import split_held_out


def sample_prompts(concept: Concept) -> tuple[list[str], int]:
    """Choose a source prompt and a control prompt that a concept was not fitted on.

    Args:
        concept: a learned concept, with its prompts in the provenance.

    Returns:
        The two prompts, and the seed of the concept's learning.

    Raises:
        PromptError: the concept does not record its prompts, or they are private.

    Example:
        >>> import dsas_core
        >>> prompts, seed = sample_prompts(dsas_core.Concept.from_pretrained("builtin:banana-blur"))
        >>> len(prompts), seed
        (2, 0)
    """
    if concept.is_private:
        raise PromptError(f"concept {concept.name!r} was learned from private prompts, of which no card shows samples")
    drawn, seed = prompts_of(concept)
    _, held_out = split_held_out(drawn)
    return [held_out[side][0] for side in ("source", "control")], seed


def try_illustrate(concept: Concept, draw: Callable[[Concept], Concept]) -> Concept:
    """Add samples to a concept; where that fails, warn and keep the concept, which took long to learn.

    Of private prompts there are none, and nothing is tried.

    Args:
        concept: the concept; it is not changed.
        draw: returns a concept with samples.

    Returns:
        What `draw` returns, or the concept without samples.

    Example:
        >>> import dsas_core
        >>> concept = dsas_core.Concept.from_pretrained("builtin:banana-blur")
        >>> try_illustrate(concept, lambda concept: concept) == concept
        True
    """
    if concept.is_private:
        return replace(concept, samples=None)
    try:
        return draw(concept)
    except DSASError as error:
        warnings.warn(f"its card has no samples: {error}", stacklevel=1)
        return replace(concept, samples=None)
