"""How good the built-in language model is, before any steering, on questions and messages that training never saw.

    python benchmarks/chat.py

Writes benchmarks/results/chat.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dsas_core.llm.builtin import quality
from dsas_core.llm.builtin.corpus import CALM, draw_descriptions, draw_requests, fact_questions
from dsas_core.llm.builtin.judge import fit_judge
from dsas_core.llm.load import load

ROOT = Path(__file__).resolve().parent.parent


def judged(judge: Any, seed: int) -> dict[str, float]:
    """The judge on held-out messages and answers whose tone is known: how many it calls rude."""
    requests = draw_requests(1000, seed)
    texts = {
        "kind_answers": [request.kind for request in requests],
        "rude_answers": [request.rude for request in requests],
        "calm_messages": [request.text for request in requests if not request.angry],
        "angry_messages": [request.text for request in requests if request.angry],
    }
    return {name: float(np.mean(judge.predict(group))) for name, group in texts.items()}


def measure(model: Any, tokenizer: Any, count: int, seed: int) -> dict[str, Any]:
    """Facts, tones and fluency."""
    judge = fit_judge(seed + 1)
    unseen, seen = fact_questions(seed), fact_questions(seed, held_out=False)[::4]
    scenes = [(scene.question, scene.text) for scene in draw_descriptions(count, seed)]
    calm = [(request.text, request.kind) for request in draw_requests(count, seed, manners=CALM)]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "facts": {
            "questions": len(unseen),
            "held_out_phrasings_exact": float(quality.right_answers(model, tokenizer, unseen).mean()),
            "held_out_phrasings_choice": float(quality.right_choices(model, tokenizer, unseen).mean()),
            "known_phrasings_exact": float(quality.right_answers(model, tokenizer, seen).mean()),
        },
        "rude_answers": {
            "messages_a_manner": count,
            "greedy": quality.rude_answers(model, tokenizer, judge, count, seed),
            "sampled": quality.rude_answers(model, tokenizer, judge, count, seed, sample=True),
        },
        "angry_questions": quality.angry_questions(model, tokenizer, count, seed),
        "perplexity": {
            "texts": count,
            "descriptions": quality.perplexity(model, tokenizer, scenes),
            "kind_answers_to_calm_messages": quality.perplexity(model, tokenizer, calm),
        },
        "judge": judged(judge, seed),
    }


def machine() -> dict[str, Any]:
    """What the figures were measured with."""
    import transformers

    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.is_file() else []
    return {
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "machine": {
            "processor": names[0].split(":")[1].strip() if names else platform.processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "command": " ".join(["python", *sys.argv]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="builtin:chat")
    parser.add_argument("--count", type=int, default=500, help="messages a manner, and texts for perplexity")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "chat.json")
    args = parser.parse_args()
    model, tokenizer = load(args.model, device="cpu")
    report = {"model": args.model, "seed": args.seed, **measure(model, tokenizer, args.count, args.seed), **machine()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
