"""docs/methods.md: every map always on and gated, as `dsas eval --grid benchmarks/grids/methods.yaml` measured.

    make methods                       # measures, then writes
    python -m benchmarks.reports.methods_page       # writes again from outputs/methods

Writes docs/methods.md, docs/methods.svg and benchmarks/results/methods.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.records import DOCS, OUTPUTS, parser_of, results_of, write
from dsas_core.evaluation import report

FIGURES = results_of(__file__)

#: a front below this is that of a map that does next to nothing
NOTHING = 0.1

Concept = Mapping[str, Any]


def verdict(concept: Concept) -> str:
    """Which front is better, where the intervals of their hypervolumes do not touch."""
    gated, on = (concept["arms"][name]["hypervolume"] for name in ("dsas", "on"))
    if gated["low"] > on["high"]:
        return "gated"
    return "always on" if on["low"] > gated["high"] else "neither"


def undecided(concepts: Sequence[Concept]) -> str:
    """Why fronts cannot be told apart, by name, and where always on is the better one; a sentence or two."""
    named: dict[str, list[str]] = {"nothing": [], "close": [], "always on": []}
    for concept in with_dsas(concepts):
        label, told = f"{concept['method']} on {concept['task']}", verdict(concept)
        if told == "neither":
            most = max(concept["arms"][name]["hypervolume"]["value"] for name in ("dsas", "on"))
            named["nothing" if most < NOTHING else "close"].append(label)
        elif told == "always on":
            named[told].append(label)
    said = [
        (named["nothing"], "in {} the map does next to nothing, gated or not"),
        (named["close"], "in {} intervals overlap ({})"),
        (named["always on"], "always on is better in {} ({})"),
    ]
    return "; ".join(line.format(len(names), ", ".join(names)) for names, line in said if names)


def owned(concepts: Sequence[Concept]) -> list[str]:
    """Of methods with a gate of their own, which is the better front: DSAS, own or neither."""
    found = []
    for own in (concept for concept in concepts if concept["gate"] != "dsas"):
        same = (one for one in with_dsas(concepts) if (one["task"], one["method"]) == (own["task"], own["method"]))
        for gated in same:
            ours, theirs = (one["arms"]["dsas"]["hypervolume"] for one in (gated, own))
            better = "own" if theirs["low"] > ours["high"] else "neither"
            found.append("DSAS" if ours["low"] > theirs["high"] else better)
    return found


def with_dsas(concepts: Sequence[Concept]) -> list[Concept]:
    """Those that wear the DSAS gate: one of each method and task."""
    return [concept for concept in concepts if concept["gate"] == "dsas"]


def table(concepts: Sequence[Concept]) -> list[str]:
    """Methods by their fronts and their points at strength 1."""
    own = {concept["method"]: concept for concept in concepts if concept["gate"] != "dsas"}
    rows = []
    for concept in with_dsas(concepts):
        other = own.get(concept["method"])
        shown = [(concept, "dsas"), (other, "dsas"), (concept, "on")]
        rows.append(
            [
                concept["method"],
                *("–" if one is None else _between(one["arms"][arm]["hypervolume"]) for one, arm in shown),
                *("–" if one is None else _at_one(one["arms"][arm]) for one, arm in shown),
                f"{concept['unit']:g}" + (f", {other['unit']:g}" if other else ""),
                verdict(concept),
            ]
        )
    headings = ["method", "front: DSAS", "own gate", "always on", "at strength 1, DSAS: effect, cost", "own gate"]
    return report.markdown_table([*headings, "always on", "unit", "DSAS or always on"], rows)


def page(document: Mapping[str, Any], tasks: Sequence[str]) -> str:
    """docs/methods.md."""
    concepts = document["concepts"]
    won = [verdict(concept) for concept in with_dsas(concepts)]
    own = owned(concepts)
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
        f"Of {len(won)} pairs of method and task the gated front is better in {won.count('gated')}, that of the method "
        f"always on in {won.count('always on')}; {won.count('neither')} cannot be told apart. Of these pairs, "
        f"{undecided(concepts)}. Of {len(own)} pairs with a gate of the method's own, DSAS is the better front in "
        f"{own.count('DSAS')}, that one in {own.count('own')}. "
        "A gate cannot help a map that has no effect at any strength.",
        "",
        "![fronts of every method](methods.svg)",
        "",
    ]
    for task in tasks:
        here = [concept for concept in concepts if concept["task"] == task]
        lines += [f"## {task}", "", *table(here), ""]
    lines += [f"{line}\n" for line in report.refusals(document)]
    return "\n".join([*lines, report.footer(document), ""])


def plot(concepts: Sequence[Concept], tasks: Sequence[str]) -> str:
    """Effect over cost of every method: full lines with DSAS, dashed with its own gate, dotted always on."""
    import io

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    palette = [*pyplot.get_cmap("tab20").colors[::2], *pyplot.get_cmap("tab20").colors[1::2]]
    with matplotlib.rc_context({"svg.hashsalt": "dsas", "svg.fonttype": "none", "font.size": 9}):
        figure, rows = pyplot.subplots(1, len(tasks), figsize=(4.4 * len(tasks), 4), layout="constrained", sharey=True)
        for axes, task in zip(rows, tasks, strict=True):
            here = [concept for concept in concepts if concept["task"] == task]
            colours = {concept["method"]: colour for concept, colour in zip(with_dsas(here), palette, strict=False)}
            for concept in here:
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


def _at_one(arm: Mapping[str, Any]) -> str:
    """Effect and cost at strength 1."""
    point = next(point for point in arm["points"] if point["strength"] == 1.0)
    return f"{point['effect']['value']:.2f}, {point['cost']['value']:.3f}"


def _between(value: Mapping[str, float]) -> str:
    return f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--report", type=Path, default=OUTPUTS / "methods" / "report.json")
    document = json.loads(parser.parse_args().report.read_text())
    tasks = list(dict.fromkeys(concept["task"] for concept in document["concepts"]))
    (DOCS / "methods.svg").write_text(plot(document["concepts"], tasks))
    (DOCS / "methods.md").write_text(page(document, tasks))
    kept = ("name", "task", "method", "gate", "model", "unit", "arms", "baselines", "dose", "plan")
    concepts = [{key: concept[key] for key in kept} for concept in document["concepts"]]
    write(FIGURES, {**document, "concepts": concepts})
    print(f"wrote {DOCS / 'methods.md'}")


if __name__ == "__main__":
    main()
