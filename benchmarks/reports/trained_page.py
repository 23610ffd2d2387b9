"""docs/trained.md: methods that train, flows, and runs pushed apart, from the records of their benchmarks.

    python -m benchmarks.reports.trained_page

Reads benchmarks/results/{trained,joint,flas,diverse}.json; `make trained` measures the first two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.records import DOCS, RESULTS, build_parser, read_record
from dsas_core.evaluation.report import footer, markdown_table

PAGE = DOCS / "trained.md"
INTRO = """# Methods that train, measured

Written by `python -m benchmarks.reports.trained_page`; do not edit. What the methods are, and how to use them, is in
[training.md](training.md) (LinEAS, E2E-DSAS), [language-models.md](language-models.md) (FLAS) and
[steering.md](steering.md) (STARS). On the built-in models: a beginning, and no proof.
"""
FRONTS = """## Fronts: LinEAS and E2E-DSAS beside CAA

Each combination is learned with the seeds that are told and measured on the same prompts and strengths
(`make trained`). Front is the hypervolume of effect and cost, as in [results.md](results.md); *above CAA* is how far
the gated front is above that of CAA with the offline gate, seed by seed. Intervals are t-intervals of 95 % over seeds.
Effect and cost are those of a strength of 1. Seconds are those of learning, of which in brackets the training, with two
processes at a time on two cores; memory is what a step keeps for its backward pass.
"""
SETTINGS = """## Settings

On the rudeness of `builtin:chat`, otherwise as above: γ of E2E-DSAS, its activation, and the penalty `l1` of LinEAS,
with how many of all dimensions are then moved.
"""
STEP = """## What a step costs

CPU seconds of a training step over those of a plain forward and backward pass of the same rows through the same layers
(median and quartiles of {rounds} rounds, in turn), and what autograd keeps, likewise.
"""
FLOWS = """## FLAS: one network, concepts that it was not trained on

Concepts are "mention the WORD". The network has seen {concepts} of them ({examples} examples, {steps} steps,
{minutes:.0f} minutes on a core); {held_out} others are tested, and as many of those that it was trained on. FLAS and
asking in words have the text of the concept alone, CAA examples of it. Scores are from 0 to 2, by the definitions of
AxBench with judges of the built-in corpus (`{command}`); *mean* is the harmonic mean of the three with its standard
error over concepts.
"""
RUNS = """## STARS: runs pushed apart

{answers} answers to each of {messages} messages and questions, and {pictures} pictures of each of {scenes} scenes, two
seeds; 95 % bootstrap intervals. All offsets are of one length at a strength: orthogonal by STARS, random, or away from
the mean of the runs. *Distinct* is the share of different answers among those of a message; *on topic* those that name
its topic and are kind; perplexity is that of the unsteered model; *right* is the share of questions answered rightly;
distance that of two pictures of a scene, whose right share shows the two things named, and no other.
"""

Record = Mapping[str, Any]


def interval(found: Mapping[str, Any] | None, digits: int = 2) -> str:
    """A value with its interval, if it has one; a dash for no value.

    Example:
        >>> interval({"value": 0.5, "low": 0.25, "high": 0.75})
        '0.50 [0.25, 0.75]'
    """
    if found is None:
        return "–"
    if found["low"] is None:
        return f"{found['value']:.{digits}f}"
    return f"{found['value']:.{digits}f} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"


def fronts_table(rows: Sequence[Record]) -> list[str]:
    """Every combination of a task."""
    lines = []
    for row in rows:
        memory = f"{row['activations'] / 2**20:.0f} MB" if row["activations"] else "–"
        lines.append(
            [
                f"{row['method']} × {row['gate']}",
                *(interval(row[name]) for name in ("front_dsas", "above_caa", "front_on")),
                f"{row['effect_dsas']['value']:.2f}, {row['cost_dsas']['value']:.3f}",
                f"{row['unit']['value']:.2f}",
                f"{row['seconds']:.0f} ({row['training_seconds']:.0f})",
                memory,
            ]
        )
    headings = ["map × gate", "front, gated", "above CAA", "front, always on", "effect, cost", "unit", "seconds"]
    return markdown_table([*headings, "memory"], lines)


def settings_table(rows: Sequence[Record]) -> list[str]:
    """Every value of the settings that were varied."""
    lines = []
    for row in rows:
        name = row["name"].removeprefix(f"{row['task']}-")
        lines.append(
            [
                f"{row['method']}: {name}",
                interval(row["front_dsas"]),
                f"{row['effect_dsas']['value']:.2f}, {row['cost_dsas']['value']:.3f}",
                f"{row['unit']['value']:.2f}",
                f"{row['moved_dimensions']:.0f}",
            ]
        )
    return markdown_table(["setting", "front, gated", "effect, cost", "unit", "dimensions moved"], lines)


def step_table(record: Record) -> list[str]:
    """What a step of training costs."""
    lines = [
        [
            row["task"],
            row["method"],
            str(row["sites"]),
            interval(row["time_ratio"]),
            f"{row['memory_ratio']:.2f}",
        ]
        for row in record["rows"]
    ]
    return markdown_table(["concept", "method", "sites", "time", "memory"], lines)


def flas_table(group: Record) -> list[str]:
    """The arms of one group of concepts."""
    lines = [
        [
            arm,
            f"{found['mean']:.2f} ± {found['standard_error']:.2f}",
            *(f"{found[name]:.2f}" for name in ("concept", "instruction", "fluency", "named")),
        ]
        for arm, found in group["summary"].items()
    ]
    return markdown_table(["arm", "mean", "concept", "instruction", "fluency", "has the word"], lines)


def diverse_tables(record: Record) -> list[str]:
    """The arms of texts, and those of pictures."""
    texts = [
        [arm, *(interval(found[name]) for name in ("distinct", "on_topic", "perplexity", "distinct_facts", "right"))]
        for arm, found in record["texts"].items()
    ]
    pictures = [
        [arm, interval(found["distance"], 3), interval(found["right"])] for arm, found in record["pictures"].items()
    ]
    return [
        *markdown_table(["answers", "distinct", "on topic", "perplexity", "distinct, of facts", "right"], texts),
        "",
        *markdown_table(["pictures", "distance", "right"], pictures),
    ]


def render_page(trained: Record, joint: Record, flas: Record, diverse: Record) -> str:
    """The text of docs/trained.md, of the records that there are."""
    lines = [INTRO]
    if trained:
        rows, groups = trained["rows"], (("texts",), ("pictures", "pictures-trained"), ("pairs",))
        lines += [FRONTS]
        for grids in groups:
            for task in dict.fromkeys(row["task"] for row in rows if row["grid"] in grids):
                found = [row for row in rows if row["task"] == task and row["grid"] in grids]
                seeds = len({cell["seed"] for cell in trained["cells"] if cell["grid"] == found[0]["grid"]})
                title = f"**{task}**, {seeds} seed{'s' * (seeds > 1)}" + ", maps and gates apart" * (
                    grids == ("pairs",)
                )
                lines += [title, "", *fronts_table(found), ""]
        compared = [row for row in rows if any(row["grid"] in grids for grids in groups)]
        if varied := [row for row in rows if row not in compared]:
            lines += [SETTINGS, *settings_table(varied), ""]
        lines += [footer(trained), ""]
    if joint:
        lines += [STEP.format(**joint), *step_table(joint), "", footer(joint), ""]
    if flas:
        told = flas["training"]
        counts = {"held_out": len(flas["held_out"]["concepts"]), "steps": told["total_steps"]}
        minutes, command = told["seconds"] / 60, flas["command"]
        given = {**counts, "concepts": told["concepts"], "examples": told["examples"]}
        lines += [FLOWS.format(**given, minutes=minutes, command=command)]
        lines += ["**Concepts that were not trained**", "", *flas_table(flas["held_out"]), ""]
        lines += ["**Concepts that were**", "", *flas_table(flas["trained"]), "", footer(flas), ""]
    if diverse:
        lines += [RUNS.format(**diverse["settings"]), *diverse_tables(diverse), "", footer(diverse), ""]
    return "\n".join(lines)


def main() -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args()
    records = [read_record(args.results / f"{name}.json") for name in ("trained", "joint", "flas", "diverse")]
    args.page.write_text(render_page(*records))
    print(f"wrote {args.page}")


if __name__ == "__main__":
    main()
