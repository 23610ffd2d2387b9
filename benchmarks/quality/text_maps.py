"""What a map of texts removes, always on, where all maps cost the same: which states it is to be fitted on.

    python -m benchmarks.quality.text_maps --model models/smollm2 --data FOLDER

The data folder is described in benchmarks/real_text/texts.py; learning, judges and measurements are those of
benchmarks/quality/real_text.py. Each map is learned (`MAPS`) and steers always on, at the strength at which neutral
tweets cost `COST` more perplexity, so that no gate has a part in what is compared. Writes the model's entry in
benchmarks/results/text_maps.json, of which docs/real-models.md is made.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.processes import map_seeds
from benchmarks.common.records import OUTPUTS, build_parser, provenance, record_path, update_record
from benchmarks.real_text.arms import Arm
from benchmarks.real_text.cost_grid import find_strengths
from benchmarks.real_text.measure import OTHER, fit_own_judges, measure_point
from benchmarks.real_text.reading import ModelReader
from benchmarks.real_text.ruler import Common, Ruler, Sizes, open_store
from benchmarks.real_text.summary import Comparison
from benchmarks.real_text.texts import (
    check_folder,
    draw_split,
    format_data_command,
    read_davidson,
    read_olid,
    read_wikitext,
)
from dsas_core import llm

#: how each map is fitted -> arguments of `llm.learn`
MAPS: Mapping[str, Mapping[str, Any]] = {
    "all states": {"recipe": {"pooling": "mean"}},
    "states about to write": {"recipe": {"pooling": "leading"}},
}
#: how much higher the perplexity of neutral tweets is, as a share
COST = 0.4
FIGURES = ("domain", "wikitext", "nats", "repeats")


def run_seed(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Every map of one seed, in the form that `Comparison` reads."""
    reader = ModelReader(*llm.load(args.model, dtype=args.dtype))
    split = draw_split(read_davidson(args.data), seed, args.count, args.prompts, args.neutral)
    common = Common(read_wikitext(args.data), {}, {OTHER: read_olid(args.data)})
    ruler = Ruler(reader, split, common, Sizes(wikitext=args.wikitext), open_store(args.cache, reader.model), seed)
    judges, _ = fit_own_judges(ruler)
    arms = {"unsteered": Arm()}
    for name, options in MAPS.items():
        concept = replace(ruler, options=options).learn(split.lesson)[0]
        [strength] = find_strengths(
            lambda strength, learned=concept: ruler.domain_cost(Arm(learned, strength, "on")), [COST]
        )
        arms[name] = Arm(concept, strength, "on")
    points = {name: measure_point(ruler, name, arm, judges, first=False) for name, arm in arms.items()}
    return {"seed": seed, "prompts": split.prompts, "arms": {name: [point] for name, point in points.items()}}


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What each map removes and costs, and how much more each removes than the first; by judge, with intervals."""
    first, *others = MAPS
    judges = list(runs[0]["arms"]["unsteered"][0]["toxic"])
    lines: dict[str, Any] = {
        name: {key: float(np.mean([run["arms"][name][0][key] for run in runs])) for key in FIGURES}
        for name in ("unsteered", *MAPS)
    }
    for judge in judges:
        comparison = Comparison(runs, judge)
        for name in MAPS:
            lines[name][judge] = {"removed": asdict(comparison.removal(name, 0))}
        for name in others:
            lines[name][judge]["more"] = asdict(comparison.lead(name, first, 0))
    return {"seeds": len(runs), "prompts": len(runs[0]["prompts"]), "cost": COST, "judges": judges, "maps": lines}


def main() -> None:
    parser = build_parser(__doc__, record_path(__file__), seeds=4)
    parser.add_argument("--model", required=True, help="folder or Hub name of a causal language model")
    parser.add_argument("--dtype", default="auto", help="of the model: float32, bfloat16; default as of llm.load")
    parser.add_argument("--data", type=Path, required=True, help="folder of labelled texts")
    parser.add_argument("--count", type=int, default=128, help="source texts to learn from")
    parser.add_argument("--prompts", type=int, default=160, help="cut-off toxic texts, a seed")
    parser.add_argument("--neutral", type=int, default=100, help="neutral texts to read, a seed")
    parser.add_argument("--wikitext", type=int, default=2048, help="tokens of WikiText")
    parser.add_argument("--cache", type=Path, help="folder of measurements, default: outputs/text_maps/MODEL")
    args = parser.parse_args()
    args.cache = args.cache or OUTPUTS / "text_maps" / Path(args.model).name
    check_folder(args.data)
    began = time.monotonic()
    open_store(args.cache, llm.load(args.model, dtype=args.dtype)[0])  # before processes make it at the same time
    report = summarise(map_seeds(run_seed, args))
    command = format_data_command(args.data, "benchmarks.quality.text_maps")
    update_record(args.out, Path(args.model).name, {**report, **provenance(began=began, command=command)})
    for name, line in report["maps"].items():
        print(name, line)


if __name__ == "__main__":
    main()
