"""docs/learning.md: gates, options of learning, strength "auto", several concepts at once.

    make learning                      # measure, and write the page
    python -m benchmarks.reports.learning_page      # write the page again from outputs/{gates,learning,auto}

Writes docs/learning.md and benchmarks/results/learning.json; reads benchmarks/results/{together,fits}.json as well.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.records import DOCS, OUTPUTS, RESULTS, build_parser, record_path, write_record
from benchmarks.reports import OLD_SITES, TRAINED
from dsas_core.evaluation import report

FIGURES = record_path(__file__)
GRIDS = ("gates", "learning", "auto")
#: fields of a concept that are kept in the record
KEPT = ("name", "task", "method", "gate", "recipe", "model", "unit", "arms", "auto", "localisation", "evidence", "plan")

Concept = Mapping[str, Any]


def format_recipe(recipe: Mapping[str, Any]) -> str:
    """A recipe in one line, key=value."""
    return ", ".join(f"{key}={value}" for key, value in recipe.items()) or "plain"


def gate_table(concepts: Sequence[Concept], label: str) -> list[str]:
    """A table of concepts with their gates and fronts; `label` is the field that distinguishes them."""
    rows = []
    for concept in concepts:
        point = next(point for point in concept["arms"]["dsas"]["points"] if point["strength"] == 1.0)
        sites = [site for site in concept["evidence"]["sites"] if site["weight"] > 0]
        localisation = concept.get("localisation") or {}
        rows.append(
            [
                format_recipe(concept["recipe"]) if label == "recipe" else concept[label],
                f"{statistics.median(site['auroc'] for site in sites):.3f}",
                f"{statistics.median(site['control_h'] for site in sites):.4f}",
                *([f"{localisation['auroc']:.2f}", f"{localisation['iou']:.2f}"] if localisation else ["–", "–"]),
                f"{point['effect']['value']:.2f}, {point['cost']['value']:.3f}",
                format_interval(concept["arms"]["dsas"]["hypervolume"]),
                f"{concept['unit']:g}",
            ]
        )
    headings = [label, "AUROC, held out", "h of controls", "AUROC of h against masks", "IoU"]
    return report.markdown_table([*headings, "at strength 1: effect, cost", "front", "unit"], rows)


def auto_table(concepts: Sequence[Concept]) -> list[str]:
    """A table of strength "auto" relative to the front of swept strengths."""
    rows = [
        [
            concept["name"],
            f"{line['target']:g}",
            format_interval(line["effect"]),
            format_interval(line["cost"], 3),
            format_interval(line["over"]),
            "above" if line["over"]["low"] > 0 else "below" if line["over"]["high"] < 0 else "on it",
        ]
        for concept in concepts
        for line in concept.get("auto") or []
    ]
    headings = ["concept", "target", "effect", "cost", "above the swept front by", "that is"]
    return report.markdown_table(headings, rows)


def together_table(pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of the success rates of several concepts at once."""
    rows = [
        [
            f"{pair['first']}, {pair['second']}",
            arm,
            *(format_interval(line[part]) for part in ("first", "second", "both")),
        ]
        for pair in pairs
        for arm, line in pair["arms"].items()
    ]
    return report.markdown_table(["concepts", "steered by", "first succeeds", "second", "both"], rows)


def summarise_auto(concepts: Sequence[Concept]) -> str:
    """How many points of strength "auto" lie above, on and below the swept front, as sentences."""
    lines = [line for concept in concepts for line in concept.get("auto") or []]
    above = sum(line["over"]["low"] > 0 for line in lines)
    below = sum(line["over"]["high"] < 0 for line in lines)
    return (
        f"Of {len(lines)} points {above} lie above the front, {below} below it, and {len(lines) - above - below} "
        "cannot be told from it. Where it falls short, the probe's border is not where the model's behaviour turns."
    )


def fits_table(task: Mapping[str, Any]) -> list[str]:
    """A table of maps and gates fitted on one capture."""
    rows = []
    for kind in ("maps", "gates"):
        for name, line in task[kind].items():
            if "refused" in line:
                rows.append([kind[:-1], name, "–", "–", "–", "–", f"refused: {line['refused']}"])
                continue
            evidence = [f"{line['auroc']:.3f}", f"{line['control_h']:.4f}"] if kind == "gates" else ["–", "–"]
            rows.append(
                [kind[:-1], name, f"{line['seconds']:.1f}", *evidence, line["sites"], f"{line['bytes'] / 1000:.1f}"]
            )
    headings = ["", "method", "seconds", "AUROC, held out", "h of controls", "sites", "kB"]
    return report.markdown_table(headings, rows)


def render_page(documents: Mapping[str, Mapping[str, Any]], pairs: Mapping[str, Any], fits: Mapping[str, Any]) -> str:
    """The text of docs/learning.md."""
    lines = [
        "# Gates, and ways to learn",
        "",
        "Written by `make learning`; do not edit. One map (`caa`), learned in different ways, on the same grid of "
        "strengths and the same prompts. Effect, cost and front (hypervolume) are as in [results.md](results.md), with "
        "bootstrap intervals of 95 %; AUROC and h of controls are medians over the sites that steer, of prompts that "
        "the gate was not fitted on. One seed of learning.",
        "",
        OLD_SITES,
        "",
        TRAINED,
        "",
        "## Gates",
        "",
    ]
    lines += render_sections(documents["gates"], "gate")
    lines += [
        "## Learning",
        "",
        "`form=paper` is fitted on means over positions and read at each; `form=token` finds the positions that show "
        "the concept; with `supervision=positions` it is told them (words of the answers, masks of the judge); "
        "`mode=causal` fits each site behind those that steer already.",
        "",
    ]
    lines += render_sections(documents["learning"], "recipe")
    lines += [
        "## No strength to tune",
        "",
        'Strength "auto" by its target probability, beside the front that sweeping strengths draws (linear between '
        "strengths 0, 0.5, 1, 1.5 and 2): how far its effect is above the front at the same cost.",
        "",
        summarise_auto(documents["auto"]["concepts"]),
        "",
        *auto_table(documents["auto"]["concepts"]),
        "",
        "## One reading of the prompts, every method",
        "",
        "Each map fitted with the DSAS gate, each gate with the map of CAA, on what one pass over the prompts "
        "captured; a concept's size is that of its tensors.",
        "",
    ]
    for name, task in fits["tasks"].items():
        lines += [f"**{name}** (the pass took {task['capture_seconds']:.0f} s)", "", *fits_table(task), ""]
    lines += [
        "## Several concepts at once",
        "",
        "The share of prompts on which each concept succeeds by its judge, and both do, at strength 1.",
        "",
        *together_table(pairs["pairs"]),
        "",
        *(f"{line}\n" for document in documents.values() for line in report.refusals(document)),
        *(f"{report.footer(document)}\n" for document in documents.values()),
        f"`{pairs['command']}`: {pairs['seconds']:.0f} s on {pairs['machine']}. `{fits['command']}`: on "
        f"{fits['machine']}, beside other work.",
    ]
    return "\n".join([*lines, ""])


def render_sections(document: Mapping[str, Any], label: str) -> list[str]:
    """A heading and a gate table for each task."""
    concepts = document["concepts"]
    lines: list[str] = []
    for task in dict.fromkeys(concept["task"] for concept in concepts):
        of_task = [concept for concept in concepts if concept["task"] == task]
        lines += [f"**{task}**", "", *gate_table(of_task, label), ""]
    return lines


def format_interval(value: Mapping[str, float], digits: int = 2) -> str:
    """A value with its interval."""
    return f"{value['value']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def main() -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--reports", type=Path, default=OUTPUTS, help="folder of the grids' folders")
    reports = parser.parse_args().reports
    documents = {name: json.loads((reports / name / "report.json").read_text()) for name in GRIDS}
    pairs = json.loads((RESULTS / "together.json").read_text())
    fits = json.loads((RESULTS / "fits.json").read_text())
    (DOCS / "learning.md").write_text(render_page(documents, pairs, fits))
    compact = {
        name: {**document, "concepts": [{key: concept.get(key) for key in KEPT} for concept in document["concepts"]]}
        for name, document in documents.items()
    }
    write_record(FIGURES, compact)
    print(f"wrote {DOCS / 'learning.md'}")


if __name__ == "__main__":
    main()
