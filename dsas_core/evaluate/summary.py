"""From measurements to figures: points with intervals, hypervolumes, and arms compared at equal effect.

An arm at a strength gives, for each prompt that shows the concept, how much its output shows what is wanted (`shown`,
in [0, 1]), and for each control prompt how much its output changed (`cost`, in [0, 1]). Its effect is relative to what
asking in words achieves:

    effect = (mean shown - mean shown without steering) / (mean shown when asked - mean shown without steering)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..errors import DSASError
from .fronts import at_equal_gain, hypervolume
from .intervals import Interval, Label, interval

#: effects are compared at this share of what words achieve
LEVEL = 0.9
#: below this, asking in words does too little for anything to be relative to it
ASKED = 0.05


@dataclass(frozen=True)
class Point:
    """One arm at one strength.

    Args:
        strength: in units of the concept.
        shown: in [0, 1], by source prompt. cost: in [0, 1], by control prompt.
        more: further figures, reported as they are.
    """

    strength: float
    shown: Sequence[float]
    cost: Sequence[float]
    more: Mapping[str, float] = field(default_factory=dict)


def summed_up(
    arms: Mapping[str, Sequence[Point]],
    base: Sequence[float],
    asked: Sequence[float] | None,
    source_labels: Sequence[Label],
    control_labels: Sequence[Label],
    *,
    rounds: int = 500,
    seed: int = 0,
) -> dict[str, Any]:
    """The figures of all arms.

    Args:
        arms: points of ascending strength, the same strengths in every arm.
        base, asked: what is shown without steering, and when the prompt asks for it, by source prompt; None where
            nothing asks in words, which then counts as 1.
        source_labels, control_labels: seed and prompt of each source and each control item, for the bootstrap.
        rounds, seed: of the bootstrap.

    Returns:
        {"asked", "base", "relative", "arms": {arm: {"points", "hypervolume"}}, "at_equal_effect"}. `relative` is False
        where asking in words does no better than nothing: effects are then absolute differences.

    Raises:
        DSASError: no prompts on a side.
    """
    if not len(base) or not len(control_labels):
        raise DSASError(
            f"{len(base)} source and {len(control_labels)} control prompts to judge by: each side needs one"
        )
    wanted = np.ones(len(base)) if asked is None else np.asarray(asked, float)
    plain = np.asarray(base, float)
    relative = float(wanted.mean() - plain.mean()) > ASKED
    sources = len(plain)
    labels = [*source_labels, *control_labels]

    def effect(shown: np.ndarray, at: np.ndarray) -> float:
        gained = float(shown[at].mean() - plain[at].mean())
        return gained / max(float(wanted[at].mean() - plain[at].mean()), ASKED) if relative else gained

    def parts(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Indices into the source and the control prompts; all of a side that a resample has none of."""
        source, control = at[at < sources], at[at >= sources] - sources
        every = np.arange(sources), np.arange(len(control_labels))
        return (source if len(source) else every[0]), (control if len(control) else every[1])

    def curve(points: Sequence[Point], at: np.ndarray) -> list[tuple[float, float]]:
        source, control = parts(at)
        return [
            (float(np.asarray(p.cost, float)[control].mean()), effect(np.asarray(p.shown, float), source))
            for p in points
        ]

    def between(statistic: Callable[[np.ndarray], float]) -> Interval:
        return interval(statistic, labels, rounds=rounds, seed=seed)

    def area(points: Sequence[Point]) -> Callable[[np.ndarray], float]:
        return lambda at: hypervolume([(cost, min(1.0, gain)) for cost, gain in curve(points, at)])

    figures: dict[str, Any] = {"base": float(plain.mean()), "asked": None if asked is None else float(wanted.mean())}
    figures |= {"relative": relative, "arms": {}, "at_equal_effect": {}}
    everything = np.arange(len(labels))
    for arm, points in arms.items():
        told = []
        for i, point in enumerate(points):
            told.append(
                {
                    "strength": point.strength,
                    "effect": asdict(between(lambda at, i=i, points=points: curve(points, at)[i][1])),  # type: ignore[misc]
                    "cost": asdict(between(lambda at, i=i, points=points: curve(points, at)[i][0])),  # type: ignore[misc]
                    **point.more,
                }
            )
        figures["arms"][arm] = {"points": told, "hypervolume": asdict(between(area(points)))}
    if "dsas" in arms:
        ours = curve(arms["dsas"], everything)
        for arm, points in arms.items():
            if arm != "dsas":
                found = at_equal_gain(ours, curve(points, everything), LEVEL)
                figures["at_equal_effect"][arm] = asdict(found)
    return figures
