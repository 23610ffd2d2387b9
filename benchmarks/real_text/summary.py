"""All seeds together: what each arm removes and costs, fronts, and intervals over seeds and prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks.real_text.cost_grid import CEILING
from dsas_core.evaluation.fronts import Points, gain_at, hypervolume
from dsas_core.evaluation.intervals import Interval, Label, bootstrap_interval

#: resamples of an interval
ROUNDS = 1000
#: domain cost at which arms are compared
LIMIT = 0.05
#: the least way from always-on to the oracle of which a share is told
WAY = 0.05

Run = Mapping[str, Any]
At = np.ndarray


class Comparison:
    """The continuations of all seeds as one list of items, one for each seed and prompt.

    Args:
        runs: one for each seed, as `measure_seed` returns them.
        judge: name of the judge.

    Example:
        >>> def point(toxic, cost):
        ...     return {"toxic": {"words": toxic}, "domain": cost}
        >>> arms = {"unsteered": [point([1, 1], 0)], "on": [point([0, 1], 0.1)], "dsas": [point([0, 0], 0.05)]}
        >>> Comparison([{"seed": 0, "prompts": ["a", "b"], "arms": arms}], "words").removal("dsas", 0).value
        1.0
    """

    def __init__(self, runs: Sequence[Run], judge: str) -> None:
        self._labels: list[Label] = [(run["seed"], prompt) for run in runs for prompt in run["prompts"]]
        self._toxic = {
            name: np.array([np.concatenate([run["arms"][name][i]["toxic"][judge] for run in runs]) for i in places])
            for name, places in _places(runs).items()
        }
        #: cost of each item's seed
        self._cost = {
            name: np.array(
                [[max(0.0, run["arms"][name][i]["domain"]) for run in runs for _ in run["prompts"]] for i in places]
            )
            for name, places in _places(runs).items()
        }

    def share(self, arm: str, place: int) -> Interval:
        """The share of toxic continuations."""
        return self._interval(lambda at: float(self._toxic[arm][place][at].mean()))

    def removal(self, arm: str, place: int) -> Interval:
        """The share of the unsteered model's toxic continuations that an arm takes away; negative where it adds."""
        return self._interval(lambda at: self._gains(arm, at)[place])

    def lead(self, arm: str, other: str, place: int) -> Interval:
        """What an arm removes at a place of the grid more than another does."""
        return self._interval(lambda at: self._gains(arm, at)[place] - self._gains(other, at)[place])

    def volume(self, arm: str) -> Interval:
        """Hypervolume of an arm's front, removal over cost up to the ceiling; 1 is everything removed at no cost."""
        return self._interval(lambda at: self._volume(arm, at))

    def volume_difference(self) -> Interval:
        """How much larger the hypervolume of DSAS is than that of always-on."""
        return self._interval(lambda at: self._volume("dsas", at) - self._volume("on", at))

    def at_limit(self, arm: str) -> Interval:
        """What an arm removes at a domain cost of `LIMIT`, linear between the points of its front."""
        return self._interval(lambda at: gain_at(self._points(arm, at), LIMIT))

    def oracle(self) -> Interval:
        """What always-on removes at its best point within the ceiling: what a gate that knows would, at no cost."""
        return self._interval(self._oracle)

    def way_to_oracle(self) -> Interval | None:
        """The share of the way from always-on to the oracle that DSAS goes, at `LIMIT`; None where there is no way."""

        def share(at: At) -> float:
            on, dsas = (gain_at(self._points(arm, at), LIMIT) for arm in ("on", "dsas"))
            way = self._oracle(at) - on
            return (dsas - on) / way if way >= WAY else np.nan

        if not np.isfinite(share(np.arange(len(self._labels)))):
            return None
        return self._interval(share)

    def _interval(self, statistic: Callable[[At], float]) -> Interval:
        """A statistic with its interval; resamples where it is not defined count as its value."""
        value = statistic(np.arange(len(self._labels)))

        def defined(at: At) -> float:
            found = statistic(at)
            return found if np.isfinite(found) else value

        return bootstrap_interval(defined, self._labels, rounds=ROUNDS)

    def _gains(self, arm: str, at: At) -> list[float]:
        before = self._toxic["unsteered"][0][at].mean()
        return [float(1 - after / before) if before else 0.0 for after in self._toxic[arm][:, at].mean(1)]

    def _points(self, arm: str, at: At) -> Points:
        return list(zip(self._cost[arm][:, at].mean(1).tolist(), self._gains(arm, at), strict=True))

    def _volume(self, arm: str, at: At) -> float:
        return hypervolume(self._points(arm, at), (CEILING, 0.0)) / CEILING

    def _oracle(self, at: At) -> float:
        return max((gain for cost, gain in self._points("on", at) if cost <= CEILING), default=0.0)


def summarise(runs: Sequence[Run]) -> dict[str, Any]:
    """The figures of all seeds, as plain data."""
    judges = list(runs[0]["judges"])
    comparisons = {judge: Comparison(runs, judge) for judge in judges}
    fronts = {}
    for judge, comparison in comparisons.items():
        way = comparison.way_to_oracle()
        fronts[judge] = {
            "dsas": asdict(comparison.volume("dsas")),
            "on": asdict(comparison.volume("on")),
            "difference": asdict(comparison.volume_difference()),
            "at_limit": {arm: asdict(comparison.at_limit(arm)) for arm in ("dsas", "on")},
            "oracle": asdict(comparison.oracle()),
            "way_to_oracle": way and asdict(way),
            "difference_by_place": [asdict(comparison.lead("dsas", "on", i)) for i in _places(runs)["dsas"]],
        }
    return {
        "seeds": len(runs),
        "prompts": len(runs[0]["prompts"]),
        "units": [run["unit"] for run in runs],
        "evidence_of_units": [run["evidence_of_unit"] for run in runs],
        "sites": runs[0]["sites"],
        "learning_seconds": _mean([run["seconds"] for run in runs]),
        "warnings": list(dict.fromkeys(text for run in runs for text in run["warnings"])),
        "perplexity": {kind: _mean([run["perplexity"][kind] for run in runs]) for kind in runs[0]["perplexity"]},
        "judges": {
            judge: {key: _mean([run["judges"][judge][key] for run in runs]) for key in ("auroc", "recall", "false")}
            for judge in judges
        },
        "arms": {
            name: [_summarise_point(runs, comparisons, name, place) for place in places]
            for name, places in _places(runs).items()
        },
        "fronts": fronts,
        "gates": _summarise_gates(runs),
        "samples": _samples(runs[0]),
    }


def _places(runs: Sequence[Run]) -> dict[str, range]:
    """The places of each arm's curve."""
    return {name: range(len(points)) for name, points in runs[0]["arms"].items()}


def _summarise_point(
    runs: Sequence[Run], comparisons: Mapping[str, Comparison], name: str, place: int
) -> dict[str, Any]:
    points = [run["arms"][name][place] for run in runs]
    line: dict[str, Any] = {"strengths": [point["strength"] for point in points]}
    for judge, comparison in comparisons.items():
        line[judge] = {
            "toxic": asdict(comparison.share(name, place)),
            "removed": asdict(comparison.removal(name, place)),
        }
    line |= {key: _mean([point[key] for point in points]) for key in ("domain", "wikitext", "repeats", "nats")}
    for test in points[0].get("right", ()):
        line[test] = _summarise_test(runs, points, test)
    return line


def _summarise_test(runs: Sequence[Run], points: Sequence[Run], test: str) -> dict[str, Any]:
    """The accuracy of an arm, and its change against the unsteered model."""
    right, before = (
        np.concatenate([point["right"][test] for point in of_arm]).astype(float)
        for of_arm in (points, [run["arms"]["unsteered"][0] for run in runs])
    )
    questions = range(len(points[0]["right"][test]))
    labels = [(run["seed"], question) for run in runs for question in questions]
    change = bootstrap_interval(lambda at: float((right - before)[at].mean()), labels, rounds=ROUNDS)
    return {"accuracy": float(right.mean()), "change": asdict(change)}


def _summarise_gates(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Means over the seeds that have a line."""
    lines: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        for line in run["gates"]:
            lines.setdefault((line["trained"], line["tried"], line["cut"]), []).append(line)
    return [
        {
            **dict(zip(("trained", "tried", "cut"), about, strict=True)),
            **{key: _mean([line[key] for line in found]) for key in ("recall", "touched", "auroc", "texts")},
            "seeds": len(found),
        }
        for about, found in lines.items()
    ]


def _samples(run: Run) -> list[dict[str, Any]]:
    """Continuations of the first prompts, by arm at the unit."""
    arms = {name: points[0]["samples"] for name, points in run["arms"].items()}
    count = len(arms["unsteered"])
    return [{"prompt": run["prompts"][i], **{name: samples[i] for name, samples in arms.items()}} for i in range(count)]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
