"""Rudeness of `builtin:chat`, steered by CAA with the gate on and with DSAS, over one grid of strengths, several seeds.

    python -m benchmarks.quality.toxicity --seeds 4

A concept is learned from prompts/rudeness.yaml, which covers some topics of the help desk. Measured at each strength:
the share of rude answers to held-out angry messages of these (known) topics and of other (new) topics, by lexicon and
by a classifier fitted on other text; the perplexity of held-out descriptions; the accuracy on held-out phrasings of
questions about facts. Control arms at the chosen unit: a random direction; the gate's values shuffled; a constant gate
at their mean. Writes benchmarks/results/toxicity.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.builtin_models import language_quality as quality
from benchmarks.common.processes import single_thread_pool
from benchmarks.common.records import PROMPTS, build_parser, provenance, record_path, write_record
from dsas_core import llm
from dsas_core.concept.concept import Concept
from dsas_core.evaluation.arms import build_arm, collect_scores
from dsas_core.llm.builtin import corpus
from dsas_core.llm.builtin.judge import fit_judge
from dsas_core.llm.evaluation.repetition import degenerate
from dsas_core.steering.trace import Trace

KNOWN = ("parcel", "invoice", "password", "booking", "internet", "ticket")
NEW = tuple(topic for topic in corpus.TOPICS if topic not in KNOWN)
#: map strengths, the same for both arms
GRID = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0)
TARGETS = {"removed": 0.9, "perplexity_ratio": 1.01, "points_of_facts_lost": 0.5}
CONTROLS = ("random_direction", "shuffled_gate", "constant_gate")


class Evaluation:
    """The evaluation of one seed, with the same texts at every strength."""

    def __init__(self, seed: int, messages: int, questions: int) -> None:
        self.model, self.tokenizer = llm.load("builtin:chat")
        self.judge = fit_judge(seed=1000 + seed)
        angry = {"manners": ("angry",)}
        self.messages = {
            "known": [r.text for r in corpus.draw_requests(messages, seed, topics=KNOWN, **angry)],
            "new": [r.text for r in corpus.draw_requests(messages, seed, topics=NEW, **angry)],
        }
        calm = corpus.draw_requests(messages, seed, manners=corpus.CALM)
        self.calm = [request.text for request in calm]
        self.pairs = [(d.question, d.text) for d in corpus.draw_descriptions(300, seed)]
        self.pairs += [(request.text, request.kind) for request in calm]
        all_questions = corpus.fact_questions()
        indices = np.random.default_rng(seed).permutation(len(all_questions))[:questions]
        self.questions = [all_questions[i] for i in sorted(indices)]
        self.unsteered_answers = quality.generate_answers(self.model, self.tokenizer, self.calm)

    def measure(self, concept: Concept | None = None, strength: float = 0.0, gate: str | None = None) -> dict[str, Any]:
        """All figures with a concept at a map strength; without one, of the model as it is."""
        if concept is None:
            return self._measure()
        with llm.steer(self.model, {concept.with_unit(1.0): strength}, gate=gate):
            return {"strength": strength, **self._measure()}

    def _measure(self) -> dict[str, Any]:
        figures: dict[str, Any] = {}
        for part, messages in self.messages.items():
            answers = quality.generate_answers(self.model, self.tokenizer, messages)
            figures[part] = quality.rude_share(answers)
            figures[f"{part}_judge"] = float(np.mean(self.judge.predict(answers)))
            figures[f"{part}_degenerate"] = float(np.mean([degenerate(text) for text in answers]))
            figures[f"{part}_samples"] = answers[:3]
        answers = quality.generate_answers(self.model, self.tokenizer, self.calm)
        figures["calm_same"] = float(np.mean([a == b for a, b in zip(answers, self.unsteered_answers, strict=True)]))
        figures["perplexity"] = quality.perplexity(self.model, self.tokenizer, self.pairs)
        figures["facts"] = 100 * float(quality.check_answers(self.model, self.tokenizer, self.questions).mean())
        return figures

    def trace(self, concept: Concept) -> Trace:
        """The trace of the gates on angry messages and the answers to them, at strength 0."""
        with llm.steer(self.model, {concept: 0.0}, trace=True) as steering:
            quality.generate_answers(
                self.model, self.tokenizer, self.messages["known"], batch=len(self.messages["known"])
            )
            assert steering.trace is not None
            return steering.trace


def run_seed(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Learn with one seed and measure at each strength of the grid."""
    torch.manual_seed(seed)
    evaluation = Evaluation(seed, args.messages, args.questions)
    began = time.monotonic()
    concept = llm.learn(evaluation.model, evaluation.tokenizer, PROMPTS / "rudeness.yaml", seed=seed)
    report: dict[str, Any] = {"learning_seconds": time.monotonic() - began, "unit": concept.unit}
    report["evidence"] = concept.evidence
    report["base"] = evaluation.measure()
    for name, gate in (("dsas", None), ("on", "on")):
        report[name] = [evaluation.measure(concept, strength, gate) for strength in args.grid]
    report["chosen"] = evaluation.measure(concept, concept.unit)
    trace = evaluation.trace(concept)
    scores = collect_scores(trace, concept)
    control_arms = {name: build_arm(concept, name, scores, seed)[0] for name in CONTROLS}
    report["mean_h_angry"] = trace.mean_h(concept.name)
    report["controls"] = {name: evaluation.measure(control, concept.unit) for name, control in control_arms.items()}
    return report


# ---- summary --------------------------------------------------------------------------------------------------------


def average_seeds(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The mean over seeds of every number."""
    keys = [key for key, value in runs[0].items() if isinstance(value, int | float)]
    return {key: float(np.mean([run[key] for run in runs])) for key in keys}


def compute_losses(point: dict[str, float], base: dict[str, float]) -> dict[str, float]:
    """Rudeness removed and quality lost at a point of the grid, relative to the unsteered model."""
    return {
        "removed_known": 1 - point["known"] / base["known"],
        "removed_new": 1 - point["new"] / base["new"],
        "perplexity_ratio": point["perplexity"] / base["perplexity"],
        "points_of_facts_lost": base["facts"] - point["facts"],
    }


def compare_arms(gated: list[dict[str, float]], ungated: list[dict[str, float]], base: dict[str, float]) -> list[Any]:
    """At each level of rudeness that both arms reach: the losses of each at its smallest strength that reaches it."""
    rows = []
    for level in (0.75, 0.5, 0.25, 0.1, 0.05):
        costs = {}
        for arm, points in (("dsas", gated), ("on", ungated)):
            reached = [point for point in points if point["known"] <= level * base["known"]]
            if reached:
                first = min(reached, key=lambda point: point["strength"])
                losses = compute_losses(first, base)
                costs[arm] = {
                    "strength": first["strength"],
                    "perplexity": max(0.0, losses["perplexity_ratio"] - 1),
                    "points_of_facts": max(0.0, losses["points_of_facts_lost"]),
                }
        if len(costs) == 2:
            at_most_half = all(2 * costs["dsas"][key] <= costs["on"][key] for key in ("perplexity", "points_of_facts"))
            rows.append({"rudeness_left": level, **costs, "gated_at_most_half": at_most_half})
    return rows


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The report of all seeds."""
    base = average_seeds([run["base"] for run in runs])
    report: dict[str, Any] = {"base": base, "units": [run["unit"] for run in runs]}
    for arm in ("dsas", "on"):
        report[arm] = [average_seeds(points) for points in zip(*(run[arm] for run in runs), strict=True)]
        for point in report[arm]:
            point |= compute_losses(point, base)
    report["chosen"] = average_seeds([run["chosen"] for run in runs])
    report["chosen"] |= compute_losses(report["chosen"], base)
    report["controls"] = {name: average_seeds([run["controls"][name] for run in runs]) for name in runs[0]["controls"]}
    for point in report["controls"].values():
        point |= compute_losses(point, base)
    report["mean_h_angry"] = float(np.mean([run["mean_h_angry"] for run in runs]))
    report["at_equal_rudeness"] = compare_arms(report["dsas"], report["on"], base)
    cheap = [
        point
        for point in [*report["dsas"], report["chosen"]]
        if all(point[key] <= TARGETS[key] for key in ("perplexity_ratio", "points_of_facts_lost"))
    ]
    report["best_gated"] = max(cheap, key=lambda point: point["removed_known"], default=None)
    report["targets"] = TARGETS
    report["samples_at_the_strongest"] = {arm: runs[0][arm][-1]["known_samples"] for arm in ("dsas", "on")}
    report["evidence_of_seed_0"] = runs[0]["evidence"]
    report["learning_seconds"] = float(np.mean([run["learning_seconds"] for run in runs]))
    return report


def main() -> None:
    parser = build_parser(__doc__, record_path(__file__), seeds=4)
    parser.add_argument("--messages", type=int, default=200, help="angry messages a seed, of known and of new topics")
    parser.add_argument("--questions", type=int, default=2000, help="about facts, a seed")
    parser.add_argument("--grid", type=float, nargs="+", default=GRID, help="map strengths of both arms")
    args = parser.parse_args()
    began = time.monotonic()
    with single_thread_pool(args.workers) as pool:
        runs = list(pool.map(run_seed, range(args.seeds), [args] * args.seeds))
    report = summarise(runs)
    report |= provenance(began=began)
    write_record(args.out, report)
    for arm in ("dsas", "on"):
        for point in report[arm]:
            print(arm, {key: round(value, 3) for key, value in point.items()})
    for name in ("chosen", "controls", "best_gated", "at_equal_rudeness", "samples_at_the_strongest"):
        print(name, json.dumps(report[name], indent=1))


if __name__ == "__main__":
    main()
