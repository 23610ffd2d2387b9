"""A gate, the mask of a word, and both: where they look, what they change around the thing. On the built-in model.

    python -m benchmarks.quality.localise --seeds 2

For each seed: learn banana → blurred at the denoiser's cross-attention, then draw prompts that learning never drew (a
banana beside something else; things without a banana; "a fruit …") in four arms: the concept's gate, gate × mask of
"banana", the mask alone, always on. Judged by the built-in judge; heat is compared with its masks of the unsteered
pictures. Beside that, other quantiles for the mask. Writes benchmarks/results/localise.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import dsas_diffusion as dsas
from benchmarks.common import builtin_metrics
from benchmarks.common.arms import BATCH, BELOW
from benchmarks.common.builtin_metrics import StyleEdit
from benchmarks.common.processes import single_threaded
from benchmarks.common.records import OUTPUTS, PROMPTS, made_with, parser_of, results_of, write
from benchmarks.quality.concept import fresh_prompts
from dsas_core.evaluation.fronts import at_equal_gain
from dsas_core.evaluation.intervals import bootstrap_interval
from dsas_core.learning.prompts.prompt_set import COUNT, load_prompts
from dsas_diffusion.builtin.judge import Judge
from dsas_diffusion.generation import strips
from dsas_diffusion.generation.compare import UNCHANGED, change
from dsas_diffusion.generation.pictures import decode as decoded
from dsas_diffusion.generation.pictures import latent_batches, pictures_of, seeds_for
from dsas_diffusion.generation.settings import Settings, settings_of
from dsas_diffusion.pipelines.adapter import adapt
from dsas_diffusion.steering import word_masks
from dsas_diffusion.vision import similarity
from dsas_diffusion.vision.localisation import average, localisation

WANTED = StyleEdit("banana", "blurred")
#: arm -> gate, and whether the word's mask is laid over it
ARMS: Mapping[str, tuple[str | None, bool]] = {
    "gate": (None, False),
    "gate × mask": (None, True),
    "mask alone": ("on", True),
    "always on": ("on", False),
}
STRENGTHS = (0.5, 1.0, 1.5)
#: of the mask: min–max, and others between which attention becomes 0 … 1
QUANTILES = ((0.0, 1.0), (0.0, 0.95), (0.5, 0.9), (0.5, 0.95), (0.5, 0.98), (0.8, 0.81), (0.8, 0.95))
#: prompts of the sheet of pictures
SHOWN = 6

Raw = dict[str, list[Any]]


def steered(pipe: Any, concept: dsas.Concept, arm: str, strength: float, trace: bool = False) -> Any:
    """One arm, attached."""
    gate, masked = ARMS[arm]
    looked = {concept.name: WANTED.thing} if masked else None
    return dsas.steer(pipe, {concept: strength}, gate=gate, words=looked, trace=trace)


def heats(
    pipe: Any, concept: dsas.Concept, arm: str, texts: Sequence[str], seeds: Sequence[int], settings: Settings
) -> tuple[list[np.ndarray], list[Image.Image]]:
    """h on the patches of unsteered pictures, mean over sites and late steps, and the pictures."""
    found, pictures = [], []
    with steered(pipe, concept, arm, 0.0, trace=True) as steering:
        for latents in latent_batches(adapt(pipe), texts, seeds, settings, BATCH):
            drawn = decoded(adapt(pipe), latents)
            found += [steering.trace.heat(concept.name, p.size, image=i, below=BELOW) for i, p in enumerate(drawn)]
            pictures += drawn
    return found, pictures


def one_seed(seed: int, args: argparse.Namespace) -> tuple[float, Raw, list[list[Image.Image]], list[str]]:
    """The unit, raw lists of one entry per picture, and a few pictures with their prompts."""
    pipe, judge = dsas.load_pipeline(args.model), Judge.load()
    settings, content = settings_of(pipe), load_prompts(PROMPTS / "banana-blur.yaml")
    used = {prompt for side in content.draw(COUNT, seed).values() for prompt in side}
    prompts = fresh_prompts(WANTED, used, seed, args.size)
    prompts = {part: prompts[part] for part in ("beside", "without", "unnamed")}
    concept = dsas.learn(pipe, content, sites="denoiser", seed=seed, steps=args.learning_steps)
    seeds = {part: seeds_for(texts, 1000 * seed + i) for i, (part, texts) in enumerate(prompts.items())}

    def draw(part: str, arm: str | None = None, strength: float = 1.0) -> list[Image.Image]:
        if arm is None:
            return pictures_of(adapt(pipe), prompts[part], seeds[part], settings, BATCH)
        with steered(pipe, concept, arm, strength):
            return draw(part)

    base = {part: draw(part) for part in prompts}
    shapes = builtin_metrics.find_masks(judge, base["beside"], WANTED.thing)
    whole = [mask is not None and not mask.all() for mask in shapes]
    names = builtin_metrics.find_neighbours(prompts["beside"], WANTED)
    asked = [WANTED.in_words(prompt) for prompt in prompts["beside"]]
    rewritten = pictures_of(adapt(pipe), asked, seeds["beside"], settings, BATCH)
    there = [mask is not None for mask in builtin_metrics.find_masks(judge, base["unnamed"], WANTED.thing)]
    raw: Raw = {
        "labels": [(seed, prompt) for prompt, ok in zip(prompts["beside"], whole, strict=True) if ok],
        "asked": _where(builtin_metrics.detect_edit(judge, rewritten, WANTED), whole),
        "asked leakage": similarity.change_outside(base["beside"], rewritten, _where(shapes, whole, None)),
        "base intact": _where(builtin_metrics.detect_neighbours(judge, base["beside"], names), whole),
    }
    sheet: dict[str, list[Image.Image]] = {"base": base["beside"][:SHOWN]}
    for arm in ARMS:
        heat, _ = heats(pipe, concept, arm, prompts["beside"], seeds["beside"], settings)
        raw[f"{arm} where"] = _located(heat, shapes, whole)
        for strength in STRENGTHS:
            began = time.process_time()
            made = draw("beside", arm, strength)
            spent = (time.process_time() - began) / len(made)
            raw[f"{arm} seconds"] = [*raw.get(f"{arm} seconds", []), spent]
            raw[f"{arm} shown@{strength}"] = _where(builtin_metrics.detect_edit(judge, made, WANTED), whole)
            raw[f"{arm} leakage@{strength}"] = similarity.change_outside(
                base["beside"], made, _where(shapes, whole, None)
            )
            raw[f"{arm} intact@{strength}"] = _where(builtin_metrics.detect_neighbours(judge, made, names), whole)
            if strength == 1.0:
                sheet[arm] = made[:SHOWN]
        sheet[f"h, {arm}"] = [strips.overlay(p, h) for p, h in zip(base["beside"][:SHOWN], heat[:SHOWN], strict=True)]
        raw[f"{arm} moved"] = change(base["without"], draw("without", arm)).tolist()
        unnamed = builtin_metrics.detect_edit(judge, draw("unnamed", arm), WANTED)
        raw[f"{arm} unnamed"] = _where(unnamed, there)
    chosen = word_masks.QUANTILES
    for low, high in QUANTILES:
        word_masks.QUANTILES = low, high
        heat, _ = heats(pipe, concept, "mask alone", prompts["beside"], seeds["beside"], settings)
        raw[f"mask {low:g}–{high:g}"] = _located(heat, shapes, whole)
        raw[f"inside {low:g}–{high:g}"] = [
            float(h[mask].mean()) for h, mask, ok in zip(heat, shapes, whole, strict=True) if ok
        ]
    word_masks.QUANTILES = chosen
    return concept.unit, raw, list(zip(*sheet.values(), strict=True)), [*sheet, *prompts["beside"][:SHOWN]]


def _where(values: Sequence[Any], kept: Sequence[bool], *other: Any) -> list[Any]:
    """Values that are kept; or all of them, with another value in place of those that are not."""
    values = values.tolist() if isinstance(values, np.ndarray) else values
    if other:
        return [value if ok else other[0] for value, ok in zip(values, kept, strict=True)]
    return [value for value, ok in zip(values, kept, strict=True) if ok]


def _located(heat: Sequence[np.ndarray], shapes: Sequence[Any], kept: Sequence[bool]) -> list[Any]:
    return [localisation(h, mask) for h, mask, ok in zip(heat, shapes, kept, strict=True) if ok]


def summed_up(raw: Raw) -> dict[str, Any]:
    """Figures of every arm, with bootstrap intervals over seeds and prompts."""
    labels, asked = raw["labels"], float(np.mean(raw["asked"]))
    intact = np.array(raw["base intact"])

    def between(values: Sequence[float]) -> dict[str, float]:
        array = np.asarray(values, float)
        interval = bootstrap_interval(lambda i: array[i].mean(), labels)
        return {key: round(value, 4) for key, value in asdict(interval).items()}

    def line(arm: str) -> list[tuple[float, float]]:
        return [
            (float(np.mean(raw[f"{arm} leakage@{s}"])), float(np.mean(raw[f"{arm} shown@{s}"])) / asked)
            for s in STRENGTHS
        ]

    arms = {}
    for arm in ARMS:
        leakage, plain = np.array(raw[f"{arm} leakage@1.0"]), np.array(raw["gate leakage@1.0"])
        moved = np.array(raw[f"{arm} moved"])
        kept = np.array(raw[f"{arm} intact@1.0"]) & intact
        arms[arm] = {
            "effect": between(np.array(raw[f"{arm} shown@1.0"]) / asked),
            "leakage": between(leakage),
            "leakage_less_that_of_the_gate": between(leakage - plain),
            "leakage_at_equal_effect": asdict(at_equal_gain(line(arm), line("gate"), 0.9)),
            "neighbour_kept": float(kept.sum() / max(1, intact.sum())),
            "controls": {
                "unchanged": float((moved <= UNCHANGED).mean()),
                "identical": float((moved == 0).mean()),
                "mean_change": float(moved.mean()),
            },
            "unnamed_shown": float(np.mean(raw[f"{arm} unnamed"])) if raw[f"{arm} unnamed"] else None,
            "where": asdict(average(raw[f"{arm} where"])),
            "by_strength": [
                {"strength": s, "leakage": cost, "effect": gain}
                for s, (cost, gain) in zip(STRENGTHS, line(arm), strict=True)
            ],
            "processor_seconds_a_picture": float(np.median(raw[f"{arm} seconds"])),
        }
    masks = [
        {
            "quantiles": [low, high],
            **asdict(average(raw[f"mask {low:g}–{high:g}"])),
            "inside": float(np.mean(raw[f"inside {low:g}–{high:g}"])),
        }
        for low, high in QUANTILES
    ]
    rewritten = {"shown": asked, "leakage": float(np.mean(raw["asked leakage"]))}
    return {"asked_in_words": rewritten, "arms": arms, "masks": masks, "pictures": len(labels)}


def main() -> None:
    parser = parser_of(__doc__, results_of(__file__), seeds=2)
    parser.add_argument("--model", default="builtin:emoji")
    parser.add_argument("--size", type=int, default=16, help="fresh prompts a part and seed, 17 at most")
    parser.add_argument("--learning-steps", type=int, default=8, help="denoising steps while learning")
    parser.add_argument("--sheet", type=Path, default=OUTPUTS / "localise.png", help="pictures to look at")
    args = parser.parse_args()

    began = time.monotonic()
    raw: Raw = {}
    units = []
    with single_threaded(args.workers) as pool:
        for seed, (unit, own, rows, names) in enumerate(pool.map(one_seed, range(args.seeds), [args] * args.seeds)):
            units.append(unit)
            raw = {key: [*raw.get(key, []), *values] for key, values in own.items()}
            if seed == 0:
                args.sheet.parent.mkdir(parents=True, exist_ok=True)
                strips.grid(rows, names[: -len(rows)], names[-len(rows) :], cell=152).save(args.sheet)
    write(args.out, {**summed_up(raw), "units": units, **made_with(began=began)})


if __name__ == "__main__":
    main()
