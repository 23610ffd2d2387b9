"""docs/methods.md: every map, always on and gated, from `dsas eval --grid benchmarks/grids/methods.yaml`.

    make methods                       # measure, and write the page
    python -m benchmarks.reports.methods_page       # write the page again from outputs/methods

Writes docs/methods.md, docs/methods.svg and benchmarks/results/methods.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.records import DOCS, OUTPUTS, build_parser, record_path, write_record
from benchmarks.reports import OLD_SITES, TRAINED
from dsas_core.evaluation import report

FIGURES = record_path(__file__)

#: a map whose hypervolume is below this counts as having no effect
MIN_HYPERVOLUME = 0.1

Concept = Mapping[str, Any]


def compare_fronts(concept: Concept) -> str:
    """The better front, "gated" or "always on"; "neither" where the intervals of the hypervolumes overlap."""
    gated, on = (concept["arms"][name]["hypervolume"] for name in ("dsas", "on"))
    if gated["low"] > on["high"]:
        return "gated"
    return "always on" if on["low"] > gated["high"] else "neither"


def explain_ties(concepts: Sequence[Concept]) -> str:
    """Sentences that name the pairs with indistinguishable fronts, and those where always on is better."""
    labels: dict[str, list[str]] = {"nothing": [], "close": [], "always on": []}
    for concept in select_dsas(concepts):
        label, better = f"{concept['method']} on {concept['task']}", compare_fronts(concept)
        if better == "neither":
            best = max(concept["arms"][name]["hypervolume"]["value"] for name in ("dsas", "on"))
            labels["nothing" if best < MIN_HYPERVOLUME else "close"].append(label)
        elif better == "always on":
            labels[better].append(label)
    clauses = [
        (labels["nothing"], "in {} the map does next to nothing, gated or not"),
        (labels["close"], "in {} intervals overlap ({})"),
        (labels["always on"], "always on is better in {} ({})"),
    ]
    return "; ".join(clause.format(len(names), ", ".join(names)) for names, clause in clauses if names)


def compare_own_gates(concepts: Sequence[Concept]) -> list[str]:
    """For each method with its own gate, the better front: "DSAS", "own" or "neither"."""
    better = []
    for own in (concept for concept in concepts if concept["gate"] != "dsas"):
        for gated in select_dsas(concepts):
            if (gated["task"], gated["method"]) == (own["task"], own["method"]):
                dsas, other = (concept["arms"]["dsas"]["hypervolume"] for concept in (gated, own))
                own_or_neither = "own" if other["low"] > dsas["high"] else "neither"
                better.append("DSAS" if dsas["low"] > other["high"] else own_or_neither)
    return better


def select_dsas(concepts: Sequence[Concept]) -> list[Concept]:
    """The concepts with the DSAS gate, one for each method and task."""
    return [concept for concept in concepts if concept["gate"] == "dsas"]


def methods_table(concepts: Sequence[Concept]) -> list[str]:
    """A table of methods with their fronts and their points at strength 1."""
    own_gates = {concept["method"]: concept for concept in concepts if concept["gate"] != "dsas"}
    rows = []
    for concept in select_dsas(concepts):
        other = own_gates.get(concept["method"])
        columns = [(concept, "dsas"), (other, "dsas"), (concept, "on")]
        rows.append(
            [
                concept["method"],
                *("–" if item is None else _format_interval(item["arms"][arm]["hypervolume"]) for item, arm in columns),
                *("–" if item is None else _format_point(item["arms"][arm]) for item, arm in columns),
                f"{concept['unit']:g}" + (f", {other['unit']:g}" if other else ""),
                compare_fronts(concept),
            ]
        )
    headings = ["method", "front: DSAS", "own gate", "always on", "at strength 1, DSAS: effect, cost", "own gate"]
    return report.markdown_table([*headings, "always on", "unit", "DSAS or always on"], rows)


def render_page(document: Mapping[str, Any], tasks: Sequence[str]) -> str:
    """The text of docs/methods.md."""
    concepts = document["concepts"]
    won = [compare_fronts(concept) for concept in select_dsas(concepts)]
    own = compare_own_gates(concepts)
    lines = [
        "# Methods",
        "",
        "Written by `make methods`; do not edit. Every map by name (`dsas methods`), always on, with the DSAS gate, "
        "and with the gate of its own that a method brings, on the same grid of strengths and prompts, each in its own "
        "unit. Effect, cost and front are as in [results.md](results.md); fronts have bootstrap intervals of 95 %. One "
        "seed of learning. The unit is chosen with the gate (of two units, the second is that with the own gate), "
        "so that a method that is always on may do better below the grid. CASteer's own gate is the clip in its map, "
        "learned on plain means.",
        "",
        OLD_SITES,
        "",
        TRAINED,
        "",
        f"Of {len(won)} pairs of method and task the gated front is better in {won.count('gated')}, that of the method "
        f"always on in {won.count('always on')}; {won.count('neither')} cannot be told apart. Of these pairs, "
        f"{explain_ties(concepts)}. Of {len(own)} pairs with a gate of the method's own, DSAS is the better front in "
        f"{own.count('DSAS')}, that one in {own.count('own')}. "
        "A gate cannot help a map that has no effect at any strength.",
        "",
        "![fronts of every method](methods.svg)",
        "",
    ]
    for task in tasks:
        of_task = [concept for concept in concepts if concept["task"] == task]
        lines += [f"## {task}", "", *methods_table(of_task), ""]
    lines += [f"{line}\n" for line in report.refusals(document)]
    return "\n".join([*lines, report.footer(document), ""])


def plot_fronts(concepts: Sequence[Concept], tasks: Sequence[str]) -> str:
    """Effect over cost of every method: full lines with DSAS, dashed with its own gate, dotted always on."""
    import io

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    palette = [*pyplot.get_cmap("tab20").colors[::2], *pyplot.get_cmap("tab20").colors[1::2]]
    with matplotlib.rc_context({"svg.hashsalt": "dsas", "svg.fonttype": "none", "font.size": 9}):
        figure, rows = pyplot.subplots(1, len(tasks), figsize=(4.4 * len(tasks), 4), layout="constrained", sharey=True)
        for axes, task in zip(rows, tasks, strict=True):
            of_task = [concept for concept in concepts if concept["task"] == task]
            colours = {
                concept["method"]: colour for concept, colour in zip(select_dsas(of_task), palette, strict=False)
            }
            for concept in of_task:
                gated = concept["gate"] == "dsas"
                for name, line in (("dsas", "-"), ("on", ":")) if gated else (("dsas", "--"),):
                    points = concept["arms"][name]["points"]
                    cost, gain = ([0.0, *(point[key]["value"] for point in points)] for key in ("cost", "effect"))
                    label = concept["method"] if line == "-" else None
                    axes.plot(cost, gain, f"o{line}", ms=3, color=colours[concept["method"]], label=label)
            axes.set(title=task, xlabel="change of what should stay (cost)")
            axes.spines[["top", "right"]].set_visible(False)
        rows[0].set_ylabel("effect")
        figure.legend(*rows[0].get_legend_handles_labels(), frameon=False, loc="outside right upper")
        content = io.StringIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    return content.getvalue()[content.getvalue().index("<svg") :]


def _format_point(arm: Mapping[str, Any]) -> str:
    """Effect and cost at strength 1."""
    point = next(point for point in arm["points"] if point["strength"] == 1.0)
    return f"{point['effect']['value']:.2f}, {point['cost']['value']:.3f}"


def _format_interval(value: Mapping[str, float]) -> str:
    """A value with its interval."""
    return f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def main() -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--report", type=Path, default=OUTPUTS / "methods" / "report.json")
    document = json.loads(parser.parse_args().report.read_text())
    tasks = list(dict.fromkeys(concept["task"] for concept in document["concepts"]))
    (DOCS / "methods.svg").write_text(plot_fronts(document["concepts"], tasks))
    (DOCS / "methods.md").write_text(render_page(document, tasks))
    fields = ("name", "task", "method", "gate", "model", "unit", "arms", "baselines", "dose", "plan")
    concepts = [{key: concept[key] for key in fields} for concept in document["concepts"]]
    write_record(FIGURES, {**document, "concepts": concepts})
    print(f"wrote {DOCS / 'methods.md'}")


if __name__ == "__main__":
    main()
