"""The figures of benchmarks/quality/preserve.py, with bootstrap intervals over seeds and prompts, from raw lists.

A list is named "ARM|FIGURE", with "@STRENGTH" behind it on the grid of strengths; labels, and what unsteered pictures
show, have no arm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks.common.arms import Raw
from benchmarks.common.region_metrics import psnr_of
from dsas_core.evaluation.fronts import at_equal_gain
from dsas_core.evaluation.intervals import Label, bootstrap_interval

#: a mask misses a thing of which it covers less
MISSED = 0.1
#: of asking in words: the effect at which changes are compared, or the most that an arm reaches
EQUAL_EFFECT = 0.95
IN_WORDS = "in words"

Figures = dict[str, Any]


def summarise(raw: Raw) -> Figures:
    """All figures of a concept.

    Args:
        raw: of `run_seed`, of all seeds.
    """
    arms = list(dict.fromkeys(name.split("|")[0] for name in raw if "|" in name))
    counts = {
        "beside": len(raw["labels"]),
        "without": len(raw["control labels"]),
        "unnamed": len(raw["unnamed labels"]),
    }
    return {
        "pictures": {**counts, "unnamed_that_show_it": sum(raw["unnamed shows"])},
        "units": raw["units"],
        "arms": {arm: summarise_arm(raw, arm) for arm in arms},
    }


def summarise_arm(raw: Raw, arm: str) -> Figures:
    """The figures of one arm; those that it does not have are left out."""
    lists = {name.split("|")[1]: np.asarray(v, float) for name, v in raw.items() if name.startswith(f"{arm}|")}
    labels, shown, words = raw["labels"], lists["shown"], np.asarray(raw[f"{IN_WORDS}|shown"], float)
    kept, had = np.asarray(raw["base intact"], float) * lists["intact"], np.asarray(raw["base intact"], float)
    figures: Figures = {
        "shown": _mean(shown, labels),
        "effect": _ratio(shown, words, labels),
        "change_outside": _mean(lists["change"], labels),
        "psnr_outside": _psnr(lists["squared error"], labels),
        "neighbours_kept": _ratio(kept, had, labels),
        "more_things": _mean(lists["regions"] > np.asarray(raw["base regions"]), labels),
        "seam": _ratio(lists["gradient"], lists["gradient before"], labels),
        "cost": {name: round(float(np.median(lists[name])), 3) for name in ("passes", "seconds")},
    }
    if "iou" in lists:
        figures["mask"] = {
            **{name.replace(" ", "_"): _mean(lists[name], labels) for name in ("iou", "iou grown", "covered", "area")},
            "missed": _mean(lists["covered"] < MISSED, labels),
        }
    if "control change" in lists:
        changes = _summarise_changes(lists["control change"], raw["control labels"])
        figures["controls"] = {**changes, "passes": round(float(np.median(lists["control passes"])), 3)}
    if "unnamed shown" in lists:
        figures["unnamed"] = _summarise_unnamed(lists, np.asarray(raw["unnamed shows"], bool), raw["unnamed labels"])
    figures["by_strength"] = points = _points(lists, raw)
    curve = [(point["change_outside"], point["effect"]) for point in points]
    in_words = float(np.mean(raw[f"{IN_WORDS}|change@1.0"]))
    figures["at_equal_effect_with_words"] = asdict(at_equal_gain(curve, [(in_words, 1.0)], EQUAL_EFFECT))
    return figures


def format_lines(figures: Mapping[str, Any]) -> list[str]:
    """A line for each arm, to read while it runs."""
    lines = []
    for arm, of_arm in figures["arms"].items():
        parts = [f"effect {of_arm['effect']['value']:.2f}", f"outside {of_arm['change_outside']['value']:.2f}"]
        parts += [f"neighbours {of_arm['neighbours_kept']['value']:.2f}", f"seam {of_arm['seam']['value']:.2f}"]
        parts.append(f"more things {of_arm['more_things']['value']:.2f}")
        if mask := of_arm.get("mask"):
            parts += [f"IoU {mask['iou']['value']:.2f}", f"missed {mask['missed']['value']:.2f}"]
        if controls := of_arm.get("controls"):
            parts.append(f"controls identical {controls['identical']['value']:.2f}")
        if unnamed := of_arm.get("unnamed", {}).get("effect_of_the_named"):
            parts.append(f"unnamed {unnamed['value']:.2f}")
        lines.append(f"{arm:26} {', '.join(parts)}, passes {of_arm['cost']['passes']:.2f}")
    return lines


def _points(lists: Mapping[str, np.ndarray], raw: Raw) -> list[dict[str, float]]:
    """Effect and change outside by strength, ascending, on the grid's prompts; arms without strengths have one, 1."""
    in_words = max(float(np.mean(raw[f"{IN_WORDS}|shown@1.0"])), 1e-9)
    strengths = sorted(float(name.split("@")[1]) for name in lists if name.startswith("shown@"))
    return [
        {
            "strength": s,
            "effect": float(lists[f"shown@{s}"].mean()) / in_words,
            "change_outside": float(lists[f"change@{s}"].mean()),
        }
        for s in strengths
    ]


def _summarise_unnamed(lists: Mapping[str, np.ndarray], shows: np.ndarray, labels: Sequence[Label]) -> Figures:
    """Of prompts that do not name the thing: pictures that show it all the same, and the others."""
    others = [label for label, show in zip(labels, shows, strict=True) if not show]
    figures: Figures = {"others": _summarise_changes(lists["unnamed change"][~shows], others)}
    if shows.any():
        showing = [label for label, show in zip(labels, shows, strict=True) if show]
        named = max(float(lists["shown"].mean()), 1e-9)
        figures["effect_of_the_named"] = _mean(lists["unnamed shown"][shows] / named, showing)
        if "unnamed covered" in lists:
            figures["found"] = _mean(lists["unnamed covered"][shows] >= MISSED, showing)
    return figures


def _summarise_changes(changes: np.ndarray, labels: Sequence[Label]) -> Figures:
    """How many of some pictures are identical, and how much all and the rest change, of 255."""
    if not len(changes):
        return {}
    rest = changes[changes > 0]
    return {
        "identical": _mean(changes == 0, labels),
        "mean_change": _mean(changes, labels),
        "mean_change_of_the_rest": float(rest.mean()) if len(rest) else 0.0,
    }


def _mean(values: np.ndarray, labels: Sequence[Label]) -> dict[str, float]:
    return _interval(lambda at: float(values[at].mean()), labels)


def _ratio(values: np.ndarray, others: np.ndarray, labels: Sequence[Label]) -> dict[str, float]:
    """The ratio of two sums; not a number where the second is 0."""
    return _interval(lambda at: float(values[at].sum()) / (float(others[at].sum()) or np.nan), labels)


def _psnr(squared_errors: np.ndarray, labels: Sequence[Label]) -> dict[str, float]:
    """That of all pictures together; without a number where all of them are identical."""
    error = bootstrap_interval(lambda at: float(squared_errors[at].mean()), labels)
    ends = {"value": error.value, "low": error.high, "high": error.low}
    return {key: round(psnr_of(value), 2) for key, value in ends.items()}


def _interval(statistic: Callable[[np.ndarray], float], labels: Sequence[Label]) -> dict[str, float]:
    return {key: round(value, 4) for key, value in asdict(bootstrap_interval(statistic, labels)).items()}
