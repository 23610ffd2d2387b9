"""From measurements to figures: points with intervals, hypervolumes, and arms compared at equal effect.

An arm at a strength gives, for each prompt that shows the concept, how much its output shows what is wanted (its
target score, in [0, 1]), and for each control prompt how much its output changed (`cost`, in [0, 1]). Its effect is
relative to what asking in words achieves:

    effect = (mean score - mean score without steering) / (mean score when asked - mean score without steering)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ..errors import DSASError
from .fronts import at_equal_gain, gain_at, hypervolume
from .intervals import Label, interval

#: effects are compared at this share of what words achieve
LEVEL = 0.9
#: below this, asking in words does too little for anything to be relative to it
ASKED = 0.05


@dataclass(frozen=True)
class Point:
    """One arm at one strength.

    Args:
        strength: in units of the concept; of points that choose it themselves the target probability.
        target_scores: in [0, 1], by source prompt.
        cost: in [0, 1], by control prompt.
        more: further figures, reported as they are.
    """

    strength: float
    target_scores: Sequence[float]
    cost: Sequence[float]
    more: Mapping[str, float] = field(default_factory=dict)


def summarise(
    arms: Mapping[str, Sequence[Point]],
    base: Sequence[float],
    asked: Sequence[float] | None,
    source_labels: Sequence[Label],
    control_labels: Sequence[Label],
    *,
    free: Sequence[Point] = (),
    rounds: int = 500,
    seed: int = 0,
) -> dict[str, Any]:
    """The figures of all arms.

    Args:
        arms: points of ascending strength, the same strengths in every arm.
        base, asked: what is shown without steering, and when the prompt asks for it, by source prompt; None where
            nothing asks in words, which then counts as 1.
        source_labels, control_labels: seed and prompt of each source and each control item, for the bootstrap.
        free: points of DSAS without a strength to tune, by target.
        rounds, seed: of the bootstrap.

    Returns:
        {"asked", "base", "relative", "arms": {arm: {"points", "hypervolume"}}, "at_equal_effect", "auto"}. `relative`
        is False where asking in words does no better than nothing: effects are then absolute differences. "auto" tells
        of each free point how far its effect is above that of the swept front of DSAS at the same cost, `over`.

    Raises:
        DSASError: no prompts on a side.
    """
    if not len(base) or not len(control_labels):
        raise DSASError(
            f"{len(base)} source and {len(control_labels)} control prompts to judge by: each side needs one"
        )
    asked_scores = np.ones(len(base)) if asked is None else np.asarray(asked, float)
    base_scores = np.asarray(base, float)
    relative = float(asked_scores.mean() - base_scores.mean()) > ASKED
    sources = len(base_scores)
    labels = [*source_labels, *control_labels]

    def effect(point: Point, at: np.ndarray) -> float:
        source = at[at < sources] if (at < sources).any() else np.arange(sources)  # a resample may have none of a side
        gained = float(np.asarray(point.target_scores, float)[source].mean() - base_scores[source].mean())
        asked_for = float(asked_scores[source].mean() - base_scores[source].mean())
        return gained / max(asked_for, ASKED) if relative else gained

    def cost(point: Point, at: np.ndarray) -> float:
        control = at[at >= sources] - sources if (at >= sources).any() else np.arange(len(control_labels))
        return float(np.asarray(point.cost, float)[control].mean())

    def area(points: Sequence[Point], at: np.ndarray) -> float:
        return hypervolume([(cost(point, at), min(1.0, effect(point, at))) for point in points])

    def between(statistic: Callable[[Any, np.ndarray], float], of: Any) -> dict[str, float]:
        return asdict(interval(partial(statistic, of), labels, rounds=rounds, seed=seed))

    def effect_and_cost(point: Point) -> dict[str, dict[str, float]]:
        return {"effect": between(effect, point), "cost": between(cost, point)}

    figures: dict[str, Any] = {
        "base": float(base_scores.mean()),
        "asked": None if asked is None else float(asked_scores.mean()),
        "relative": relative,
        "arms": {},
        "at_equal_effect": {},
    }
    for arm, points in arms.items():
        lines = [{"strength": point.strength, **effect_and_cost(point), **point.more} for point in points]
        figures["arms"][arm] = {"points": lines, "hypervolume": between(area, points)}
    swept = arms.get("dsas", ())

    def over(point: Point, at: np.ndarray) -> float:
        return effect(point, at) - gain_at([(cost(each, at), effect(each, at)) for each in swept], cost(point, at))

    figures["auto"] = [
        {"target": point.strength, **effect_and_cost(point), "over": between(over, point)} for point in free
    ]
    everything = np.arange(len(labels))
    curves = {
        arm: [(cost(point, everything), effect(point, everything)) for point in points] for arm, points in arms.items()
    }
    for arm, curve in curves.items():
        if "dsas" in curves and arm != "dsas":
            figures["at_equal_effect"][arm] = asdict(at_equal_gain(curves["dsas"], curve, LEVEL))
    return figures
