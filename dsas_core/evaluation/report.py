"""The report of an evaluation: report.json, report.md for a model card, report.html to look at.

A document is plain data: `title`, `command`, `seconds`, `versions`, and `concepts`, each of which holds what
`summary.summed_up` gives and whatever else its family measured.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..utils.files import as_json
from .arms import ARMS, CONTROLS

JSON, MARKDOWN, HTML = "report.json", "report.md", "report.html"
#: columns of the table of arms, as far as they were measured: field -> heading
FIGURES = {
    "unchanged": "controls unchanged",
    "identical": "identical",
    "pixel_change": "change of 255",
    "latent_change": "latents moved",
    "change_outside_the_thing": "change around it",
    "neighbours_kept": "neighbours kept",
    "frechet_judge": "Fréchet distance, judge's features",
    "kid_judge": "KID, judge's features",
    "frechet": "Fréchet distance",
    "kid": "KID",
    "lpips": "LPIPS",
    "clip_score": "CLIP score",
    "perplexity_ratio": "perplexity, ratio",
    "degenerate": "broken",
    "knowledge_lost": "points of knowledge lost",
    "peak_memory": "peak memory, MiB",
    "peak_memory_steered": "peak memory, steered",
}
#: gates by site: field of the evidence -> heading; and how many are shown
EVIDENCE = {
    "site": "site",
    "bin": "timestep bin",
    "weight": "weight",
    "balanced_accuracy": "held-out balanced accuracy",
    "auroc": "AUROC",
    "rank": "components",
    "control_h_before": "mean h of controls before",
    "control_h": "after its threshold was placed",
}
SITES = 6
COLOURS = {
    "dsas": "#1f77b4",
    "on": "#d62728",
    "random_direction": "#8c8c8c",
    "shuffled_gate": "#bcbd22",
    "constant_gate": "#9467bd",
    "complement": "#ff7f0e",
    "oracle": "#2ca02c",
}


def write_report(folder: Path, document: Mapping[str, Any]) -> list[Path]:
    """Write the three reports; their paths."""
    plots = [plot(concept) for concept in document["concepts"]]
    contents = {
        JSON: as_json(document) + "\n",
        MARKDOWN: as_markdown(document),
        HTML: as_html(document, plots),
    }
    for name, content in contents.items():
        (folder / name).write_text(content, encoding="utf-8")
    return [folder / name for name in contents]


def as_markdown(document: Mapping[str, Any]) -> str:
    """The tables of a document in Markdown."""
    lines = [f"# {document['title']}", ""]
    for concept in document["concepts"]:
        lines += [f"## {concept['name']}", "", *plain_words(concept), ""]
        for title, headings, rows in tables(concept):
            lines += [f"**{title}**", "", *markdown_table(headings, rows), ""]
        lines += [f"Not measured: {reason}." for reason in concept["skipped"]] + [""]
    lines += [f"{line}\n" for line in refusals(document)]
    lines += [footer(document), ""]
    return "\n".join(lines)


def refusals(document: Mapping[str, Any]) -> list[str]:
    """Concepts of a grid that could not be learned, and why."""
    return [f"{name} could not be learned: {reason}" for name, reason in document.get("refused", {}).items()]


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """The lines of a table in Markdown."""
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    return lines + ["| " + " | ".join(_cell(value).replace("|", "\\|") for value in row) + " |" for row in rows]


def as_html(document: Mapping[str, Any], plots: Sequence[str]) -> str:
    """The document as one page that needs nothing else, pictures included; `plots` are SVG, one per concept."""
    body = [f"<h1>{html.escape(document['title'])}</h1>"]
    for concept, drawn in zip(document["concepts"], plots, strict=True):
        body.append(f"<h2>{html.escape(concept['name'])}</h2>")
        body += [f"<p>{html.escape(line)}</p>" for line in plain_words(concept)]
        body.append(f"<figure>{drawn}</figure>")
        for title, headings, rows in tables(concept):
            cells = [[html.escape(_cell(value)) for value in row] for row in rows]
            body.append(f"<h3>{html.escape(title)}</h3><table>{_html_rows(headings, cells)}</table>")
        body.append(_samples(concept.get("samples", [])))
        body += [f"<p class=note>Not measured: {html.escape(reason)}.</p>" for reason in concept["skipped"]]
    body += [f"<p>{html.escape(line)}</p>" for line in refusals(document)]
    body.append(f"<p class=note>{html.escape(footer(document))}</p>")
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(document['title'])}</title><style>{_STYLE}</style><main>{''.join(body)}</main></html>\n"
    )


_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 80rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #8884; white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; line-height: 1.2; }
th:first-child, td:first-child { text-align: left; }
.samples th { text-align: left; }
figure { margin: 1rem 0; background: white; } figure svg { max-width: 100%; height: auto; }
.samples img { width: 96px; height: 96px; image-rendering: auto; display: block; }
.samples td { text-align: left; white-space: normal; vertical-align: top; min-width: 96px; }
.note { opacity: .7; font-size: .9rem; }
"""


def tables(concept: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[Any]]]]:
    """Title, headings and rows of each table of one concept."""
    sections = [_arms(concept)]
    if equal := concept.get("at_equal_effect"):
        rows = []
        for arm, line in equal.items():
            if arm == "oracle":  # whose cost is 0 because it was told
                continue
            figures: list[Any] = [None] * 4  # an arm that hardly has an effect cannot be compared at one
            if line["gain"] > 0.1:
                ratio = line["ratio"] if line["other_cost"] else None
                figures = [line["gain"], line["cost"], line["other_cost"], ratio]
            rows.append([ARMS[arm], *figures])
        headings = ["DSAS beside", "effect", "cost of DSAS", "cost of the other", "ratio"]
        sections.append(("At equal effect", headings, rows))
    if lines := concept.get("auto"):
        rows = [[line["target"], *(_between(line[key]) for key in ("effect", "cost", "over"))] for line in lines]
        headings = ["target probability", "effect", "cost", "effect above the swept front at that cost"]
        sections.append(("No strength to tune (auto)", headings, rows))
    if concept.get("dose"):
        rows = [[ARMS[arm], *line.values()] for arm, line in concept["dose"].items()]
        sections.append(("Dose at strength 1: mean h over sites and positions", ["", "source", "control"], rows))
    for key, title in (
        ("localisation", "Where the denoiser's gates see it"),
        ("unnamed", "Where no prompt names it"),
        ("wordings", "By wording, DSAS at strength 1"),
        ("robustness", "Under other settings, DSAS at strength 1"),
        ("judges", "As other judges see it, at strength 1"),
        ("tasks", "Tasks of lm-evaluation-harness, at strength 1"),
    ):
        if concept.get(key):
            sections.append(_plain_table(title, concept[key]))
    if lines := (concept.get("evidence") or {}).get("sites"):
        ranked = sorted(lines, key=lambda line: -line["weight"])
        # bins may share a gate
        gates = list(dict.fromkeys(tuple(line.get(key) for key in EVIDENCE) for line in ranked))
        best = [list(line) for line in gates[:SITES]]
        sections.append((f"Gates as learned, the {len(best)} best of {len(gates)}", list(EVIDENCE.values()), best))
    if concept.get("cost"):
        sections.append(_plain_table("Cost", concept["cost"]))
    return sections


def _plain_table(
    title: str, lines: Mapping[str, Any] | Sequence[Mapping[str, Any]]
) -> tuple[str, list[str], list[list[Any]]]:
    """A table of one line or several, with headings from the names of fields, and arms by their names."""
    lines = [lines] if isinstance(lines, Mapping) else lines
    headings = [FIGURES.get(key, heading(key).replace("_", " ")) for key in lines[0]]
    rows = [[heading(value) if isinstance(value, str) else value for value in line.values()] for line in lines]
    return title, headings, rows


def _arms(concept: Mapping[str, Any]) -> tuple[str, list[str], list[list[Any]]]:
    """Every arm at strength 1 with its hypervolume, and the rivals that need no steering."""
    units = {name: _at_unit(arm) for name, arm in concept["arms"].items()}
    rivals = concept.get("baselines") or {}
    every = [*units.values(), *rivals.values()]
    columns = [key for key in FIGURES if any(line.get(key) is not None for line in every)]
    rows: list[list[Any]] = []
    for name, point in units.items():
        effect, cost = _between(point["effect"]), _between(point["cost"])
        area = _between(concept["arms"][name]["hypervolume"])
        rows.append([ARMS[name], effect, cost, *(point.get(key) for key in columns), area])
    for name, line in rivals.items():
        effect_of_rival = effect_of(concept, line["shown"])
        rows.append([name, effect_of_rival, line.get("cost"), *(line.get(key) for key in columns), None])
    return "Arms", ["at strength 1", "effect", "cost", *(FIGURES[key] for key in columns), "hypervolume"], rows


def effect_of(concept: Mapping[str, Any], score: float) -> float:
    """The effect of what shows so much of what is wanted (`dsas_core.evaluation.summary`)."""
    gain = score - concept["base"]
    asked = 1.0 if concept["asked"] is None else concept["asked"]
    return float(gain / (asked - concept["base"])) if concept["relative"] else float(gain)


def _at_unit(arm: Mapping[str, Any]) -> Mapping[str, Any]:
    point: Mapping[str, Any] = next(point for point in arm["points"] if point["strength"] == 1.0)
    return point


def plain_words(concept: Mapping[str, Any]) -> list[str]:
    """What the figures say, in sentences."""
    dsas = concept["arms"]["dsas"]
    point = _at_unit(dsas)
    of = "of what asking in words achieves" if concept["relative"] and concept["asked"] is not None else "of all"
    lines = [
        f"At strength 1 DSAS reaches {point['effect']['value']:.2f} {of} and changes controls by "
        f"{point['cost']['value']:.3f} (0 is not at all, 1 is wholly)."
    ]
    on = concept["arms"].get("on")
    if on is None:
        return lines
    ours, theirs = dsas["hypervolume"], on["hypervolume"]
    if ours["low"] > theirs["high"]:
        verdict = "DSAS is the better front"
    elif theirs["low"] > ours["high"]:
        verdict = "Always-on steering is the better front: gating does not help here"
    else:
        verdict = "The two fronts cannot be told apart on these prompts"
    lines.append(
        f"{verdict}: hypervolume {ours['value']:.3f} [{ours['low']:.3f}, {ours['high']:.3f}] beside "
        f"{theirs['value']:.3f} [{theirs['low']:.3f}, {theirs['high']:.3f}] of always on."
    )
    areas = {name: arm["hypervolume"] for name, arm in concept["arms"].items()}
    best = max((name for name in areas if name in CONTROLS), default=None, key=lambda name: areas[name]["value"])
    if best is not None and areas[best]["high"] >= ours["low"]:
        value = areas[best]["value"]
        lines.append(f"A control arm cannot be told from it: {ARMS[best]} ({value:.3f}).")
    if "oracle" in areas:
        knows = "where the concept is" if concept.get("oracle") == "patches" else "which prompts show the concept"
        lines.append(f"A gate that is told {knows}, and says 1 there, reaches {areas['oracle']['value']:.3f}.")
    return lines


def plot(concept: Mapping[str, Any]) -> str:
    """Effect over cost of every arm, as SVG: up and to the left is better; rings are strength 1."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context({"svg.hashsalt": "dsas", "svg.fonttype": "none", "font.size": 10}):
        figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
        for name, arm in concept["arms"].items():
            points = arm["points"]
            cost, gain = ([0.0, *(point[key]["value"] for point in points)] for key in ("cost", "effect"))
            thick = 2.2 if name in ("dsas", "on") else 1.1
            style: dict[str, Any] = {"color": COLOURS.get(name), "zorder": 4 if name == "dsas" else 2}
            axes.plot(cost, gain, "o--" if name == "oracle" else "o-", ms=3.5, lw=thick, label=ARMS[name], **style)
            unit = _at_unit(arm)
            axes.plot(unit["cost"]["value"], unit["effect"]["value"], "o", ms=10, mfc="none", mec=COLOURS.get(name))
        for name, rival in (concept.get("baselines") or {}).items():
            if rival.get("cost"):
                effect = effect_of(concept, rival["shown"])
                axes.plot(rival["cost"], effect, "X", ms=9, color="black", mec="white", label=name, clip_on=False)
        asked = "asked in words" if concept["asked"] is not None and concept["relative"] else None
        axes.axhline(1.0, color="#888888", lw=0.8, ls=":", label=asked)
        axes.set(xlabel="change of what should stay (cost)", ylabel="effect", title=concept["name"])
        axes.legend(frameon=False, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        content = io.StringIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    return content.getvalue()[content.getvalue().index("<svg") :]


def _samples(rows: Sequence[Mapping[str, Any]]) -> str:
    """Prompts with their pictures, or answers, arm by arm."""
    if not rows:
        return ""
    labels = list(dict.fromkeys(label for row in rows for label in row.get("pictures", row.get("answers", {}))))
    lines = []
    for row in rows:
        cells = [html.escape(row["prompt"])]
        for label in labels:
            if "pictures" in row:
                cells.append(_embed(row["pictures"].get(label), f"{label}: {row['prompt']}"))
            else:
                cells.append(html.escape(row["answers"].get(label, "")))
        lines.append(cells)
    headings = ["prompt", *map(heading, labels)]
    return f"<h3>Samples</h3><table class=samples>{_html_rows(headings, lines)}</table>"


def _html_rows(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The rows of a table from headings, which are escaped here, and cells in HTML."""
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    lines = [head, *("".join(f"<td>{cell}</td>" for cell in row) for row in rows)]
    return "".join(f"<tr>{line}</tr>" for line in lines)


def heading(label: str) -> str:
    """What a sample's arm is called: "dsas ×2" is DSAS at strength 2."""
    name, times, strength = label.partition(" ×")
    known = {"base": "no steering", "asked": "asked in words", **ARMS}
    return known.get(name, name) + times + strength


def _embed(path: str | None, text: str) -> str:
    if path is None:
        return ""
    content = base64.b64encode(Path(path).read_bytes()).decode()
    return f'<img alt="{html.escape(text, quote=True)}" src="data:image/png;base64,{content}">'


def _between(value: Mapping[str, float]) -> str:
    return f"{value['value']:.3f} [{value['low']:.2f}, {value['high']:.2f}]"


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return "–" if not math.isfinite(value) else f"{value:.3f}"
    return str(value)


def footer(document: Mapping[str, Any]) -> str:
    """By which command, on what, in what time."""
    packages = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    return f"`{document['command']}`: {document['seconds']:.0f} s on {document['machine']}; {packages}."
