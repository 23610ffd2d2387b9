"""Behaviours of a real chat model, by the ruler of benchmarks/quality/real_text.py.

    python -m benchmarks.quality.real_chat --model models/smollm2

A behaviour's file (benchmarks/behaviours/) has prompts to learn from, a regular expression that finds the behaviour in
an answer, and a system message that asks for the same as steering does. Held-out prompts are answered greedily:
unsteered, with the system message, by DSAS and always on at strength 1, the unit that `learn` chose. Measured: how many
answers show the behaviour, or repeat themselves; how likely they are under the unsteered model; how many answers to
controls are identical. Each measurement is kept in --cache. Writes the model's entry in
benchmarks/results/real_chat.json, with all answers; docs/real-models.md is made from it.
"""

from __future__ import annotations

import time
from pathlib import Path

import yaml

from benchmarks.common.records import OUTPUTS, ROOT, build_parser, provenance, record_path, update_record
from benchmarks.real_text.behaviour import measure_behaviour, read_behaviour
from benchmarks.real_text.reading import ModelReader
from benchmarks.real_text.ruler import open_store
from dsas_core import llm

BEHAVIOURS = sorted((ROOT / "benchmarks" / "behaviours").glob("*.yaml"))


def main() -> None:
    parser = build_parser(__doc__, record_path(__file__), seed=True)
    parser.add_argument("--model", required=True, help="folder or Hub name of a chat model")
    parser.add_argument("--dtype", default="auto", help="of the model: float32, bfloat16; default as of llm.load")
    parser.add_argument("--behaviour", type=Path, nargs="+", default=BEHAVIOURS, help="default: those that there are")
    parser.add_argument("--prompts", type=int, default=40, help="held-out prompts a side")
    parser.add_argument("--learn", default="{}", help="further arguments of llm.learn, as YAML: '{count: 32}'")
    parser.add_argument("--cache", type=Path, help="folder of measurements, default: outputs/real_chat/MODEL")
    args = parser.parse_args()
    began, name = time.monotonic(), Path(args.model).name
    behaviours = [read_behaviour(path) for path in args.behaviour]
    reader = ModelReader(*llm.load(args.model, dtype=args.dtype))
    store, options = open_store(args.cache or OUTPUTS / "real_chat" / name, reader.model), yaml.safe_load(args.learn)
    report = {
        behaviour.prompts.name: {
            "asks": behaviour.asks,
            **measure_behaviour(reader, behaviour, store, args.prompts, args.seed, options or {}),
        }
        for behaviour in behaviours
    }
    update_record(args.out, name, {"behaviours": report, **provenance(began=began)})
    for behaviour, figures in report.items():
        for arm, line in figures["arms"].items():
            print(behaviour, arm, {key: round(line[key], 3) for key in ("shows", "repeats", "nats", "identical")})


if __name__ == "__main__":
    main()
