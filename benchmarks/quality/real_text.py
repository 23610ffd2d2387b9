"""Toxicity of a real language model, steered always-on and with DSAS, on texts that people labelled.

    python -m benchmarks.quality.real_text --model models/smollm2 --data FOLDER

The data folder is described in benchmarks/real_text/texts.py. Each seed splits the tweets anew: one half trains a
judge, the other is learned from and measured on. Cut-off toxic tweets are continued in every arm: unsteered,
behind a polite prefix, always on and DSAS at one grid of realised cost, with a gate that opens at random, and in a
random direction. Measured: the share of toxic continuations by two judges, the perplexity of neutral tweets and of
WikiText, questions of ARC (and MMLU), repetitions, the likelihood of continuations under the unsteered model, and how
well gates tell texts of this and of other data sets apart. Each measurement is kept in --cache: a run that was stopped
goes on. Writes the model's entry in benchmarks/results/real_text.json, of which docs/real-models.md is made, and
samples.json into the cache.
"""

from __future__ import annotations

import argparse
import inspect
import json
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common.processes import map_seeds
from benchmarks.common.records import OUTPUTS, build_parser, provenance, record_path, update_record
from benchmarks.real_text.measure import OTHER, measure_seed
from benchmarks.real_text.reading import ModelReader
from benchmarks.real_text.ruler import Common, Ruler, Sizes, open_store
from benchmarks.real_text.summary import summarise
from benchmarks.real_text.texts import (
    check_folder,
    draw_split,
    format_data_command,
    read_arc,
    read_davidson,
    read_mmlu,
    read_olid,
    read_toxigen,
    read_wikitext,
)
from dsas_core import llm

#: source texts to learn from, unless --count says otherwise
COUNT: int = inspect.signature(llm.learn).parameters["count"].default
#: --quick: enough to see that everything runs
QUICK = {"seeds": 1, "prompts": 24, "neutral": 24, "points": 2, "wikitext": 512, "questions": 16, "gate_texts": 16}


def run_seed(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Load the model, and measure one seed."""
    reader = ModelReader(*llm.load(args.model, dtype=args.dtype))
    texts = read_davidson(args.data)
    split = draw_split(texts, seed, args.count, args.prompts, args.neutral)
    questions = {"arc": read_arc(args.data), **({"mmlu": read_mmlu(args.data)} if args.mmlu else {})}
    common = Common(
        read_wikitext(args.data), questions, {OTHER: read_olid(args.data), "toxigen": read_toxigen(args.data)}
    )
    sizes = Sizes(args.tokens, args.temperature, args.points, args.wikitext, args.questions, args.gate_texts)
    store = open_store(args.cache, reader.model)
    ruler = Ruler(reader, split, common, sizes, store, seed, yaml.safe_load(args.learn) or {})
    return measure_seed(ruler, others_learned=seed == 0)


def read_options() -> argparse.Namespace:
    """The command line; --quick lowers what is not given."""
    parser = build_parser(__doc__, record_path(__file__), seeds=4)
    parser.add_argument("--model", required=True, help="folder or Hub name of a causal language model")
    parser.add_argument("--dtype", default="auto", help="of the model: float32, bfloat16; default as of llm.load")
    parser.add_argument("--data", type=Path, required=True, help="folder of labelled texts")
    parser.add_argument("--count", type=int, default=COUNT, help=f"source texts to learn from, default {COUNT}")
    parser.add_argument(
        "--learn", default="{}", help="further arguments of llm.learn, as YAML: '{recipe: {form: prefix}}'"
    )
    parser.add_argument("--prompts", type=int, default=160, help="cut-off toxic texts, a seed")
    parser.add_argument("--neutral", type=int, default=100, help="neutral texts to read, a seed")
    parser.add_argument("--tokens", type=int, default=20, help="of a continuation")
    parser.add_argument("--temperature", type=float, default=0.0, help="of continuations; default: greedy")
    parser.add_argument("--points", type=int, default=5, help="strengths of each curve, beside the unit")
    parser.add_argument("--wikitext", type=int, default=2048, help="tokens of WikiText")
    parser.add_argument("--questions", type=int, default=150, help="of ARC-Easy, and of MMLU")
    parser.add_argument("--mmlu", action="store_true", help="ask MMLU as well: small models are near chance")
    parser.add_argument("--gate-texts", type=int, default=100, help="texts a side for the figures of gates")
    parser.add_argument("--cache", type=Path, help="folder of measurements, default: outputs/real_text/MODEL")
    parser.add_argument("--quick", action="store_true", help="little of everything, to see that it runs")
    quick = parser.parse_known_args()[0].quick
    parser.set_defaults(**(QUICK if quick else {}))
    args = parser.parse_args()
    args.cache = args.cache or OUTPUTS / "real_text" / Path(args.model).name
    return args


def main() -> None:
    args = read_options()
    check_folder(args.data, ["mmlu"] if args.mmlu else [])
    began = time.monotonic()
    open_store(args.cache, llm.load(args.model, dtype=args.dtype)[0])  # before processes make it at the same time
    report = summarise(map_seeds(run_seed, args))
    samples = args.cache / "samples.json"  # what people wrote stays here, it is no part of the record
    samples.write_text(json.dumps(report.pop("samples"), indent=1, ensure_ascii=False), encoding="utf-8")
    settings = {
        key: getattr(args, key) for key in ("dtype", "count", "learn", "tokens", "temperature", "neutral", "wikitext")
    }
    entry = {
        **report,
        "settings": {**settings, "quick": args.quick},
        **provenance(began=began, command=format_data_command(args.data, "benchmarks.quality.real_text")),
    }
    update_record(args.out, Path(args.model).name, entry)
    for name, points in report["arms"].items():
        for point in points:
            removed = {judge: round(point[judge]["removed"]["value"], 2) for judge in report["judges"]}
            costs = {key: round(point[key], 3) for key in ("domain", "wikitext", "repeats", "nats")}
            print(name, point["strengths"], removed, costs)


if __name__ == "__main__":
    main()
