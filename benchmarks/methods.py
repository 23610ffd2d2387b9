"""docs/methods.md: every map always on and with the DSAS gate, as `dsas eval --grid benchmarks/methods.yaml` measured.

    make methods                       # measures, then writes
    python benchmarks/methods.py       # writes again from outputs/methods

Writes docs/methods.md, docs/methods.svg and benchmarks/results/methods.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dsas_core.evaluate import report
from dsas_core.files import as_json

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "benchmarks" / "results" / "methods.json"

Concept = Mapping[str, Any]


def verdict(concept: Concept) -> str:
    """Which front is better, where the intervals of their hypervolumes do not touch."""
    gated, on = (concept["arms"][name]["hypervolume"] for name in ("dsas", "on"))
    if gated["low"] > on["high"]:
        return "gated"
    return "always on" if on["low"] > gated["high"] else "neither"


def table(concepts: Sequence[Concept]) -> list[str]:
    """Methods by their fronts and their points at strength 1."""
    rows = []
    for concept in concepts:
        gated, on = (
            next(point for point in concept["arms"][name]["points"] if point["strength"] == 1.0)
            for name in ("dsas", "on")
        )
        rows.append(
            [
                concept["method"],
                *(f"{_between(concept['arms'][name]['hypervolume'])}" for name in ("dsas", "on")),
                f"{gated['effect']['value']:.2f}, {gated['cost']['value']:.3f}",
                f"{on['effect']['value']:.2f}, {on['cost']['value']:.3f}",
                f"{concept['unit']:g}",
                verdict(concept),
            ]
        )
    headings = ["method", "front: gated", "always on", "at strength 1, gated: effect, cost", "always on", "unit"]
    return report.markdown_table([*headings, "better front"], rows)


def page(document: Mapping[str, Any], tasks: Sequence[str]) -> str:
    """docs/methods.md."""
    concepts = document["concepts"]
    won = [verdict(concept) for concept in concepts]
    lines = [
        "# Methods",
        "",
        "Written by `make methods`; do not edit. Every map by name (`dsas methods`), always on and with the DSAS gate, "
        "on the same grid of strengths and the same prompts, each in its own unit. Effect, cost and front are as in "
        "[results.md](results.md); fronts have bootstrap intervals of 95 %. One seed of learning. The unit is chosen "
        "with the gate, so that a method that is always on may do better below the grid.",
        "",
        f"Of {len(won)} pairs of method and task the gated front is better in {won.count('gated')}, that of the method "
        f"always on in {won.count('always on')}; {won.count('neither')} cannot be told apart.",
        "",
        "![fronts of every method](methods.svg)",
        "",
    ]
    for task in tasks:
        here = [concept for concept in concepts if concept["task"] == task]
        lines += [f"## {task}", "", *table(here), ""]
    return "\n".join([*lines, report.footer(document), ""])


def plot(concepts: Sequence[Concept], tasks: Sequence[str]) -> str:
    """Effect over cost of every method: full lines gated, dotted ones always on; rings are strength 1."""
    import io

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context({"svg.hashsalt": "dsas", "svg.fonttype": "none", "font.size": 9}):
        figure, rows = pyplot.subplots(1, len(tasks), figsize=(4.4 * len(tasks), 4), layout="constrained", sharey=True)
        for axes, task in zip(rows, tasks, strict=True):
            for i, concept in enumerate(concept for concept in concepts if concept["task"] == task):
                for name, line in (("dsas", "-"), ("on", ":")):
                    points = concept["arms"][name]["points"]
                    cost, gain = ([0.0, *(point[key]["value"] for point in points)] for key in ("cost", "effect"))
                    label = concept["method"] if name == "dsas" else None
                    axes.plot(cost, gain, f"o{line}", ms=3, color=f"C{i}", label=label)
            axes.set(title=task, xlabel="change of what should stay (cost)")
            axes.spines[["top", "right"]].set_visible(False)
        rows[0].set_ylabel("effect")
        figure.legend(*rows[0].get_legend_handles_labels(), frameon=False, loc="outside right upper")
        content = io.StringIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    return content.getvalue()[content.getvalue().index("<svg") :]


def _between(value: Mapping[str, float]) -> str:
    return f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", type=Path, default=ROOT / "outputs" / "methods" / "report.json")
    document = json.loads(parser.parse_args().report.read_text())
    tasks = list(dict.fromkeys(concept["task"] for concept in document["concepts"]))
    (ROOT / "docs" / "methods.svg").write_text(plot(document["concepts"], tasks))
    (ROOT / "docs" / "methods.md").write_text(page(document, tasks))
    kept = ("name", "task", "method", "gate", "model", "unit", "arms", "baselines", "dose", "plan")
    concepts = [{key: concept[key] for key in kept} for concept in document["concepts"]]
    FIGURES.write_text(as_json({**document, "concepts": concepts}) + "\n")
    print(f"wrote {ROOT / 'docs' / 'methods.md'}")


if __name__ == "__main__":
    main()
