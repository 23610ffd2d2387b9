"""A gate, the attention mask of a word, and both: localisation and leakage outside the thing. On the built-in model.

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
from benchmarks.common.arms import BATCH, MAX_HEAT_TIMESTEP
from benchmarks.common.builtin_metrics import StyleEdit
from benchmarks.common.processes import single_thread_pool
from benchmarks.common.records import OUTPUTS, PROMPTS, build_parser, provenance, record_path, write_record
from benchmarks.quality.concept import draw_fresh_prompts
from dsas_core.evaluation.fronts import at_equal_gain
from dsas_core.evaluation.intervals import bootstrap_interval
from dsas_core.learning.prompts.prompt_file import load_prompts
from dsas_core.learning.prompts.prompt_set import COUNT
from dsas_diffusion.builtin.judge import Judge
from dsas_diffusion.generation import strips
from dsas_diffusion.generation.compare import UNCHANGED, change
from dsas_diffusion.generation.pictures import decode, latent_batches, pictures_of, seeds_for
from dsas_diffusion.generation.settings import Settings, settings_of
from dsas_diffusion.pipelines.adapter import adapt
from dsas_diffusion.steering import word_masks
from dsas_diffusion.vision import similarity
from dsas_diffusion.vision.localisation import Localisation, average, localisation

EDIT = StyleEdit("banana", "blurred")
#: arm -> gate, and whether it is multiplied by the mask of the word
ARMS: Mapping[str, tuple[str | None, bool]] = {
    "gate": (None, False),
    "gate × mask": (None, True),
    "mask alone": ("on", True),
    "always on": ("on", False),
}
STRENGTHS = (0.5, 1.0, 1.5)
#: pairs of quantiles between which attention is rescaled to a mask in [0, 1]; the first is min–max
QUANTILES = ((0.0, 1.0), (0.0, 0.95), (0.5, 0.9), (0.5, 0.95), (0.5, 0.98), (0.8, 0.81), (0.8, 0.95))
#: number of prompts on the sheet of pictures
SHEET_PROMPTS = 6

Raw = dict[str, list[Any]]


def steer_arm(pipe: Any, concept: dsas.Concept, arm: str, strength: float, trace: bool = False) -> Any:
    """Attach the steering of one arm."""
    gate, masked = ARMS[arm]
    words = {concept.name: EDIT.thing} if masked else None
    return dsas.steer(pipe, {concept: strength}, gate=gate, words=words, trace=trace)


def draw_heat(
    pipe: Any, concept: dsas.Concept, arm: str, texts: Sequence[str], seeds: Sequence[int], settings: Settings
) -> list[np.ndarray]:
    """Heatmaps of h at strength 0, the mean over sites and late steps."""
    heat = []
    with steer_arm(pipe, concept, arm, 0.0, trace=True) as steering:
        for latents in latent_batches(adapt(pipe), texts, seeds, settings, BATCH):
            for i, picture in enumerate(decode(adapt(pipe), latents)):
                heat.append(steering.trace.heat(concept.name, picture.size, image=i, below=MAX_HEAT_TIMESTEP))
    return heat


def run_seed(seed: int, args: argparse.Namespace) -> tuple[float, Raw, list[list[Image.Image]], list[str]]:
    """The unit, raw lists of one entry per picture, rows of the sheet, and its column names followed by its prompts."""
    pipe, judge = dsas.load_pipeline(args.model), Judge.load()
    settings, content = settings_of(pipe), load_prompts(PROMPTS / "banana-blur.yaml")
    used = {prompt for side in content.draw(COUNT, seed).values() for prompt in side}
    prompts = draw_fresh_prompts(EDIT, used, seed, args.size)
    prompts = {part: prompts[part] for part in ("beside", "without", "unnamed")}
    concept = dsas.learn(pipe, content, sites="denoiser", seed=seed, steps=args.learning_steps)
    seeds = {part: seeds_for(texts, 1000 * seed + i) for i, (part, texts) in enumerate(prompts.items())}

    def draw(part: str, arm: str | None = None, strength: float = 1.0) -> list[Image.Image]:
        if arm is None:
            return pictures_of(adapt(pipe), prompts[part], seeds[part], settings, BATCH)
        with steer_arm(pipe, concept, arm, strength):
            return draw(part)

    base = {part: draw(part) for part in prompts}
    masks = builtin_metrics.find_masks(judge, base["beside"], EDIT.thing)
    usable = [mask is not None and not mask.all() for mask in masks]
    names = builtin_metrics.find_neighbours(prompts["beside"], EDIT)
    texts = [EDIT.in_words(prompt) for prompt in prompts["beside"]]
    rewritten = pictures_of(adapt(pipe), texts, seeds["beside"], settings, BATCH)
    has_thing = [mask is not None for mask in builtin_metrics.find_masks(judge, base["unnamed"], EDIT.thing)]
    raw: Raw = {
        "labels": [(seed, prompt) for prompt, ok in zip(prompts["beside"], usable, strict=True) if ok],
        "rewritten": _select(builtin_metrics.detect_edit(judge, rewritten, EDIT), usable),
        "rewritten leakage": similarity.change_outside(base["beside"], rewritten, _select(masks, usable, None)),
        "base intact": _select(builtin_metrics.detect_neighbours(judge, base["beside"], names), usable),
    }
    sheet: dict[str, list[Image.Image]] = {"base": base["beside"][:SHEET_PROMPTS]}
    for arm in ARMS:
        heat = draw_heat(pipe, concept, arm, prompts["beside"], seeds["beside"], settings)
        raw[f"{arm} localisation"] = _localise_all(heat, masks, usable)
        for strength in STRENGTHS:
            began = time.process_time()
            pictures = draw("beside", arm, strength)
            seconds = (time.process_time() - began) / len(pictures)
            raw[f"{arm} seconds"] = [*raw.get(f"{arm} seconds", []), seconds]
            raw[f"{arm} hits@{strength}"] = _select(builtin_metrics.detect_edit(judge, pictures, EDIT), usable)
            raw[f"{arm} leakage@{strength}"] = similarity.change_outside(
                base["beside"], pictures, _select(masks, usable, None)
            )
            raw[f"{arm} intact@{strength}"] = _select(builtin_metrics.detect_neighbours(judge, pictures, names), usable)
            if strength == 1.0:
                sheet[arm] = pictures[:SHEET_PROMPTS]
        sheet[f"h, {arm}"] = [
            strips.overlay(p, h) for p, h in zip(base["beside"][:SHEET_PROMPTS], heat[:SHEET_PROMPTS], strict=True)
        ]
        raw[f"{arm} control change"] = change(base["without"], draw("without", arm)).tolist()
        unnamed = builtin_metrics.detect_edit(judge, draw("unnamed", arm), EDIT)
        raw[f"{arm} unnamed"] = _select(unnamed, has_thing)
    default_quantiles = word_masks.QUANTILES
    for low, high in QUANTILES:
        word_masks.QUANTILES = low, high
        heat = draw_heat(pipe, concept, "mask alone", prompts["beside"], seeds["beside"], settings)
        raw[f"mask {low:g}–{high:g}"] = _localise_all(heat, masks, usable)
        raw[f"inside {low:g}–{high:g}"] = [
            float(h[mask].mean()) for h, mask, ok in zip(heat, masks, usable, strict=True) if ok
        ]
    word_masks.QUANTILES = default_quantiles
    return concept.unit, raw, list(zip(*sheet.values(), strict=True)), [*sheet, *prompts["beside"][:SHEET_PROMPTS]]


def _select(values: Sequence[Any], kept: Sequence[bool], *replacement: Any) -> list[Any]:
    """The values where `kept` is true; with another value given, all values, that one in place of the rest."""
    values = values.tolist() if isinstance(values, np.ndarray) else values
    if replacement:
        return [value if ok else replacement[0] for value, ok in zip(values, kept, strict=True)]
    return [value for value, ok in zip(values, kept, strict=True) if ok]


def _localise_all(heat: Sequence[np.ndarray], masks: Sequence[Any], kept: Sequence[bool]) -> list[Localisation]:
    """Localisation scores of the heatmaps for which `kept` is true."""
    return [localisation(h, mask) for h, mask, ok in zip(heat, masks, kept, strict=True) if ok]


def summarise(raw: Raw) -> dict[str, Any]:
    """Figures of every arm, with bootstrap intervals over seeds and prompts."""
    labels, rewritten_rate = raw["labels"], float(np.mean(raw["rewritten"]))
    intact = np.array(raw["base intact"])

    def mean_with_interval(values: Sequence[float]) -> dict[str, float]:
        array = np.asarray(values, float)
        interval = bootstrap_interval(lambda i: array[i].mean(), labels)
        return {key: round(value, 4) for key, value in asdict(interval).items()}

    def front(arm: str) -> list[tuple[float, float]]:
        return [
            (float(np.mean(raw[f"{arm} leakage@{s}"])), float(np.mean(raw[f"{arm} hits@{s}"])) / rewritten_rate)
            for s in STRENGTHS
        ]

    arms = {}
    for arm in ARMS:
        leakage, gate_leakage = np.array(raw[f"{arm} leakage@1.0"]), np.array(raw["gate leakage@1.0"])
        control_change = np.array(raw[f"{arm} control change"])
        neighbours_kept = np.array(raw[f"{arm} intact@1.0"]) & intact
        arms[arm] = {
            "effect": mean_with_interval(np.array(raw[f"{arm} hits@1.0"]) / rewritten_rate),
            "leakage": mean_with_interval(leakage),
            "leakage_less_that_of_the_gate": mean_with_interval(leakage - gate_leakage),
            "leakage_at_equal_effect": asdict(at_equal_gain(front(arm), front("gate"), 0.9)),
            "neighbour_kept": float(neighbours_kept.sum() / max(1, intact.sum())),
            "controls": {
                "unchanged": float((control_change <= UNCHANGED).mean()),
                "identical": float((control_change == 0).mean()),
                "mean_change": float(control_change.mean()),
            },
            "unnamed_shown": float(np.mean(raw[f"{arm} unnamed"])) if raw[f"{arm} unnamed"] else None,
            "where": asdict(average(raw[f"{arm} localisation"])),
            "by_strength": [
                {"strength": s, "leakage": cost, "effect": gain}
                for s, (cost, gain) in zip(STRENGTHS, front(arm), strict=True)
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
    in_words = {"shown": rewritten_rate, "leakage": float(np.mean(raw["rewritten leakage"]))}
    return {"asked_in_words": in_words, "arms": arms, "masks": masks, "pictures": len(labels)}


def main() -> None:
    parser = build_parser(__doc__, record_path(__file__), seeds=2)
    parser.add_argument("--model", default="builtin:emoji")
    parser.add_argument("--size", type=int, default=16, help="fresh prompts a part and seed, 17 at most")
    parser.add_argument("--learning-steps", type=int, default=8, help="denoising steps while learning")
    parser.add_argument("--sheet", type=Path, default=OUTPUTS / "localise.png", help="pictures to look at")
    args = parser.parse_args()

    began = time.monotonic()
    raw: Raw = {}
    units = []
    with single_thread_pool(args.workers) as pool:
        for seed, (unit, seed_raw, rows, names) in enumerate(
            pool.map(run_seed, range(args.seeds), [args] * args.seeds)
        ):
            units.append(unit)
            raw = {key: [*raw.get(key, []), *values] for key, values in seed_raw.items()}
            if seed == 0:
                args.sheet.parent.mkdir(parents=True, exist_ok=True)
                strips.grid(rows, names[: -len(rows)], names[-len(rows) :], cell=152).save(args.sheet)
    write_record(args.out, {**summarise(raw), "units": units, **provenance(began=began)})


if __name__ == "__main__":
    main()
