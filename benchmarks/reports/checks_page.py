"""The checks of benchmarks/quality/checks.py as a part of docs/results.md: what was measured, what follows from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Any

from benchmarks.common.records import command_of
from dsas_core.evaluation import report

#: an effect is as good as the best when it is this close
CLOSE = 0.1

Line = Mapping[str, Any]
Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """How the checks of a model are told.

    `effect` is the figure that tells it; `rising` whether more of it is more effect.
    """

    title: str
    told: str
    effect: str
    rising: bool

    def gain(self, line: Line) -> float:
        """The effect of a line of figures, in [0, 1]; 0 where nothing could be learned."""
        if self.effect not in line:
            return 0.0
        value = float(line[self.effect])
        return value if self.rising else 1 - value


FAMILIES = {
    "builtin:chat": Family(
        "Text: rudeness of the built-in help desk",
        "*rude* and *broken* (repeats itself, or does not end a sentence) are shares of the answers to 120 angry "
        "messages; *calm changed* is the share of 120 calm messages, some with the words of insults, that are answered "
        "otherwise.",
        "rude",
        rising=False,
    ),
    "builtin:emoji": Family(
        "Pictures: a blurred banana, steered in the denoiser",
        "Of 16 pictures of bananas that learning never drew: *blurred*, the share with a blurred banana, and *lost*, "
        "the share in which the judge sees none. Of 24 pictures of other things, look-alikes among them: *control "
        "change*, 1 - SSIM, and *control unchanged*, the share whose pixels move by 2 of 255 at most.",
        "blurred",
        rising=True,
    ),
}


def checks_page(checks: Mapping[str, Mapping[str, Any]]) -> str:
    """The part of docs/results.md, from the records of benchmarks/quality/checks.py."""
    lines = ["## Checks", ""]
    for model, family in FAMILIES.items():
        records = checks.get(model, {})
        if not records:
            continue
        told = f"{family.told} *h* is the mean over what the gates read. Concepts are learned with one seed."
        lines += [f"### {family.title}", "", told, ""]
        for name, tell in TOLD.items():
            if name in records:
                figures = records[name]["figures"]
                lines += [f"**{name}.** {tell(figures, family)}", "", *table(figures), ""]
        lines += [_footer(model, records), ""]
    return "\n".join(lines)


def table(figures: Figures) -> list[str]:
    """A check in Markdown: its cases by its figures."""
    cases: list[tuple[str, Line]] = []
    for case, value in figures.items():
        if isinstance(value, list):
            cases += [(f"{case}, {line['strength']:g}", line) for line in value]
        elif isinstance(value, Mapping):
            cases.append((case, value))
    flat = [(case, _flat(line)) for case, line in cases]
    columns = [key for key in dict.fromkeys(key for _, line in flat for key in line) if key != "strength"]
    headings = ["", *(column.replace("_", " ") for column in columns)]
    return report.markdown_table(headings, [[case, *(line.get(key) for key in columns)] for case, line in flat])


# ---- what is said of each check -----------------------------------------------------------------------------------


def _sweep(figures: Figures, family: Family) -> str:
    best = {arm: max(figures[arm], key=family.gain) for arm in ("dsas", "on")}
    gated, on = (
        f"{line['strength']:g} ({', '.join(f'{_words(key)} {line[key]:.2f}' for key in line if key != 'strength')})"
        for line in best.values()
    )
    return (
        f"Strengths of the map from 0 to 10; the unit that learning chose is {figures['unit']:g}. The effect is "
        f"largest, gated, at {gated}; always on, at {on}."
    )


def _controls(figures: Figures, family: Family) -> str:
    found = [line for line in figures.values() if "refused" not in line]
    pairs = list(combinations(found, 2))
    alike = [(a["mahalanobis"] - b["mahalanobis"]) * (a["h_on_control"] - b["h_on_control"]) > 0 for a, b in pairs]
    if not pairs:
        order = ""
    elif all(alike):
        order = " The nearer the set, the less the gate fires on held-out controls."
    elif not any(alike):
        order = " The farther the set, the less the gate fires on held-out controls."
    else:
        order = " The distance does not put the sets in the order in which their gates fire on held-out controls."
    return f"Control sets, and how far their mean is from that of the source (Mahalanobis).{order}"


def _transfer(figures: Figures, family: Family) -> str:
    return "What a concept was learned from → what it is tried on, beside what the model does without steering."


def _separability(figures: Figures, family: Family) -> str:
    ways = [key for key, value in next(iter(figures.values())).items() if isinstance(value, Mapping)]
    accuracy = {way: median(line[way]["balanced_accuracy"] for line in figures.values()) for way in ways}
    slower = median(line["no projection"]["seconds"] / line["5 components"]["seconds"] for line in figures.values())
    return (
        "Source against control, by means over positions: accuracy and AUROC on prompts that were left out, before "
        "projection (logistic regression on all coordinates) and after; processor seconds of five folds and the final "
        f"fit. Median balanced accuracy: {', '.join(f'{way} {value:.2f}' for way, value in accuracy.items())}. Fitting "
        f"without projection takes {slower:.1f} times as long as with 5 components (median)."
    )


def _faithful(figures: Figures, family: Family) -> str:
    return (
        "The paper's recipe (5 principal components of means, every layer's weight 1, no calibration) beside ours, "
        "each at its own unit."
    )


def _noise(figures: Figures, family: Family) -> str:
    clean = family.gain(figures["0"])
    short = [share for share, line in figures.items() if family.gain(line) < clean / 2]
    left = f"Less than half of the effect is left from {short[0]} on." if short else "Half is left at every share."
    return f"The share of source prompts that were swapped with control prompts while learning. {left}"


def _size(figures: Figures, family: Family) -> str:
    best = max(family.gain(line) for line in figures.values())
    enough = None
    for count, line in reversed(list(figures.items())):
        if family.gain(line) < best - CLOSE:
            break
        enough = count
    told = f" From {enough} on, the effect is within {CLOSE:g} of the largest." if enough else ""
    return f"Prompts a side; of controls twice as many.{told}"


TOLD: dict[str, Callable[[Figures, Family], str]] = {
    "sweep": _sweep,
    "controls": _controls,
    "transfer": _transfer,
    "separability": _separability,
    "faithful": _faithful,
    "noise": _noise,
    "size": _size,
}


def _footer(model: str, records: Mapping[str, Any]) -> str:
    """How long it took, and on what."""
    return report.footer(
        {
            "command": command_of("--model", model, module="benchmarks.quality.checks"),
            "seconds": sum(record["seconds"] for record in records.values()),
            "machine": "; ".join(dict.fromkeys(record["machine"] for record in records.values())),
            "versions": {name: number for r in records.values() for name, number in r["versions"].items()},
        }
    )


def _flat(line: Line) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in line.items():
        found |= {f"{key}, {k}": v for k, v in value.items()} if isinstance(value, Mapping) else {key: value}
    return found


def _words(key: str) -> str:
    return key.replace("_", " ")
