"""The report of an evaluation: report.json, report.md for a model card, report.html as a page of its own.

A document is plain data: `title`, `command`, `seconds`, `machine`, `versions`, and `concepts`, each of which holds what
`summary.summarise` returns and whatever else its domain measured. Here values are gathered; their words are in
`templates/`.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..utils.saving.files import as_json, write_files
from ..utils.saving.signature import UNSIGNED, is_signed, sign
from ..utils.templates import create_environment
from .arms import ARMS, CONTROLS

JSON, MARKDOWN, HTML = "report.json", "report.md", "report.html"
TEMPLATES = Path(__file__).parent / "templates"
#: headings of columns, titles of tables and colours of arms, in the order of the tables
LABELS: dict[str, dict[str, str]] = yaml.safe_load((TEMPLATES / "labels.yaml").read_text(encoding="utf-8"))
#: sites in the table of gates
SITES = 6

#: title, headings and rows
Table = tuple[str, list[str], list[list[Any]]]


def write_report(folder: Path, document: Mapping[str, Any]) -> list[Path]:
    """Write the three reports.

    Args:
        folder: where to; reports of an earlier run are replaced, and other files of their names kept as `NAME.old`.
        document: plain data, see the module's docstring.

    Returns:
        The paths of report.json, report.md and report.html.
    """
    contents = {JSON: as_json({**document, "signature": UNSIGNED}) + "\n"}
    contents |= {name: f"{_render(name, document=document)}<!-- {UNSIGNED} -->\n" for name in (MARKDOWN, HTML)}
    files = {folder / name: sign(content.encode()) for name, content in contents.items()}
    write_files(files, lambda path: is_signed(path.read_bytes()))
    return list(files)


def _render(template: str, **values: Any) -> str:
    """Fill in a template, which may call functions of this module; in HTML values are escaped."""
    import jinja2

    environment = create_environment(
        jinja2.FileSystemLoader(TEMPLATES),
        escape=template.endswith(".html"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    functions: list[Callable[..., Any]] = [tables, plain_words, plot, markdown_table, refusals, footer]
    functions += [sample_labels, heading, format_value, read_base64]
    environment.globals.update({function.__name__: function for function in functions})
    return environment.get_template(template).render(values)


def refusals(document: Mapping[str, Any]) -> list[str]:
    """Concepts of a grid that could not be learned, and why."""
    return [f"{name} could not be learned: {reason}" for name, reason in document.get("refused", {}).items()]


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """The lines of a table in Markdown.

    Example:
        >>> markdown_table(["arm", "cost"], [["DSAS", 0.25], ["always on", None]])
        ['| arm | cost |', '|---|---|', '| DSAS | 0.250 |', '| always on | – |']
    """
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    return lines + ["| " + " | ".join(format_value(value).replace("|", "\\|") for value in row) + " |" for row in rows]


def tables(concept: Mapping[str, Any]) -> list[Table]:
    """The tables of one concept, the arms first."""
    sections = [_arms(concept)]
    if equal := concept.get("at_equal_effect"):
        # the oracle's cost is 0 because it is given the truth
        rows = [[ARMS[arm], *_comparison(line)] for arm, line in equal.items() if arm != "oracle"]
        headings = ["DSAS beside", "effect", "cost of DSAS", "cost of the other", "ratio"]
        sections.append(("At equal effect", headings, rows))
    if lines := concept.get("auto"):
        rows = [[line["target"], *(_between(line[key]) for key in ("effect", "cost", "over"))] for line in lines]
        headings = ["target probability", "effect", "cost", "effect above the swept front at that cost"]
        sections.append(("No strength to tune (auto)", headings, rows))
    if concept.get("dose"):
        rows = [[ARMS[arm], *line.values()] for arm, line in concept["dose"].items()]
        sections.append(("Dose at strength 1: mean h over sites and positions", ["", "source", "control"], rows))
    sections += [_plain_table(title, concept[key]) for key, title in LABELS["sections"].items() if concept.get(key)]
    if lines := (concept.get("evidence") or {}).get("sites"):
        ranked = sorted(lines, key=lambda line: -line["weight"])
        # bins may share a gate
        gates = list(dict.fromkeys(tuple(line.get(key) for key in LABELS["evidence"]) for line in ranked))
        best = [list(line) for line in gates[:SITES]]
        title = f"Gates as learned, the {len(best)} best of {len(gates)}"
        sections.append((title, list(LABELS["evidence"].values()), best))
    if concept.get("cost"):
        sections.append(_plain_table("Cost", concept["cost"]))
    return sections


def _comparison(line: Mapping[str, Any]) -> list[float | None]:
    """Gain, costs and their ratio at equal effect; None for an arm with hardly any effect to compare at."""
    if line["gain"] <= 0.1:
        return [None] * 4
    return [line["gain"], line["cost"], line["other_cost"], line["ratio"] if line["other_cost"] else None]


def _plain_table(title: str, lines: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Table:
    """A table of one line or several, with headings from the names of fields, and arms by their names."""
    lines = [lines] if isinstance(lines, Mapping) else lines
    headings = [LABELS["figures"].get(key, heading(key).replace("_", " ")) for key in lines[0]]
    rows = [[heading(value) if isinstance(value, str) else value for value in line.values()] for line in lines]
    return title, headings, rows


def _arms(concept: Mapping[str, Any]) -> Table:
    """Every arm at strength 1 with its hypervolume, and the baselines, which need no steering."""
    units = {name: _at_unit(arm) for name, arm in concept["arms"].items()}
    baselines = concept.get("baselines") or {}
    lines = [*units.values(), *baselines.values()]
    columns = [key for key in LABELS["figures"] if any(line.get(key) is not None for line in lines)]
    rows: list[list[Any]] = []
    for name, point in units.items():
        effect, cost = _between(point["effect"]), _between(point["cost"])
        area = _between(concept["arms"][name]["hypervolume"])
        rows.append([ARMS[name], effect, cost, *(point.get(key) for key in columns), area])
    for name, line in baselines.items():
        effect_of_baseline = effect_of(concept, line["shown"])
        rows.append([name, effect_of_baseline, line.get("cost"), *(line.get(key) for key in columns), None])
    figures = [LABELS["figures"][key] for key in columns]
    return "Arms", ["at strength 1", "effect", "cost", *figures, "hypervolume"], rows


def effect_of(concept: Mapping[str, Any], score: float) -> float:
    """The effect of a mean target score, as `dsas_core.evaluation.summary` defines it.

    Args:
        concept: with `base` and `asked`, mean scores, and `relative`.
        score: mean target score, in [0, 1].

    Example:
        >>> effect_of({"base": 0.0, "asked": 0.8, "relative": True}, 0.4)
        0.5
    """
    gain = score - concept["base"]
    asked = 1.0 if concept["asked"] is None else concept["asked"]
    return float(gain / (asked - concept["base"])) if concept["relative"] else float(gain)


def _at_unit(arm: Mapping[str, Any]) -> Mapping[str, Any]:
    point: Mapping[str, Any] = next(point for point in arm["points"] if point["strength"] == 1.0)
    return point


def plain_words(concept: Mapping[str, Any]) -> list[str]:
    """What the figures of a concept say, in sentences (`templates/findings.txt`)."""
    areas = {name: arm["hypervolume"] for name, arm in concept["arms"].items()}
    controls = [name for name in areas if name in CONTROLS]
    best_control = max(controls, default=None, key=lambda name: areas[name]["value"])
    point = _at_unit(concept["arms"]["dsas"])
    values = {"concept": concept, "areas": areas, "point": point, "best_control": best_control}
    return _render("findings.txt", names=ARMS, **values).splitlines()


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
            colour, thick = LABELS["colours"].get(name), 2.2 if name in ("dsas", "on") else 1.1
            style: dict[str, Any] = {"color": colour, "zorder": 4 if name == "dsas" else 2}
            axes.plot(cost, gain, "o--" if name == "oracle" else "o-", ms=3.5, lw=thick, label=ARMS[name], **style)
            unit = _at_unit(arm)
            axes.plot(unit["cost"]["value"], unit["effect"]["value"], "o", ms=10, mfc="none", mec=colour)
        for name, line in (concept.get("baselines") or {}).items():
            if line.get("cost"):
                effect = effect_of(concept, line["shown"])
                axes.plot(line["cost"], effect, "X", ms=9, color="black", mec="white", label=name, clip_on=False)
        asked = "asked in words" if concept["asked"] is not None and concept["relative"] else None
        axes.axhline(1.0, color="#888888", lw=0.8, ls=":", label=asked)
        axes.set(xlabel="change of what should stay (cost)", ylabel="effect", title=concept["name"])
        axes.legend(frameon=False, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        content = io.StringIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    return content.getvalue()[content.getvalue().index("<svg") :]


def sample_labels(samples: Sequence[Mapping[str, Any]]) -> list[str]:
    """The labels of all arms that samples show."""
    return list(dict.fromkeys(label for row in samples for label in row.get("pictures", row.get("answers", {}))))


def heading(label: str) -> str:
    """What an arm is called in headings.

    Example:
        >>> heading("dsas ×2"), heading("base")
        ('DSAS ×2', 'no steering')
    """
    name, times, strength = label.partition(" ×")
    known = {"base": "no steering", "asked": "asked in words", **ARMS}
    return known.get(name, name) + times + strength


def read_base64(path: str) -> str:
    """A file's bytes in base64, to put a picture into a page."""
    return base64.b64encode(Path(path).read_bytes()).decode()


def _between(value: Mapping[str, float]) -> str:
    return f"{value['value']:.3f} [{value['low']:.2f}, {value['high']:.2f}]"


def format_value(value: object) -> str:
    """A cell of a table: numbers with three decimals, a dash for what is unknown."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def footer(document: Mapping[str, Any]) -> str:
    """The command, its time in seconds, the machine and the versions of packages."""
    packages = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    return f"`{document['command']}`: {document['seconds']:.0f} s on {document['machine']}; {packages}."
