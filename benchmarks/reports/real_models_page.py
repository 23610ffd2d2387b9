"""docs/real-models.md, from the records of benchmarks/quality/{real_text,real_chat,text_gates,text_maps}.py and of
benchmarks/cost/learning.py.

python -m benchmarks.reports.real_models_page
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.common.records import DOCS, RESULTS, build_parser, read_record
from benchmarks.quality.text_gates import FIGURES, HELD_OUT, SHARE, best_lines
from benchmarks.real_text.arms import ARMS, PREFIX
from benchmarks.real_text.cost_grid import CEILING
from benchmarks.real_text.judges import JUDGES
from benchmarks.real_text.summary import LIMIT
from dsas_core.evaluation.report import footer, markdown_table
from dsas_core.utils.templates import render_template

TEMPLATE = Path(__file__).parent / "templates" / "real_models.md.jinja"
RECORDS = {
    "text": "real_text",
    "chat": "real_chat",
    "gates": "text_gates",
    "maps": "text_maps",
    "cost": "learning_cost",
}
#: arms of a chat behaviour -> label
CHAT_ARMS = {"unsteered": "unsteered", "asked": "system message", "dsas": "DSAS", "on": "always on"}
#: answers shown of each behaviour
SHOWN = 3

Record = Mapping[str, Any]


def build_arms_table(record: Record) -> list[str]:
    """Every arm at every strength: what it removes, and what it costs.

    Args:
        record: of one model.

    Returns:
        The lines of a Markdown table.
    """
    judges = list(record["judges"])
    rows = []
    for name, points in record["arms"].items():
        for place, point in enumerate(points):
            rows.append(
                [
                    ARMS[name],
                    _format_strengths(point["strengths"], unit=name in ("dsas", "on") and place == 0),
                    *(f"{point[judge]['toxic']['value']:.3f}" for judge in judges),
                    *(_format_interval(point[judge]["removed"], percent=True) for judge in judges),
                    _format_cost(point["wikitext"]) if name != "prefix" else None,
                    _format_cost(point["domain"]) if name != "prefix" else None,
                    f"{point['repeats']:.2f}",
                    f"{point['nats']:.2f}",
                ]
            )
    for judge in judges:
        oracle = _format_interval(record["fronts"][judge]["oracle"], percent=True)
        removed = [oracle if other == judge else None for other in judges]
        rows.append([ARMS["oracle"], f"best, by {judge}", *[None] * len(judges), *removed, "0 %", "0 %", None, None])
    headings = ["arm", "strength", *(f"toxic, {judge}" for judge in judges), *(f"removed, {judge}" for judge in judges)]
    return markdown_table([*headings, "WikiText", "neutral tweets", "repeats", "nats per token"], rows)


def build_fronts_table(record: Record) -> list[str]:
    """Hypervolumes of DSAS and always-on, and the way to the oracle, by judge."""
    rows = []
    for judge, front in record["fronts"].items():
        limits = front["at_limit"]
        way = front["way_to_oracle"]
        rows.append(
            [
                judge,
                *(_format_interval(front[name]) for name in ("dsas", "on", "difference")),
                *(_format_interval(limits[arm], percent=True) for arm in ("dsas", "on")),
                None if way is None else _format_interval(way, percent=True),
            ]
        )
    at = f"at +{100 * LIMIT:.0f} % on tweets"
    headings = ["judge", "front: DSAS", "always on", "difference", f"removed by DSAS {at}", f"always on {at}"]
    return markdown_table([*headings, "share of the way to the gate that knows"], rows)


def build_tests_table(record: Record) -> list[str]:
    """Accuracy on tests of knowledge, at the unit."""
    tests = [test for test in ("arc", "mmlu") if test in record["arms"]["unsteered"][0]]
    rows = []
    for arm in ("unsteered", "dsas", "on"):
        point = record["arms"][arm][0]
        cells = ([f"{point[test]['accuracy']:.3f}", _format_interval(point[test]["change"])] for test in tests)
        rows.append([ARMS[arm], *(cell for pair in cells for cell in pair)])
    return markdown_table(["arm, at the unit", *(h for test in tests for h in (test.upper(), "change"))], rows)


def build_gates_table(record: Record) -> list[str]:
    """What gates find on each data set."""
    rows = [
        [
            line["trained"],
            f"{line['tried']}, {'cut off' if line['cut'] else 'whole'}",
            *(f"{line[key]:.3f}" for key in ("recall", "touched", "auroc")),
            str(line["seeds"]),
        ]
        for line in record["gates"]
    ]
    return markdown_table(["gate learned on", "tried on", "recall", "neutral touched", "AUROC", "seeds"], rows)


def build_behaviour_table(behaviour: Record) -> list[str]:
    """One chat behaviour in every arm."""
    asked = behaviour["arms"]["asked"]["nats"]
    rows = [
        [
            label,
            *(f"{line[key]:.2f}" for key in ("shows", "repeats", "nats")),
            f"{line['nats'] - asked:+.2f}",
            f"{line['identical']:.2f}",
        ]
        for arm, label in CHAT_ARMS.items()
        for line in [behaviour["arms"][arm]]
    ]
    headings = ["arm", "shows it", "repeats", "nats per token", "against the system message", "controls identical"]
    return markdown_table(headings, rows)


def build_forms_table(record: Record) -> list[str]:
    """The forms of the gate, each with several numbers of source texts, at the best layer."""
    rows = [
        [line["form"], str(line["count"]), f"`{line['site']}`", *(_format_spread(line[key]) for key in FIGURES)]
        for line in best_lines(record["lines"])
    ]
    figures = ["AUROC", "recall", "neutral touched", f"recall at {100 * SHARE:.0f} % touched"]
    return markdown_table(["form", "source texts", "best layer", *figures], rows)


def build_maps_table(record: Record) -> list[str]:
    """What each map removes always on, where all cost the same."""
    rows = []
    for name, line in list(record["maps"].items())[1:]:  # the first is the unsteered model
        judged = [line[judge] for judge in record["judges"]]
        rows.append(
            [
                name,
                *(_format_interval(found["removed"], percent=True) for found in judged),
                *(_format_interval(found["more"], percent=True) if "more" in found else None for found in judged),
                *(_format_cost(line[key]) for key in ("wikitext", "domain")),
                f"{line['nats']:.2f}",
            ]
        )
    kinds = [f"{what}, {judge}" for what in ("removed", "more than the first") for judge in record["judges"]]
    return markdown_table(["fitted on", *kinds, "WikiText", "neutral tweets", "nats per token"], rows)


def build_cost_table(cost: Record) -> list[str]:
    """What learning took, by dtype and form of the gate."""
    rows = []
    for dtype, forms in cost["dtypes"].items():
        for form, found in forms.items():
            reading, all_of_it = found["reading"], found["after_reading"]
            rows.append(
                [
                    f"{dtype}, {form}",
                    *(f"{found[key]:.0f}" for key in ("cpu_seconds", "seconds", "seconds_reading")),
                    f"{found['passes_of_needed']:.2f}",
                    f"{reading['run'] + all_of_it['tokens_run']:,}",
                    str(found["trials"]),
                    f"{found['unit']:.3g}",
                ]
            )
    figures = ["processor seconds", "seconds", "of these reading", "passes of those needed"]
    return markdown_table(["dtype, form of the gate", *figures, "tokens run", "trials", "unit"], rows)


def render_page(
    texts: Mapping[str, Record],
    chats: Mapping[str, Record],
    gates: Mapping[str, Record],
    maps: Mapping[str, Record],
    cost: Record,
) -> str:
    """The text of docs/real-models.md.

    Args:
        texts: model -> its entry in the record of real_text.
        chats: model -> its entry in the record of real_chat.
        gates: model -> its entry in the record of text_gates.
        maps: model -> its entry in the record of text_maps.
        cost: the record of cost/learning; empty where there is none.
    """
    models = [
        {
            "name": name,
            "record": record,
            "arms": build_arms_table(record),
            "fronts": build_fronts_table(record),
            "tests": build_tests_table(record),
            "gates": build_gates_table(record),
            "footer": footer(record),
        }
        for name, record in texts.items()
    ]
    talks = [
        {
            "name": name,
            "behaviours": [
                {"name": title, "table": build_behaviour_table(figures), "samples": _samples(figures), **figures}
                for title, figures in record["behaviours"].items()
            ],
            "footer": footer(record),
        }
        for name, record in chats.items()
    ]
    judges = {name: JUDGES[name] for record in texts.values() for name in record["judges"]}
    return render_template(
        TEMPLATE,
        models=models,
        chats=talks,
        forms=[
            {"name": name, "seeds": record["seeds"], "table": build_forms_table(record), "footer": footer(record)}
            for name, record in gates.items()
        ],
        maps=[
            {"name": name, **record, "table": build_maps_table(record), "footer": footer(record)}
            for name, record in maps.items()
        ],
        held_out=HELD_OUT,
        share=f"{100 * SHARE:.0f} %",
        cost={"table": build_cost_table(cost), "footer": footer(cost), **cost} if cost else None,
        judges=judges,
        prefix=PREFIX,
        ceiling=f"{100 * CEILING:.0f} %",
    )


def _samples(figures: Record) -> list[dict[str, Any]]:
    """The first prompts with the answers of every arm, each in one line."""
    return [
        {
            "prompt": prompt.removeprefix("user: "),
            "answers": {CHAT_ARMS[arm]: " ".join(line["texts"][i].split()) for arm, line in figures["arms"].items()},
        }
        for i, prompt in enumerate(figures["prompts"][:SHOWN])
    ]


def _format_interval(value: Mapping[str, float], percent: bool = False) -> str:
    """A value with its interval, "66 % [50, 80]" or "0.12 [0.05, 0.20]"."""
    if percent:
        return f"{100 * value['value']:.0f} % [{100 * value['low']:.0f}, {100 * value['high']:.0f}]"
    return f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def _format_spread(spread: tuple[float, float, float]) -> str:
    """The mean over seeds, and the range where they differ: "0.910 (0.880 to 0.950)"."""
    mean, low, high = spread
    return f"{mean:.3f}" if low == high else f"{mean:.3f} ({low:.3f} to {high:.3f})"


def _format_cost(cost: float) -> str:
    """A change of perplexity: a percentage, or a factor where that would be large."""
    return f"×{1 + cost:.3g}" if cost > 1 else f"{100 * cost:+.1f} %"


def _format_strengths(strengths: list[float], unit: bool) -> str:
    """The range of the strengths of all seeds."""
    low, high = min(strengths), max(strengths)
    text = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
    return f"{text}, as learned" if unit else text


def main() -> None:
    parser = build_parser(__doc__, DOCS / "real-models.md")
    for option, name in RECORDS.items():
        parser.add_argument(f"--{option}", type=Path, default=RESULTS / f"{name}.json", help=f"record of {name}")
    args = parser.parse_args()
    args.out.write_text(render_page(*(read_record(getattr(args, option)) for option in RECORDS)))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
