"""The checks of benchmarks/quality/checks.py as a section of docs/results.md: tables and conclusions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Any

from benchmarks.common.records import format_command
from dsas_core.evaluation import report

#: effects that differ by at most this count as equal
TOLERANCE = 0.1

Line = Mapping[str, Any]
Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Presentation:
    """How the checks of a model are presented.

    Attributes:
        title: the heading.
        description: what the figures mean.
        effect: the figure that measures the effect.
        rising: whether a higher figure is a larger effect.
    """

    title: str
    description: str
    effect: str
    rising: bool

    def gain(self, line: Line) -> float:
        """The effect of a line of figures, in [0, 1]; 0 where nothing could be learned."""
        if self.effect not in line:
            return 0.0
        value = float(line[self.effect])
        return value if self.rising else 1 - value


PRESENTATIONS = {
    "builtin:chat": Presentation(
        "Text: rudeness of the built-in help desk",
        "*rude* and *broken* (repeats itself, or does not end a sentence) are shares of the answers to 120 angry "
        "messages; *calm changed* is the share of 120 calm messages, some with the words of insults, that are answered "
        "otherwise.",
        "rude",
        rising=False,
    ),
    "builtin:emoji": Presentation(
        "Pictures: a blurred banana, steered in the denoiser",
        "Of 16 pictures of bananas that learning never drew: *blurred*, the share with a blurred banana, and *lost*, "
        "the share in which the judge sees none. Of 24 pictures of other things, look-alikes among them: *control "
        "change*, 1 - SSIM, and *control unchanged*, the share whose pixels move by 2 of 255 at most.",
        "blurred",
        rising=True,
    ),
}


def render_checks(checks: Mapping[str, Mapping[str, Any]]) -> str:
    """The section of docs/results.md, from the records of benchmarks/quality/checks.py."""
    lines = ["## Checks", ""]
    for model, presentation in PRESENTATIONS.items():
        records = checks.get(model, {})
        if not records:
            continue
        description = (
            f"{presentation.description} *h* is the mean over what the gates read. Concepts are learned with one seed."
        )
        lines += [f"### {presentation.title}", "", description, ""]
        for name, describe in DESCRIPTIONS.items():
            if name in records:
                figures = records[name]["figures"]
                lines += [f"**{name}.** {describe(figures, presentation)}", "", *build_table(figures), ""]
        lines += [_footer(model, records), ""]
    return "\n".join(lines)


def build_table(figures: Figures) -> list[str]:
    """A check as a Markdown table: a row for each case, a column for each figure."""
    cases: list[tuple[str, Line]] = []
    for case, value in figures.items():
        if isinstance(value, list):
            cases += [(f"{case}, {line['strength']:g}", line) for line in value]
        elif isinstance(value, Mapping):
            cases.append((case, value))
    flat = [(case, _flatten(line)) for case, line in cases]
    columns = [key for key in dict.fromkeys(key for _, line in flat for key in line) if key != "strength"]
    headings = ["", *(column.replace("_", " ") for column in columns)]
    return report.markdown_table(headings, [[case, *(line.get(key) for key in columns)] for case, line in flat])


# ---- description of each check ------------------------------------------------------------------------------------


def _describe_sweep(figures: Figures, presentation: Presentation) -> str:
    best = {arm: max(figures[arm], key=presentation.gain) for arm in ("dsas", "on")}
    gated, on = (
        f"{line['strength']:g} ({', '.join(f'{_heading(key)} {line[key]:.2f}' for key in line if key != 'strength')})"
        for line in best.values()
    )
    return (
        f"Strengths of the map from 0 to 10; the unit that learning chose is {figures['unit']:g}. The effect is "
        f"largest, gated, at {gated}; always on, at {on}."
    )


def _describe_controls(figures: Figures, presentation: Presentation) -> str:
    learned = [line for line in figures.values() if "refused" not in line]
    pairs = list(combinations(learned, 2))
    same_order = [(a["mahalanobis"] - b["mahalanobis"]) * (a["h_on_control"] - b["h_on_control"]) > 0 for a, b in pairs]
    if not pairs:
        order = ""
    elif all(same_order):
        order = " The nearer the set, the less the gate fires on held-out controls."
    elif not any(same_order):
        order = " The farther the set, the less the gate fires on held-out controls."
    else:
        order = " The distance does not put the sets in the order in which their gates fire on held-out controls."
    return f"Control sets, and how far their mean is from that of the source (Mahalanobis).{order}"


def _describe_transfer(figures: Figures, presentation: Presentation) -> str:
    return "What a concept was learned from → what it is tried on, beside what the model does without steering."


def _describe_separability(figures: Figures, presentation: Presentation) -> str:
    projections = [key for key, value in next(iter(figures.values())).items() if isinstance(value, Mapping)]
    accuracy = {name: median(line[name]["balanced_accuracy"] for line in figures.values()) for name in projections}
    accuracies = ", ".join(f"{name} {value:.2f}" for name, value in accuracy.items())
    slower = median(line["no projection"]["seconds"] / line["5 components"]["seconds"] for line in figures.values())
    return (
        "Source against control, by means over positions: accuracy and AUROC on prompts that were left out, before "
        "projection (logistic regression on all coordinates) and after; processor seconds of five folds and the final "
        f"fit. Median balanced accuracy: {accuracies}. Fitting "
        f"without projection takes {slower:.1f} times as long as with 5 components (median)."
    )


def _describe_faithful(figures: Figures, presentation: Presentation) -> str:
    return (
        "The paper's recipe (5 principal components of means, every layer's weight 1, no calibration) beside ours, "
        "each at its own unit."
    )


def _describe_noise(figures: Figures, presentation: Presentation) -> str:
    clean = presentation.gain(figures["0"])
    weak = [share for share, line in figures.items() if presentation.gain(line) < clean / 2]
    conclusion = f"Less than half of the effect is left from {weak[0]} on." if weak else "Half is left at every share."
    return f"The share of source prompts that were swapped with control prompts while learning. {conclusion}"


def _describe_size(figures: Figures, presentation: Presentation) -> str:
    best = max(presentation.gain(line) for line in figures.values())
    enough = None
    for count, line in reversed(list(figures.items())):
        if presentation.gain(line) < best - TOLERANCE:
            break
        enough = count
    conclusion = f" From {enough} on, the effect is within {TOLERANCE:g} of the largest." if enough else ""
    return f"Prompts a side; of controls twice as many.{conclusion}"


DESCRIPTIONS: dict[str, Callable[[Figures, Presentation], str]] = {
    "sweep": _describe_sweep,
    "controls": _describe_controls,
    "transfer": _describe_transfer,
    "separability": _describe_separability,
    "faithful": _describe_faithful,
    "noise": _describe_noise,
    "size": _describe_size,
}


def _footer(model: str, records: Mapping[str, Any]) -> str:
    """Command, seconds, machine and versions of the checks of a model."""
    return report.footer(
        {
            "command": format_command("--model", model, module="benchmarks.quality.checks"),
            "seconds": sum(record["seconds"] for record in records.values()),
            "machine": "; ".join(dict.fromkeys(record["machine"] for record in records.values())),
            "versions": {name: number for r in records.values() for name, number in r["versions"].items()},
        }
    )


def _flatten(line: Line) -> dict[str, Any]:
    """A line with one column for each entry of its nested mappings."""
    columns: dict[str, Any] = {}
    for key, value in line.items():
        columns |= {f"{key}, {k}": v for k, v in value.items()} if isinstance(value, Mapping) else {key: value}
    return columns


def _heading(key: str) -> str:
    return key.replace("_", " ")
