"""docs/preserve.md, from the record of benchmarks/quality/preserve.py.

python -m benchmarks.reports.preserve_page
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.common.records import DOCS, RESULTS, build_parser, read_record
from dsas_core.evaluation.report import footer, markdown_table
from dsas_core.utils.templates import render_template

TEMPLATE = Path(__file__).parent / "templates" / "preserve.md.jinja"
HEADINGS = (
    "arm",
    "effect",
    "change outside, of 255",
    "PSNR outside, dB",
    "neighbours kept",
    "more things",
    "seam",
    "IoU of the mask",
    "missed",
    "controls identical",
    "passes, seconds",
)
UNNAMED_HEADINGS = ("arm", "effect, of the named", "found", "others identical", "change of the others, of 255")

Record = Mapping[str, Any]


def build_table(record: Record) -> list[str]:
    """Every arm of a concept: what it does to the thing and to the rest, as lines of a Markdown table."""
    rows = []
    for arm, figures in record["arms"].items():
        mask, controls = figures.get("mask"), figures.get("controls")
        rows.append(
            [
                arm,
                *(_format(figures[name]) for name in ("effect", "change_outside")),
                f"{figures['psnr_outside']['value']:.1f}",
                _format(figures["neighbours_kept"]),
                f"{figures['more_things']['value']:.2f}",
                _format(figures["seam"]),
                _format(mask and mask["iou"]),
                mask and f"{mask['missed']['value']:.2f}",
                controls and f"{controls['identical']['value']:.2f}",
                f"{figures['cost']['passes']:.2f}, {figures['cost']['seconds']:.2f}",
            ]
        )
    return markdown_table(HEADINGS, rows)


def build_unnamed_table(record: Record) -> list[str]:
    """What comes of pictures whose prompts do not name the thing, as lines of a Markdown table."""
    rows = []
    for arm, figures in record["arms"].items():
        unnamed = figures.get("unnamed", {})
        if "effect_of_the_named" in unnamed:
            figures_of = unnamed, unnamed, unnamed["others"], unnamed["others"]
            names = "effect_of_the_named", "found", "identical", "mean_change"
            rows.append([arm, *(_format(own.get(name)) for own, name in zip(figures_of, names, strict=True))])
    return markdown_table(UNNAMED_HEADINGS, rows)


def render_page(record: Record) -> str:
    """The page, as Markdown."""
    concepts = [
        {
            "name": name,
            "record": entry,
            "table": "\n".join(build_table(entry)),
            "unnamed": "\n".join(build_unnamed_table(entry)),
            "footer": footer(entry),
        }
        for name, entry in record.items()
    ]
    return render_template(TEMPLATE, concepts=concepts)


def _format(value: Mapping[str, float] | None) -> str | None:
    """A value with its interval, "0.12 [0.05, 0.20]"; of three digits where it is small. None without one."""
    if value is None:
        return None
    digits = 2 if abs(value["value"]) >= 0.1 or not value["value"] else 3
    return f"{value['value']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def main() -> None:
    parser = build_parser(__doc__, DOCS / "preserve.md")
    parser.add_argument("--record", type=Path, default=RESULTS / "preserve.json", help="record of preserve")
    args = parser.parse_args()
    args.out.write_text(render_page(read_record(args.record)))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
