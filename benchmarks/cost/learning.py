"""What learning from plain texts costs: forward passes run and needed, seconds by phase, memory.

    python -m benchmarks.cost.learning --model FOLDER [--data FOLDER] [--dtypes float32 bfloat16]

32 source, 32 target and 64 control texts on any causal language model; a quarter of them is held out. The texts are
toxic and neutral tweets (--data: a folder as benchmarks/real_text/texts.py describes it), else those of
prompts/rudeness.yaml without their roles. "Needed" are the tokens of the distinct texts that are fitted on, each once
and without padding. Writes benchmarks/results/learning_cost.json.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.records import PROMPTS, RESULTS, build_parser, provenance, write_record
from benchmarks.real_text.ruler import prompt_file
from benchmarks.real_text.texts import draw_split, format_data_command, read_davidson
from dsas_core import llm
from dsas_core.learning.prompts.prompt_file import load_prompts
from dsas_core.learning.prompts.prompt_set import SIDES
from dsas_core.learning.recipe import Recipe

COUNT = 32
#: what learning shall cost at most: forward passes of those needed, seconds on two cores that are free
MOST_PASSES, MOST_SECONDS = 1.3, 60.0


def plain_texts(seed: int) -> dict[str, Any]:
    """A prompt file of plain texts, with nothing in it to expand."""
    drawn = load_prompts(PROMPTS / "rudeness.yaml").draw(COUNT, seed)
    roles = re.compile(r"^(user|assistant): ", re.MULTILINE)
    return {"name": "plain-rudeness", **{side: [roles.sub("", text) for text in drawn[side]] for side in SIDES}}


def tweets(folder: Path, seed: int) -> dict[str, Any]:
    """A prompt file of toxic tweets, to be left, and of neutral ones."""
    return prompt_file("tweets", draw_split(read_davidson(folder), seed, COUNT, prompts=0, neutral=0).lesson)


def measure(model: torch.nn.Module, tokenizer: Any, texts: Mapping[str, Any], form: str, seed: int) -> dict[str, Any]:
    """Learn a concept by a gate of some form, and tell what that took."""
    lesson = llm.Lesson(model, tokenizer, texts, count=COUNT, seed=seed)
    began, busy = time.perf_counter(), time.process_time()
    lesson.captured(Recipe(form=form, pooling="mean", top_share=0.25, seed=seed))
    reading, count = time.perf_counter() - began, replace(lesson.reader.tokens)
    concept = lesson.learn(recipe={"form": form})
    seconds, unit = time.perf_counter() - began, concept.evidence["unit"]
    needed = sum(len(text.ids) for texts in lesson.fitting.values() for text in texts)
    return {
        "texts": {side: len(texts) for side, texts in lesson.fitting.items()},
        "seconds": round(seconds, 1),
        "cpu_seconds": round(time.process_time() - busy, 1),  # of all threads: a busy machine does not add to it
        "seconds_reading": round(reading, 1),
        "reading": asdict(count),
        "tokens_needed": needed,
        "passes_of_needed": round(count.run / needed, 3),
        "after_reading": concept.evidence["cost"],
        "sites": len(concept.interventions),
        "unit": concept.unit,
        "trials": len(unit["trials"]),
    }


def main() -> None:
    parser = build_parser(__doc__, RESULTS / "learning_cost.json", seed=True)
    parser.add_argument("--model", default="builtin:chat", help="folder or Hub name of a causal language model")
    parser.add_argument("--data", type=Path, help="folder of labelled tweets, see benchmarks/real_text/texts.py")
    parser.add_argument("--forms", nargs="+", default=["text"], help="forms of the gate")
    parser.add_argument("--dtypes", nargs="+", default=["float32"], help="float32, bfloat16, …")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    began = time.monotonic()
    texts = plain_texts(args.seed) if args.data is None else tweets(args.data, args.seed)
    figures: dict[str, Any] = {}
    for dtype in args.dtypes:
        model, tokenizer = llm.load(args.model)
        model.to(getattr(torch, dtype))
        for form in args.forms:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what is learned, which is not the point here
                found = measure(model, tokenizer, texts, form, args.seed)
            figures.setdefault(dtype, {})[form] = found
            share = f"{found['passes_of_needed']} of the forward passes needed (at most {MOST_PASSES})"
            print(f"{dtype}, {form}: {found['seconds']} s (at most {MOST_SECONDS:g}), {share}", flush=True)
    limits = {"passes_of_needed": MOST_PASSES, "seconds": MOST_SECONDS}
    about = {"model": args.model, "texts": texts["name"], "seed": args.seed, "limits": limits}
    command = None if args.data is None else format_data_command(args.data, "benchmarks.cost.learning")
    write_record(args.out, {**about, "dtypes": figures, **provenance(began=began, command=command)})


if __name__ == "__main__":
    main()
