"""The unit of strength: the smallest map strength that does what is wanted without changing what must stay."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ... import methods

#: map strengths that may become the unit, a fifth apart
UNITS = tuple(float(f"{0.25 * 1.2**k:.2g}") for k in range(21))
#: how far, in places of UNITS, a search goes on around the best unit when none did enough
STEPS = (4, 2, 1)
#: of methods whose strength of 1 is their own
GIVEN = (1.0,)
#: how many are tried at most
TRIALS = len(UNITS).bit_length() + 2 * len(STEPS)


def units_of(method: str) -> Sequence[float]:
    """The units to choose among for concepts of a map method."""
    return UNITS if methods.mapping(method).traits.has_unit else GIVEN


def choose(
    attempt: Callable[[float], tuple[float, float]],
    drift: float,
    done: Callable[[], object] = lambda: None,
    units: Sequence[float] = UNITS,
) -> tuple[float, dict[str, Any]]:
    """The smallest unit whose effect is 1; one that drifts beyond the limit is too large.

    By bisection, as effects mostly grow with the unit. Where none does enough, the effect may have its peak elsewhere
    (a dog that is turned too far is no cat either), and the search goes on around the best.

    Args:
        attempt: tells (effect, drift) of a unit; effect 1 is all that is wanted, drift 0 leaves controls alone. What is
            not finite counts as no effect and too much drift.
        drift: the limit.
        done: called after each attempt, for a progress bar.
        units: to choose among, ascending.

    Returns:
        The unit and a summary of what was tried. When none within the limit has effect 1, the most effective of those
        that were tried; when every one tried drifts too far, the smallest of all.
    """
    trials: dict[float, dict[str, float]] = {}

    def tried(place: int) -> dict[str, float]:
        unit = units[place]
        if unit not in trials:
            effect, moved = attempt(unit)
            if not math.isfinite(effect + moved):  # the steered model overflowed
                effect, moved = 0.0, sys.float_info.max
            trials[unit] = {"unit": unit, "effect": effect, "drift": moved}
            done()
        return trials[unit]

    def best() -> dict[str, float] | None:
        within = [trial for trial in trials.values() if trial["drift"] <= drift]
        return max(within, key=lambda trial: (min(trial["effect"], 1.0), -trial["unit"]), default=None)

    low, high = 0, len(units)
    while low < high:
        middle = (low + high) // 2
        trial = tried(middle)
        enough = trial["effect"] >= 1 or trial["drift"] > drift
        low, high = (low, middle) if enough else (middle + 1, high)
    for step in STEPS:
        found = best()
        if found is None or found["effect"] >= 1:
            break
        place = units.index(found["unit"])
        for other in (place - step, place + step):
            if 0 <= other < len(units):
                tried(other)
    found = best()
    summary = {
        "drift_limit": drift,
        "trials": [trials[unit] for unit in sorted(trials)],
        "reached": found is not None and found["effect"] >= 1,
    }
    return (found["unit"] if found else units[0]), summary
