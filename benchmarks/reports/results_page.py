"""docs/results.md and the table of the README, from `dsas eval --grid benchmarks/grids/results.yaml`.

    make results                       # measure, and write the page
    python -m benchmarks.reports.results_page       # write the page again from outputs/results

Writes docs/results.md with a plot and a picture of each concept in docs/results/, benchmarks/results/results.json, and
the table between the marks in README.md.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.common.records import DOCS, OUTPUTS, RESULTS, ROOT, build_parser, record_path, write_record
from benchmarks.reports import OLD_SITES
from benchmarks.reports.checks_page import render_checks
from dsas_core.evaluation import ARMS, report
from dsas_core.evaluation.arms import CONTROLS
from dsas_diffusion.generation.strips import grid

FIGURES = record_path(__file__)
CHECKS = RESULTS / "checks.json"
MARKS = "<!-- results: written by make results -->", "<!-- end of results -->"
#: columns of the sheet of pictures, and its number of rows for each side
COLUMNS = ("base", "asked", "dsas", "on", "constant_gate", "complement", "oracle", "dsas ×2")
ROWS = {"source": 3, "control": 2, "unnamed": 1}


def overview(document: Mapping[str, Any]) -> str:
    """A Markdown table with one line for each concept."""
    lines = [
        "| concept | effect | cost | cost beside always on, at effect | negative prompt: effect, cost "
        "| front: DSAS | always on | oracle | best control arm |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for concept in document["concepts"]:
        arms = concept["arms"]
        point = next(point for point in arms["dsas"]["points"] if point["strength"] == 1.0)
        equal = concept["at_equal_effect"]["on"]
        controls = {name: arms[name]["hypervolume"]["value"] for name in CONTROLS if name in arms}
        best = max(controls, key=lambda name: controls[name])
        beside_on = (
            f"{equal['cost']:.3f} / {equal['other_cost']:.3f} at {equal['gain']:.2f}" if equal["gain"] > 0.1 else "–"
        )
        fronts = [f"{arms[name]['hypervolume']['value']:.2f}" for name in ("dsas", "on", "oracle")]
        negative = next((line for name, line in concept["baselines"].items() if name.startswith("negative")), None)
        rival = f"{report.effect_of(concept, negative['shown']):.2f}, {negative['cost']:.3f}" if negative else "–"
        values = [f"{point['effect']['value']:.2f}", f"{point['cost']['value']:.3f}", beside_on, rival, *fronts]
        lines.append(f"| {concept['name']} | {' | '.join(values)} | {controls[best]:.2f} ({ARMS[best]}) |")
    return "\n".join(lines)


def compact(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document without samples, prompts and the evidence of learning."""
    concepts = [
        {key: value for key, value in concept.items() if key not in ("samples", "prompts", "evidence")}
        for concept in document["concepts"]
    ]
    return {**document, "concepts": concepts}


def render_page(document: Mapping[str, Any]) -> str:
    """The text of docs/results.md."""
    lines = [
        f"# {document['title']}",
        "",
        "Written by `make results`; do not edit. Every concept against every arm, on prompts that learning never used. "
        "Facts of the text model are asked of every kind, those that a concept is about among them.",
        "",
        OLD_SITES,
        "",
        "*Effect* is relative to what asking in words achieves. *Cost* is the change of "
        "what should stay: 1 - SSIM of control pictures, the share of control answers that changed. *Front* is the "
        "hypervolume of effect (cut at 1) over cost: 1 is all of the effect at no cost. Brackets are bootstrap "
        "intervals of 95 % over seeds and prompts.",
        "",
        "The *constant gate* and the *gate at random* let through, of prompts that show the concept, as much as DSAS "
        "does: the comparison at the same dose. The *oracle* is told where the thing is (where the denoiser is "
        "steered), or which prompts show the concept, and leaves all others alone by definition.",
        "",
        overview(document),
        "",
    ]
    for concept in document["concepts"]:
        name = concept["name"]
        plan = concept["plan"]
        settings = f"{plan['count']} prompts a side, {plan['seeds']} noise seeds, unit {concept['unit']:g}."
        lines += [
            f"## {name}",
            "",
            *report.plain_words(concept),
            settings,
            "",
            f"![effect over cost](results/{name}.svg)",
            "",
        ]
        if any("pictures" in row for row in concept["samples"]):
            lines += [f"![pictures of every arm](results/{name}.png)", ""]
        for title, headings, rows in report.tables(concept):
            lines += [f"**{title}**", "", *report.markdown_table(headings, rows), ""]
        lines += _answers(concept["samples"])
        lines += [f"Not measured: {reason}." for reason in concept["skipped"]] + [""]
    lines += [report.footer(document), ""]
    return "\n".join(lines)


def _answers(samples: list[Mapping[str, Any]]) -> list[str]:
    """Answers of the arms at strength 1, of one source and one control prompt."""
    lines: list[str] = []
    for side in ("source", "control"):
        row = next((row for row in samples if "answers" in row and row["side"] == side), None)
        if row is None:
            continue
        lines += [f"> {' / '.join(row['prompt'].splitlines())}", ""]
        for label, answer in row["answers"].items():
            lines.append(f"- *{report.heading(label)}*: {answer or '(nothing)'}")
        lines.append("")
    return lines


def _pictures(concept: Mapping[str, Any]) -> Image.Image | None:
    """A sheet of pictures: a row for each prompt, a column for each arm; None without pictures."""
    rows, captions = [], []
    blank = Image.new("RGB", (64, 64), "white")
    for side, count in ROWS.items():
        samples = [row for row in concept["samples"] if row["side"] == side and "pictures" in row][:count]
        for row in samples:
            files = row["pictures"]
            rows.append([Image.open(ROOT / files[label]) if label in files else blank for label in COLUMNS])
            captions.append(row["prompt"])
    return grid(rows, [report.heading(label) for label in COLUMNS], captions, cell=152) if rows else None


def readme_with(text: str, table: str) -> str:
    """The README with the table between its marks."""
    begin, end = MARKS
    return re.sub(rf"{re.escape(begin)}.*{re.escape(end)}", lambda _: f"{begin}\n{table}\n{end}", text, flags=re.DOTALL)


def main() -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--report", type=Path, default=OUTPUTS / "results" / "report.json")
    args = parser.parse_args()
    document = json.loads(args.report.read_text())
    folder = DOCS / "results"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for concept in document["concepts"]:
        (folder / f"{concept['name']}.svg").write_text(report.plot(concept))
        pictures = _pictures(concept)
        if pictures is not None:
            pictures.quantize(256).save(folder / f"{concept['name']}.png", optimize=True)
    checks = render_checks(json.loads(CHECKS.read_text()))
    (DOCS / "results.md").write_text(f"{render_page(document)}\n{checks}")
    write_record(FIGURES, compact(document))
    readme = ROOT / "README.md"
    readme.write_text(readme_with(readme.read_text(), overview(compact(document))))
    print(f"wrote {DOCS / 'results.md'}")


if __name__ == "__main__":
    main()
