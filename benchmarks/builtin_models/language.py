"""Quality of the built-in language model, without steering, on questions and messages held out from training.

    python -m benchmarks.builtin_models.language

Writes benchmarks/results/language.json.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from benchmarks.builtin_models import language_quality as quality
from benchmarks.common.records import build_parser, provenance, record_path, write_record
from dsas_core.llm.builtin.corpus import CALM, draw_descriptions, draw_requests, fact_questions
from dsas_core.llm.builtin.judge import fit_judge
from dsas_core.llm.model.load import load


def measure_judge(judge: Any, seed: int) -> dict[str, float]:
    """Shares that the judge calls rude of held-out messages and answers whose tone is known."""
    requests = draw_requests(1000, seed)
    texts = {
        "kind_answers": [request.kind for request in requests],
        "rude_answers": [request.rude for request in requests],
        "calm_messages": [request.text for request in requests if not request.angry],
        "angry_messages": [request.text for request in requests if request.angry],
    }
    return {name: float(np.mean(judge.predict(group))) for name, group in texts.items()}


def measure(model: Any, tokenizer: Any, count: int, seed: int) -> dict[str, Any]:
    """Metrics of facts, tones and fluency, on `count` texts each."""
    judge = fit_judge(seed + 1)
    held_out, known = fact_questions(seed), fact_questions(seed, held_out=False)[::4]
    scenes = [(scene.question, scene.text) for scene in draw_descriptions(count, seed)]
    calm = [(request.text, request.kind) for request in draw_requests(count, seed, manners=CALM)]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "facts": {
            "questions": len(held_out),
            "held_out_phrasings_exact": float(quality.check_answers(model, tokenizer, held_out).mean()),
            "held_out_phrasings_choice": float(quality.check_choices(model, tokenizer, held_out).mean()),
            "known_phrasings_exact": float(quality.check_answers(model, tokenizer, known).mean()),
        },
        "rude_answers": {
            "messages_a_manner": count,
            "greedy": quality.measure_rudeness(model, tokenizer, judge, count, seed),
            "sampled": quality.measure_rudeness(model, tokenizer, judge, count, seed, sample=True),
        },
        "angry_questions": quality.measure_angry_questions(model, tokenizer, count, seed),
        "perplexity": {
            "texts": count,
            "descriptions": quality.perplexity(model, tokenizer, scenes),
            "kind_answers_to_calm_messages": quality.perplexity(model, tokenizer, calm),
        },
        "judge": measure_judge(judge, seed),
    }


def main() -> None:
    parser = build_parser(__doc__, record_path(__file__), seed=True)
    parser.add_argument("--model", default="builtin:chat")
    parser.add_argument("--count", type=int, default=500, help="messages a manner, and texts for perplexity")
    args = parser.parse_args()
    model, tokenizer = load(args.model, device="cpu")
    figures = measure(model, tokenizer, args.count, args.seed)
    report = {"model": args.model, "seed": args.seed, **figures, **provenance()}
    write_record(args.out, report)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
