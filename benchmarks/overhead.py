"""What steering and learning cost, as ratios within one run: steered and unsteered pictures are interleaved.

    OMP_NUM_THREADS=1 python benchmarks/overhead.py --rounds 15

Processor time is compared, in one thread: with more, threads that wait for one another would be counted as work.

Writes benchmarks/results/overhead.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import dsas_diffusion as dsas
from dsas_core.prompts import COUNT, read
from dsas_core.provenance import versions
from dsas_diffusion.generation import latents_of, seeds_for, settings_of

ROOT = Path(__file__).resolve().parent.parent


def steered_over_unsteered(pipe: Any, concept: dsas.Concept, rounds: int) -> dict[str, float]:
    """Time per generation with the concept attached over time without, minimum and median over interleaved rounds.

    `control` is the same ratio between two unsteered generations: what this machine's noise makes of nothing.
    """
    settings, prompts = settings_of(pipe), ["a banana and a dog on the grass"]
    times: dict[str, list[float]] = {"unsteered": [], "steered": [], "control": []}
    latents_of(pipe, prompts, [0], settings)
    for round_ in range(rounds):
        names = list(times) if round_ % 2 else list(times)[::-1]
        for name in names:
            attached = dsas.steer(pipe, {concept: 1.0}) if name == "steered" else None
            began = time.process_time()
            latents_of(pipe, prompts, [round_], settings)
            times[name].append(time.process_time() - began)
            if attached is not None:
                attached.detach()
    base = times["unsteered"]
    return {
        f"{name}_{how}": pick(times[name]) / pick(base)
        for name in ("steered", "control")
        for how, pick in (("min", min), ("median", statistics.median))
    }


def learning_over_generations(pipe: Any, seed: int) -> dict[str, float]:
    """Time of `learn` over the bare generations that it makes, as many prompts in the same batches."""
    content, settings = read(ROOT / "prompts" / "banana-blur.yaml"), settings_of(pipe)
    began = time.process_time()
    concept = dsas.learn(pipe, content, seed=seed)
    learning = time.process_time() - began
    drawn = content.draw(COUNT, seed)
    used = concept.provenance["prompts_used"]
    batches = [texts[: used[side]] for side, texts in drawn.items()]
    batches += [texts[used[side] :] for side, texts in drawn.items()]
    trial = drawn["source"][used["source"] :] + drawn["control"][used["control"] :]
    batches += [trial] * len(concept.evidence["unit"]["trials"])
    began = time.process_time()
    for texts in batches:
        latents_of(pipe, texts, seeds_for(texts, seed), settings)
    bare = time.process_time() - began
    return {"learning": learning / bare, "generations": sum(map(len, batches))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "overhead.json")
    args = parser.parse_args()
    pipe = dsas.load_pipeline("builtin:emoji")
    report: dict[str, Any] = {"learning": learning_over_generations(pipe, args.seed)}
    for name, sites in (("default", None), ("denoiser", "denoiser")):
        concept = dsas.learn(
            pipe, ROOT / "prompts" / "banana-blur.yaml", sites=sites, seed=args.seed, count=16, steps=4
        )
        report[name] = {"sites": len(concept.sites), **steered_over_unsteered(pipe, concept, args.rounds)}
    report |= {"rounds": args.rounds, "seed": args.seed, "versions": versions("diffusers", "transformers")}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
