"""The unit of strength: the smallest map strength that does what is wanted without changing what must stay."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

Text = TypeVar("Text")

#: map strengths that may become the unit, a fifth apart
UNITS = tuple(float(f"{0.25 * 1.2**k:.2g}") for k in range(21))
#: how many of them bisection tries at most
TRIALS = len(UNITS).bit_length()


def held_back(sides: Mapping[str, Sequence[Text]]) -> tuple[dict[str, Sequence[Text]], dict[str, Sequence[Text]]]:
    """The prompts of each side to fit on, and the quarter that is kept for choosing the unit."""
    cut = {side: max(5, round(0.75 * len(texts))) for side, texts in sides.items()}
    fitting = {side: texts[: cut[side]] for side, texts in sides.items()}
    return fitting, {side: texts[cut[side] :] for side, texts in sides.items()}


def choose(
    attempt: Callable[[float], tuple[float, float]], drift: float, done: Callable[[], object] = lambda: None
) -> tuple[float, dict[str, Any]]:
    """Bisection over UNITS for the smallest whose effect is 1; one that drifts beyond the limit is too large.

    Args:
        attempt: tells (effect, drift) of a unit; effect 1 is all that is wanted, drift 0 leaves controls alone. What is
            not finite counts as no effect and too much drift.
        drift: the limit.
        done: called after each attempt, for a progress bar.

    Returns:
        The unit and a summary of what was tried. When none within the limit has effect 1, the most effective of those
        that were tried; when every one tried drifts too far, the smallest of UNITS.
    """
    trials: dict[float, dict[str, float]] = {}
    low, high = 0, len(UNITS)
    while low < high:
        middle = (low + high) // 2
        effect, moved = attempt(UNITS[middle])
        if not math.isfinite(effect + moved):  # the steered model overflowed
            effect, moved = 0.0, sys.float_info.max
        trials[UNITS[middle]] = {"unit": UNITS[middle], "effect": effect, "drift": moved}
        low, high = (low, middle) if effect >= 1 or moved > drift else (middle + 1, high)
        done()
    within = [trial for trial in trials.values() if trial["drift"] <= drift]
    best = max(within, key=lambda trial: (min(trial["effect"], 1.0), -trial["unit"]), default=None)
    summary = {
        "drift_limit": drift,
        "trials": [trials[unit] for unit in sorted(trials)],
        "reached": best is not None and best["effect"] >= 1,
    }
    return (best["unit"] if best else UNITS[0]), summary
