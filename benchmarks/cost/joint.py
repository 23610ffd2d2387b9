"""What a step of joint training costs, over a plain forward and backward pass of the same prompts.

    python -m benchmarks.cost.joint

Plain: the same rows through the same layers, as far as the last site, and the gradient of the mean of what comes out
there by a vector that is added at the first. Both in turn, so that a busy machine slows both; CPU seconds of all
threads, medians of rounds, and bytes that autograd keeps. Writes benchmarks/results/joint.json.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import dsas_diffusion as dsas
from benchmarks.common.records import PROMPTS, build_parser, provenance, record_path, write_record
from dsas_core import llm
from dsas_core.learning.joint.checkpoint import Progressed
from dsas_core.learning.joint.fit import make_trainer
from dsas_core.learning.joint.memory import SavedTensors
from dsas_core.learning.joint.runs import Row, frozen
from dsas_core.learning.joint.visitor import JointVisitor
from dsas_core.model.hooks import Call
from dsas_core.model.sites import Site
from dsas_core.utils.processes import Share

ROUNDS, BATCH = 15, 16


class Plain(JointVisitor):
    """Adds a vector at the first site, and keeps what comes out of the last."""

    def __init__(self, sites: list[Site]) -> None:
        super().__init__(sites, ())
        self.first, self.last = sites[0], sites[-1]
        self.vector: torch.Tensor | None = None
        self.out: torch.Tensor | None = None

    def begin(self, root: str, call: Call) -> None:
        """Every row counts."""

    def visit(self, site: Site, x: torch.Tensor) -> torch.Tensor | None:
        if self.vector is None:
            self.vector = torch.zeros(x.shape[-1], requires_grad=True)
        changed = x + self.vector if site == self.first else None
        if site == self.last:
            self.out = x if changed is None else changed
        self.stopper.visit(site, x)
        return changed


def seconds_of(step: Callable[[], object]) -> float:
    begun = time.process_time()
    step()
    return time.process_time() - begun


def measure(lesson: Any, method: str) -> dict[str, Any]:
    """One method's step beside the plain one."""
    given = {"training": {"batch": BATCH, "checkpointing": False}, "site_weight": "none"}
    recipe = lesson._recipe(given, method=method, gate=None, seed=0)
    runs = lesson._joint_runs(recipe)
    reads = lesson._read_sites(recipe)
    trainer, _ = make_trainer(lesson.captured(recipe), recipe, runs, None, {}, Share(), read_sites=reads)
    sites = [item.site for item in trainer.items]
    optimiser, now = trainer._optimiser(), Progressed(first=1.0)
    plain = Plain(sites)
    rows: list[Row] = [("source", i) for i in range(min(BATCH, runs.counts["source"]))]
    rows += [("control", i) for i in range(min(BATCH, runs.counts["control"]))] if trainer.aims.gates else []

    def plain_step() -> None:
        plain.stopper.restart()
        runs.run(rows, 0)
        assert plain.out is not None
        plain.out.mean().backward()

    def trained_step() -> None:
        trainer._step(now, optimiser)

    times: dict[str, list[float]] = {"plain": [], "trained": []}
    there = [part for root in runs.roots.values() for part in root.parameters()]
    kept = {}
    with torch.enable_grad(), frozen(runs.roots):
        for number in range(ROUNDS + 1):
            for name, visitor, step in (("plain", plain, plain_step), ("trained", trainer.visitor, trained_step)):
                with runs.placed(sites, visitor):
                    if number == 0:  # which also reads the targets, once
                        with SavedTensors([*there, *trainer.parameters.parameters()]) as saved:
                            step()
                        kept[name] = saved.bytes
                    else:
                        times[name].append(seconds_of(step))
    ratios = [two / one for one, two in zip(times["plain"], times["trained"], strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "method": method,
        "sites": len(sites),
        "rows": len(rows),
        "seconds": {name: statistics.median(found) for name, found in times.items()},
        "time_ratio": {"value": quartiles[1], "low": quartiles[0], "high": quartiles[2]},
        "bytes": kept,
        "memory_ratio": kept["trained"] / kept["plain"],
    }


def main() -> None:
    args = build_parser(__doc__, record_path(__file__)).parse_args()
    began = time.monotonic()
    model, tokenizer = llm.load("builtin:chat")
    pipe = dsas.load_pipeline("builtin:emoji")
    lessons = {
        "rudeness, all layers": llm.Lesson(model, tokenizer, PROMPTS / "rudeness.yaml", sites="block", count=24),
        "banana-blur, denoiser": dsas.Lesson(pipe, PROMPTS / "banana-blur.yaml", sites="denoiser", count=24, steps=4),
    }
    pairs = [(task, method) for task in lessons for method in ("lineas", "e2e-dsas")]
    rows = [{"task": task, **measure(lessons[task], method)} for task, method in pairs]
    for row in rows:
        print(row)
    write_record(args.out, {"rows": rows, "rounds": ROUNDS, **provenance(began=began)})


if __name__ == "__main__":
    main()
