"""The unit of strength: the smallest map strength that has the full effect without changing what must stay."""

from __future__ import annotations

import math
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from ... import methods

#: map strengths that may become the unit, a fifth apart
UNITS = tuple(float(f"{0.25 * 1.2**k:.2g}") for k in range(21))
#: the same where one site of a language model is steered: smaller ones too, a tenth apart
TEXT_UNITS = tuple(float(f"{0.1 * 1.1**k:.3g}") for k in range(46))
#: steps, in places of UNITS, of the search around the best unit when none has the full effect
STEPS = (4, 2, 1)
#: the unit of methods whose strength of 1 is fixed by the method
FIXED_UNIT = (1.0,)
#: how many units are tried at most
TRIALS = len(UNITS).bit_length() + 2 * len(STEPS)
#: the knee of the effect: the smallest unit that has this part of what the largest harmless one has
KNEE = 0.95


class Trial(NamedTuple):
    """What a strength does on held-out prompts.

    Args:
        effect: on source prompts; 1 is the full effect.
        drift: of control prompts, in the domain's measure; 0 leaves them alone.
        displacement: how far outputs of source prompts move, over how far asking in words moves them.
        novelty: how far they are from what the unsteered model generates, over how far its own are.
        harm: what a strength costs, in parts of the limits of the domain; more than 1 is too much. None where nothing
            but drift tells it.
    """

    effect: float
    drift: float
    displacement: float = 0.0
    novelty: float = 0.0
    harm: float | None = None

    def is_harmless(self, drift: float = math.inf) -> bool:
        """Whether the harm is within the limits; where none is told, whether the drift is within its limit.

        Example:
            >>> Trial(1.0, drift=0.5, harm=0.9).is_harmless(drift=0.1), Trial(1.0, drift=0.5).is_harmless(drift=0.1)
            (True, False)
        """
        return self.drift <= drift if self.harm is None else self.harm <= 1


class Trials(dict[float, Trial]):
    """Trials by strength, each made when it is first looked up.

    Args:
        attempt: returns the fields of the `Trial` of a strength. If one is not finite, the steered model overflowed:
            that counts as no effect and too much of everything else.
        done: called after each attempt, for a progress bar.
    """

    def __init__(self, attempt: Callable[[float], Iterable[float | None]], done: Callable[[], object]) -> None:
        super().__init__()
        self._attempt, self._done = attempt, done

    def __missing__(self, strength: float) -> Trial:
        trial = Trial(*self._attempt(strength))  # type: ignore[arg-type]
        finite = all(math.isfinite(value) for value in trial if value is not None)
        self[strength] = trial if finite else Trial(0.0, *[sys.float_info.max] * 4)
        self._done()
        return self[strength]


def units_of(method: str, units: Sequence[float] = UNITS) -> Sequence[float]:
    """The units to choose among for concepts of a map method: `units`, or the one that the method fixes.

    Example:
        >>> units_of("caa")[:3], units_of("mera")
        ((0.25, 0.3, 0.36), (1.0,))
    """
    return units if methods.mapping(method).traits.has_unit else FIXED_UNIT


def choose_knee(
    attempt: Callable[[float], Iterable[float | None]],
    done: Callable[[], object] = lambda: None,
    units: Sequence[float] = TEXT_UNITS,
    relative: bool = True,
) -> tuple[float, dict[str, Any]]:
    """Choose the smallest unit that has nearly the full effect, or nearly that of the largest harmless one.

    Both by bisection, as effect and harm mostly grow with the unit; the second among what the first has left open.

    Args:
        attempt: returns the fields of a `Trial` of a unit; its harm is above 1 where the unit is too large.
        done: called after each attempt, for a progress bar; there are at most `TRIALS`.
        units: to choose among, ascending.
        relative: whether nearly the effect of the largest harmless unit is enough; else only the full effect is, and
            without it the largest harmless unit is chosen: right where effects are measured coarsely.

    Returns:
        The unit and a summary of all trials; `reached` tells whether the unit has the full effect. The smallest unit
        where every one that was tried does harm.

    Example:
        >>> choose_knee(lambda unit: (min(unit, 0.8), 0.0, 0.0, 0.0, unit / 3))[0]
        0.814
    """
    trials = Trials(attempt, done)

    largest = bisect_left(units, True, key=lambda unit: not trials[unit].is_harmless()) - 1
    unit = units[max(largest, 0)]
    if largest > 0:
        enough = KNEE * (min(trials[unit].effect, 1.0) if relative else 1.0)
        known = {place: trials[unit].effect >= enough for place, unit in enumerate(units[:largest]) if unit in trials}
        low = 1 + max((place for place in known if not known[place]), default=-1)
        high = min((place for place in known if known[place] and place >= low), default=largest)
        unit = units[bisect_left(units, True, lo=low, hi=high, key=lambda unit: trials[unit].effect >= enough)]
    trial = trials[unit]
    listed = [{"unit": tried, "effect": trials[tried].effect, "harm": trials[tried].harm} for tried in sorted(trials)]
    return unit, {"trials": listed, "reached": trial.is_harmless() and trial.effect >= KNEE}


def choose(
    attempt: Callable[[float], Iterable[float]],
    drift: float,
    done: Callable[[], object] = lambda: None,
    units: Sequence[float] = UNITS,
    enough: float = 1.0,
    measure_drift: Callable[[float], float] | None = None,
) -> tuple[float, dict[str, Any]]:
    """Choose the smallest unit whose effect is enough; one that drifts beyond the limit is too large.

    By bisection, as effects mostly grow with the unit. Where none has the full effect, the effect may have its peak
    elsewhere (a dog that is turned too far is no cat either), and the search continues around the best.

    Args:
        attempt: returns effect and drift of a unit, the first fields of a `Trial`; the effect alone counts where drift
            is measured apart.
        drift: the limit.
        done: called after each attempt, for a progress bar; there are at most `TRIALS`.
        units: to choose among, ascending.
        enough: the effect that is sought.
        measure_drift: measures the drift of a unit, where that is as much work as its effect: asked only of units that
            have the effect, then of smaller ones until one drifts within the limit. None where `attempt` tells it.

    Returns:
        The unit and a summary of all trials; those for which it was not asked have no drift. When none within the
        limit has the effect, the most effective of those that were tried; when every one tried drifts too far, the
        smallest of all.

    Example:
        >>> choose(lambda unit: (unit / 2, 0.0), drift=0.1)[0]
        2.2
        >>> asked = []
        >>> choose(lambda unit: (unit / 2, 0.0), drift=0.1, measure_drift=lambda unit: asked.append(unit) or 0.0)[0]
        2.2
        >>> asked
        [2.2]
    """
    trials = Trials(attempt, done)
    drifts: dict[float, float] = {}

    def drift_of(unit: float) -> float:
        if measure_drift is None:
            return trials[unit].drift
        if unit not in drifts:
            measured = measure_drift(unit)
            drifts[unit] = measured if math.isfinite(measured) else sys.float_info.max
        return drifts[unit]

    def is_too_large(unit: float) -> bool:
        return measure_drift is None and trials[unit].drift > drift

    def best_unit() -> float | None:
        within = [unit for unit, trial in trials.items() if not is_too_large(unit)]
        return max(within, key=lambda unit: (min(trials[unit].effect, enough), -unit), default=None)

    bisect_left(units, True, key=lambda unit: trials[unit].effect >= enough or is_too_large(unit))  # tries them
    for step in STEPS:
        best = best_unit()
        if best is None or trials[best].effect >= enough:
            break
        place = units.index(best)
        for other in (place - step, place + step):
            if 0 <= other < len(units):
                trials[units[other]]  # a look-up is a trial
    best = best_unit()
    if measure_drift is not None and best is not None and drift_of(best) > drift:
        below = units[: units.index(best)]
        place = bisect_left(below, True, key=lambda unit: drift_of(unit) > drift)
        best = below[place - 1] if place else None
    best = units[0] if best is None else best
    reached = trials[best].effect >= enough and not drift_of(best) > drift
    listed = [
        {"unit": unit, "effect": trial.effect}
        | ({"drift": trial.drift} if measure_drift is None else {"drift": drifts[unit]} if unit in drifts else {})
        for unit, trial in sorted(trials.items())
    ]
    return best, {"drift_limit": drift, "trials": listed, "reached": reached}
