"""One concept on the built-in model, several seeds: the source of the README's figures.

    python -m benchmarks.quality.concept --seeds 4

For each seed: learn with the default sites (what the denoiser is given of the prompt) and with denoiser sites alone
(its cross-attention), then draw base, vanilla and DSAS on fresh prompts (none was drawn for learning or for choosing
the unit) at strength 1, and judge; beside them, the same prompts rewritten ("a blurred banana …").
Writes benchmarks/results/concept.json.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

import dsas_diffusion as dsas
from benchmarks.builtin_models.picture_scenes import noun_phrase
from benchmarks.common.arms import best_mask_site, draw, join_rows, run_trial, summarise
from benchmarks.common.builtin_metrics import StyleEdit
from benchmarks.common.processes import single_thread_pool
from benchmarks.common.records import PROMPTS, build_parser, format_command, provenance, record_path, write_record
from dsas_core.learning.prompts.prompt_file import load_prompts
from dsas_core.learning.prompts.prompt_set import COUNT
from dsas_diffusion.builtin.judge import Judge
from dsas_diffusion.builtin.scenes import BACKGROUNDS, NAMES, RELATIONS
from dsas_diffusion.generation.settings import settings_of

TARGETS = {
    "default": {"effect": 0.9, "unchanged": 0.98, "change_ratio": -0.1, "neighbour_kept": 0.95, "control_h": -0.02},
    "denoiser": {
        "effect": 0.85,
        "unchanged": 0.9,
        "change_ratio": -0.2,
        "neighbour_kept": 0.8,
        "mask_auroc": 0.9,
        "mask_iou": 0.5,
    },
}


SITES = {"default": None, "denoiser": "denoiser"}


def draw_fresh_prompts(edit: StyleEdit, used: set[str], seed: int, size: int) -> dict[str, list[str]]:
    """Prompts outside `used`, by part: `size` each of alone, beside and without, a third of it of unnamed."""
    rng = np.random.default_rng(seed)
    other_things = [name for name in NAMES if name != edit.thing]
    prompts: dict[str, list[str]] = {"alone": [], "beside": [], "without": [], "unnamed": []}
    counts = {"alone": size, "beside": size, "without": size, "unnamed": size // 3}
    while any(len(prompts[part]) < count for part, count in counts.items()):
        background = str(rng.choice(BACKGROUNDS))
        opening = str(rng.choice(["", "a picture of ", "a photo of "]))
        relation = str(rng.choice(["and", *RELATIONS]))
        first, second = (str(name) for name in rng.choice(other_things, 2, replace=False))
        thing = noun_phrase(edit.thing)
        pair = [thing, noun_phrase(first)]
        if rng.random() < 0.5:
            pair.reverse()
        candidates = {
            "alone": f"{opening}{thing} {background}",
            "beside": f"{opening}{pair[0]} {relation} {pair[1]} {background}",
            "without": str(rng.choice([noun_phrase(first), f"{noun_phrase(first)} {relation} {noun_phrase(second)}"])),
            "unnamed": f"{opening}a fruit {background}",
        }
        candidates["without"] = f"{opening}{candidates['without']} {background}"
        for part, prompt in candidates.items():
            if len(prompts[part]) < counts[part] and prompt not in used:
                used.add(prompt)
                prompts[part].append(prompt)
    return prompts


def run_seed(seed: int, args: argparse.Namespace) -> dict[str, tuple[float, Any]]:
    """Learn and judge with one seed.

    Returns:
        The unit and the raw lists of a trial, by sites.
    """
    pipe, judge, edit = dsas.load_pipeline(args.model), Judge.load(), StyleEdit("banana", "blurred")
    settings = settings_of(pipe)
    content = load_prompts(PROMPTS / "banana-blur.yaml")
    learning_prompts = content.draw(COUNT, seed)
    prompts = draw_fresh_prompts(
        edit, {prompt for side in learning_prompts.values() for prompt in side}, seed, args.size
    )
    base = {part: draw(pipe, texts, 1000 * seed + i, settings) for i, (part, texts) in enumerate(prompts.items())}
    results = {}
    for name in args.sites:
        concept = dsas.learn(pipe, content, sites=SITES[name], seed=seed, steps=args.learning_steps)
        validation = learning_prompts["source"][-16:]
        mask_site = best_mask_site(pipe, judge, concept, edit, validation, 900 + seed, settings)
        raw, _, _ = run_trial(pipe, judge, concept, edit, prompts, 1000 * seed, settings, base, mask_site, args.grid)
        results[name] = (concept.unit, raw)
    return results


def main() -> None:
    parser = build_parser(__doc__, record_path(__file__), seeds=4)
    parser.add_argument("--model", default="builtin:emoji")
    parser.add_argument("--size", type=int, default=17, help="fresh prompts a part and seed")
    parser.add_argument("--grid", type=int, default=8, help="prompts a part and seed at each strength of the grid")
    parser.add_argument("--learning-steps", type=int, default=8, help="denoising steps while learning")
    parser.add_argument("--sites", nargs="*", choices=tuple(TARGETS), default=list(TARGETS))
    args = parser.parse_args()

    began = time.monotonic()
    raws: dict[str, list[Any]] = {name: [] for name in args.sites}
    units: dict[str, list[float]] = {name: [] for name in args.sites}
    with single_thread_pool(args.workers) as pool:
        for seed, results in enumerate(pool.map(run_seed, range(args.seeds), [args] * args.seeds)):
            for name, (unit, raw) in results.items():
                raws[name].append(raw)
                units[name].append(unit)
                print(f"seed {seed} {name}: unit {unit:g},", _format_line(summarise(raw), TARGETS[name]), flush=True)
            _write(args, raws, units, seed + 1, began)


def _write(args: argparse.Namespace, raws: Any, units: Any, seeds: int, began: float) -> None:
    """Write the report of the seeds that are done; its command reproduces it from these seeds alone."""
    report: dict[str, Any] = {}
    for name in args.sites:
        figures = summarise(join_rows(raws[name])) | {"units": units[name], "targets": TARGETS[name]}
        report |= figures if name == "default" else {name: figures}
    command = format_command(
        *("--seeds", seeds, "--model", args.model, "--size", args.size, "--grid", args.grid),
        *("--learning-steps", args.learning_steps, "--sites", *args.sites),
    )
    write_record(args.out, {**report, "seeds": seeds, **provenance(began=began, command=command)})


def _format_line(figures: dict[str, Any], targets: dict[str, float]) -> str:
    """Each figure that has a target, marked where it falls short (a negative target is an upper limit)."""
    parts = []
    for key, target in targets.items():
        value = figures.get(key)
        if value is not None:
            reached = value <= -target if target < 0 else value >= target
            parts.append(f"{key} {value:.3f}{'' if reached else ' (short)'}")
    return ", ".join(parts)


if __name__ == "__main__":
    main()
