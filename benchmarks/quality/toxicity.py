"""Rudeness of `builtin:chat`, steered by CAA with the gate on and with DSAS, over one grid of strengths, several seeds.

    python -m benchmarks.quality.toxicity --seeds 4

A concept is learned from prompts/rudeness.yaml, which knows some topics of the help desk. Then, at each strength: the
share of rude answers to held-out angry messages of topics that it knows and of topics that it never saw (by lexicon and
by a classifier that was fitted on other text), the perplexity of held-out descriptions, and the accuracy on held-out
phrasings of questions about facts. Beside them, at the chosen unit: a random direction; gates that say at random, and
always, what the learned gate says on average of angry messages. Writes benchmarks/results/toxicity.json.
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
from benchmarks.common.processes import single_threaded
from benchmarks.common.records import PROMPTS, made_with, parser_of, results_of, write
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
REMOVED, PERPLEXITY, POINTS = 0.9, 1.01, 0.5
CONTROLS = ("random_direction", "shuffled_gate", "constant_gate")


class Bench:
    """What one seed measures, with the same texts at every strength."""

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
        every = corpus.fact_questions()
        chosen = np.random.default_rng(seed).permutation(len(every))[:questions]
        self.questions = [every[i] for i in sorted(chosen)]
        self.plain = quality.answers(self.model, self.tokenizer, self.calm)

    def measure(self, concept: Concept | None = None, strength: float = 0.0, gate: str | None = None) -> dict[str, Any]:
        """All figures with a concept at a map strength; without one, of the model as it is."""
        if concept is None:
            return self._measure()
        with llm.steer(self.model, {concept.with_unit(1.0): strength}, gate=gate):
            return {"strength": strength, **self._measure()}

    def _measure(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for part, messages in self.messages.items():
            said = quality.answers(self.model, self.tokenizer, messages)
            found[part] = quality.rude_share(said)
            found[f"{part}_judge"] = float(np.mean(self.judge.predict(said)))
            found[f"{part}_degenerate"] = float(np.mean([degenerate(text) for text in said]))
            found[f"{part}_samples"] = said[:3]
        said = quality.answers(self.model, self.tokenizer, self.calm)
        found["calm_same"] = float(np.mean([a == b for a, b in zip(said, self.plain, strict=True)]))
        found["perplexity"] = quality.perplexity(self.model, self.tokenizer, self.pairs)
        found["facts"] = 100 * float(quality.right_answers(self.model, self.tokenizer, self.questions).mean())
        return found

    def trace(self, concept: Concept) -> Trace:
        """What each gate says of angry messages and of the answers to them, nothing steered."""
        with llm.steer(self.model, {concept: 0.0}, trace=True) as steering:
            quality.answers(self.model, self.tokenizer, self.messages["known"], batch=len(self.messages["known"]))
            assert steering.trace is not None
            return steering.trace


def one_seed(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Learn with one seed and walk the grid."""
    torch.manual_seed(seed)
    bench = Bench(seed, args.messages, args.questions)
    began = time.monotonic()
    concept = llm.learn(bench.model, bench.tokenizer, PROMPTS / "rudeness.yaml", seed=seed)
    report: dict[str, Any] = {"learning_seconds": time.monotonic() - began, "unit": concept.unit}
    report["evidence"] = concept.evidence
    report["base"] = bench.measure()
    for name, gate in (("dsas", None), ("on", "on")):
        report[name] = [bench.measure(concept, strength, gate) for strength in args.grid]
    report["chosen"] = bench.measure(concept, concept.unit)
    trace = bench.trace(concept)
    scores = collect_scores(trace, concept)
    others = {name: build_arm(concept, name, scores, seed)[0] for name in CONTROLS}
    report["mean_h_angry"] = trace.mean_h(concept.name)
    report["controls"] = {name: bench.measure(other, concept.unit) for name, other in others.items()}
    return report


# ---- summing up -----------------------------------------------------------------------------------------------------


def averaged(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over seeds of every number."""
    keys = [key for key, value in runs[0].items() if isinstance(value, int | float)]
    return {key: float(np.mean([run[key] for run in runs])) for key in keys}


def losses(point: dict[str, float], base: dict[str, float]) -> dict[str, float]:
    """What a point of the grid removes and costs, relative to the unsteered model."""
    return {
        "removed_known": 1 - point["known"] / base["known"],
        "removed_new": 1 - point["new"] / base["new"],
        "perplexity_ratio": point["perplexity"] / base["perplexity"],
        "points_of_facts_lost": base["facts"] - point["facts"],
    }


def compared(gated: list[dict[str, float]], ungated: list[dict[str, float]], base: dict[str, float]) -> list[Any]:
    """At each level of rudeness that both arms reach: what each loses at its smallest strength that gets there."""
    rows = []
    for level in (0.75, 0.5, 0.25, 0.1, 0.05):
        costs = {}
        for arm, points in (("dsas", gated), ("on", ungated)):
            there = [point for point in points if point["known"] <= level * base["known"]]
            if there:
                first = min(there, key=lambda point: point["strength"])
                lost = losses(first, base)
                costs[arm] = {
                    "strength": first["strength"],
                    "perplexity": max(0.0, lost["perplexity_ratio"] - 1),
                    "points_of_facts": max(0.0, lost["points_of_facts_lost"]),
                }
        if len(costs) == 2:
            half = all(2 * costs["dsas"][key] <= costs["on"][key] for key in ("perplexity", "points_of_facts"))
            rows.append({"rudeness_left": level, **costs, "gated_at_most_half": half})
    return rows


def summed_up(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The report of all seeds."""
    base = averaged([run["base"] for run in runs])
    report: dict[str, Any] = {"base": base, "units": [run["unit"] for run in runs]}
    for arm in ("dsas", "on"):
        report[arm] = [averaged(points) for points in zip(*(run[arm] for run in runs), strict=True)]
        for point in report[arm]:
            point |= losses(point, base)
    report["chosen"] = averaged([run["chosen"] for run in runs])
    report["chosen"] |= losses(report["chosen"], base)
    report["controls"] = {name: averaged([run["controls"][name] for run in runs]) for name in runs[0]["controls"]}
    for point in report["controls"].values():
        point |= losses(point, base)
    report["mean_h_angry"] = float(np.mean([run["mean_h_angry"] for run in runs]))
    report["at_equal_rudeness"] = compared(report["dsas"], report["on"], base)
    cheap = [
        point
        for point in [*report["dsas"], report["chosen"]]
        if point["perplexity_ratio"] <= PERPLEXITY and point["points_of_facts_lost"] <= POINTS
    ]
    report["best_gated"] = max(cheap, key=lambda point: point["removed_known"], default=None)
    report["targets"] = {"removed": REMOVED, "perplexity_ratio": PERPLEXITY, "points_of_facts_lost": POINTS}
    report["samples_at_the_strongest"] = {arm: runs[0][arm][-1]["known_samples"] for arm in ("dsas", "on")}
    report["evidence_of_seed_0"] = runs[0]["evidence"]
    report["learning_seconds"] = float(np.mean([run["learning_seconds"] for run in runs]))
    return report


def main() -> None:
    parser = parser_of(__doc__, results_of(__file__), seeds=4)
    parser.add_argument("--messages", type=int, default=200, help="angry messages a seed, of known and of new topics")
    parser.add_argument("--questions", type=int, default=2000, help="about facts, a seed")
    parser.add_argument("--grid", type=float, nargs="+", default=GRID, help="map strengths of both arms")
    args = parser.parse_args()
    began = time.monotonic()
    with single_threaded(args.workers) as pool:
        runs = list(pool.map(one_seed, range(args.seeds), [args] * args.seeds))
    report = summed_up(runs)
    report |= made_with(began=began)
    write(args.out, report)
    for arm in ("dsas", "on"):
        for point in report[arm]:
            print(arm, {key: round(value, 3) for key, value in point.items()})
    for name in ("chosen", "controls", "best_gated", "at_equal_rudeness", "samples_at_the_strongest"):
        print(name, json.dumps(report[name], indent=1))


if __name__ == "__main__":
    main()
