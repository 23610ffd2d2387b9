"""What concepts cost that are attached and do not steer, and what attaching costs.

    OMP_NUM_THREADS=1 python -m benchmarks.cost.many

- attach: processor milliseconds to attach a concept of 70 sites to a narrow random UNet of SDXL's shape, and to detach.
- many: a thousand concepts at the default sites of the built-in model's denoiser, of which one steers: the time of a
  call beside that with the one alone, interleaved, and the memory that the process has taken beyond the tensors of the
  concepts when they have been attached and called.

Writes benchmarks/results/many.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from typing import Any

import psutil
import torch

import dsas_diffusion as dsas
from benchmarks.common.records import build_parser, provenance, record_path, write_record
from benchmarks.cost.model_shapes import build_builtin, build_xl
from benchmarks.cost.overhead import build_random_concepts, measure_time, time_ratios

#: bytes of a MiB
MIB = 2**20


def measure_attaching(rounds: int) -> dict[str, float]:
    """Processor milliseconds of attaching and detaching, medians over rounds."""
    model = build_xl(64, 32, "cpu", torch.float32)
    (concept,) = build_random_concepts(model, 1)
    times: dict[str, list[float]] = {"attach": [], "detach": []}
    for _ in range(rounds):
        began = time.process_time()
        steering = dsas.steer(model.pipe, {concept: 1.0})
        attached = time.process_time()
        steering.detach()
        times["attach"].append(attached - began)
        times["detach"].append(time.process_time() - attached)
    return {f"{name}_milliseconds": 1000 * statistics.median(found) for name, found in times.items()}


def measure_many(count: int, rounds: int) -> dict[str, float]:
    """Time of a call, and memory, with many concepts of which one steers."""
    model = build_builtin("cpu", torch.float32)
    process = psutil.Process()
    before = process.memory_info().rss
    concepts = build_random_concepts(model, count)
    made = process.memory_info().rss
    parts = [part for concept in concepts for item in concept.interventions for part in (*item.probes, *item.maps)]
    tensors = sum(tensor.nbytes for part in parts for tensor in part.tensors())
    arms = {"unsteered": None, "one": concepts[:1], "many": concepts}
    times: dict[str, list[float]] = {name: [] for name in arms}
    attached = made
    for round_ in range(rounds + 1):
        for name, chosen in arms.items():
            strengths = {concept: float(i == 0) for i, concept in enumerate(chosen or ())}
            steering = dsas.steer(model.pipe, strengths) if chosen else None
            model.begin()
            with torch.no_grad():
                model.call()
            seconds = measure_time(model.call, "cpu")
            if name == "many":
                attached = process.memory_info().rss
            if round_:
                times[name].append(seconds)
            if steering is not None:
                steering.detach()
    return {
        "concepts": count,
        "tensor_mib": tensors / MIB,
        "loaded_mib": (made - before) / MIB,
        "attached_mib": (attached - made) / MIB,
        **time_ratios(times, "unsteered"),
    }


def main() -> None:
    parser: argparse.ArgumentParser = build_parser(__doc__, record_path(__file__))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--count", type=int, default=1000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of random directions that oppose one another
    report: dict[str, Any] = {
        "attach": measure_attaching(args.rounds),
        "many": measure_many(args.count, args.rounds),
        **provenance(),
    }
    write_record(args.out, report)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
