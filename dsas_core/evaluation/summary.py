"""Figures from measurements: effects and costs with intervals, hypervolumes, and arms compared at equal effect.

An arm at a strength has a target score in [0, 1] for each source prompt (how much its output shows what is wanted), and
a `cost` in [0, 1] for each control prompt (how much its output changed). Its effect is relative to asking in words:

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
from .intervals import Label, bootstrap_interval

#: arms are compared at this effect
LEVEL = 0.9
#: the least gain of asking in words that effects can be relative to
MIN_ASKED_GAIN = 0.05


@dataclass(frozen=True)
class Point:
    """One arm at one strength.

    Args:
        strength: in units of the concept; the target probability if the strength is chosen automatically.
        target_scores: in [0, 1], one a source prompt.
        cost: in [0, 1], one a control prompt.
        more: further figures, reported unchanged.
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
        base: target scores without steering, one a source prompt.
        asked: target scores when the prompt asks in words; None if no prompt does, which counts as 1.
        source_labels: seed and prompt of each source item, for the bootstrap.
        control_labels: seed and prompt of each control item.
        free: points of DSAS that chooses its own strength, by target.
        rounds: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        {"base", "asked", "relative", "arms": {arm: {"points", "hypervolume"}}, "at_equal_effect", "auto"}. `relative`
        is False if asking in words gains too little: effects are then absolute differences. In "auto", `over` is how
        far a free point's effect is above that of the swept front of DSAS at the same cost.

    Raises:
        DSASError: no prompts on a side.

    Example:
        >>> labels = [(0, "a dog"), (0, "a cat")]
        >>> dsas = [Point(1.0, [0.8, 0.8], [0.1, 0.1])]
        >>> figures = summarise({"dsas": dsas}, [0.0, 0.0], [1.0, 1.0], labels, labels, rounds=10)
        >>> figures["arms"]["dsas"]["points"][0]["effect"]["value"]
        0.8
    """
    if not len(base) or not len(control_labels):
        raise DSASError(
            f"{len(base)} source and {len(control_labels)} control prompts to judge by: each side needs one"
        )
    asked_scores = np.ones(len(base)) if asked is None else np.asarray(asked, float)
    base_scores = np.asarray(base, float)
    relative = float(asked_scores.mean() - base_scores.mean()) > MIN_ASKED_GAIN
    sources = len(base_scores)
    labels = [*source_labels, *control_labels]

    def effect(point: Point, at: np.ndarray) -> float:
        source = at[at < sources] if (at < sources).any() else np.arange(sources)  # a resample may lack a side
        gained = float(np.asarray(point.target_scores, float)[source].mean() - base_scores[source].mean())
        asked_for = float(asked_scores[source].mean() - base_scores[source].mean())
        return gained / max(asked_for, MIN_ASKED_GAIN) if relative else gained

    def cost(point: Point, at: np.ndarray) -> float:
        control = at[at >= sources] - sources if (at >= sources).any() else np.arange(len(control_labels))
        return float(np.asarray(point.cost, float)[control].mean())

    def curve(points: Sequence[Point], at: np.ndarray) -> list[tuple[float, float]]:
        return [(cost(point, at), effect(point, at)) for point in points]

    def area(points: Sequence[Point], at: np.ndarray) -> float:
        return hypervolume([(spent, min(1.0, gained)) for spent, gained in curve(points, at)])

    def over(point: Point, at: np.ndarray) -> float:
        return effect(point, at) - gain_at(curve(arms.get("dsas", ()), at), cost(point, at))

    def between(statistic: Callable[[Any, np.ndarray], float], of: Any) -> dict[str, float]:
        return asdict(bootstrap_interval(partial(statistic, of), labels, rounds=rounds, seed=seed))

    def effect_and_cost(point: Point) -> dict[str, dict[str, float]]:
        return {"effect": between(effect, point), "cost": between(cost, point)}

    curves = {arm: curve(points, np.arange(len(labels))) for arm, points in arms.items()}
    others = [arm for arm in curves if "dsas" in curves and arm != "dsas"]
    return {
        "base": float(base_scores.mean()),
        "asked": None if asked is None else float(asked_scores.mean()),
        "relative": relative,
        "arms": {
            arm: {
                "points": [{"strength": point.strength, **effect_and_cost(point), **point.more} for point in points],
                "hypervolume": between(area, points),
            }
            for arm, points in arms.items()
        },
        "at_equal_effect": {arm: asdict(at_equal_gain(curves["dsas"], curves[arm], LEVEL)) for arm in others},
        "auto": [{"target": point.strength, **effect_and_cost(point), "over": between(over, point)} for point in free],
    }
