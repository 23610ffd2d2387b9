"""`make demo`: blur bananas, and only bananas, from nothing to a picture.

Learns the concept of prompts/banana-blur.yaml on the built-in model, draws the prompts of its evaluation in four arms
(base, vanilla steering, DSAS, DSAS with the rest of the picture kept), once with the default sites and, for the report,
once with those of the denoiser alone, each in a process of its own; and writes outputs/demo: comparison.png, arms/,
prompts.json, report.json.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import dsas_diffusion as dsas
from benchmarks.common import builtin_metrics
from benchmarks.common.arms import best_mask_site, draw, run_trial, summarise
from benchmarks.common.builtin_metrics import StyleEdit
from benchmarks.common.processes import single_thread_pool
from benchmarks.common.records import OUTPUTS, PROMPTS, build_parser, provenance, write_record
from dsas_core.learning.prompts.prompt_file import load_prompts
from dsas_diffusion.builtin.judge import Judge
from dsas_diffusion.generation import strips
from dsas_diffusion.generation.pictures import seeds_for
from dsas_diffusion.generation.settings import Settings, settings_of
from dsas_diffusion.vision import similarity

BANANAS = PROMPTS / "banana-blur.yaml"
#: prompts a side and denoising steps while learning: less than benchmarks/quality/concept.py takes, to be done sooner
COUNT, LEARNING_STEPS = 40, 8
#: for the change at equal effect; benchmarks/quality/concept.py has a finer grid
STRENGTHS = (0.5, 1.0)
ARMS = {"base": "no steering", "vanilla": "always on", "dsas": "DSAS", "kept": "DSAS, rest kept"}
OTHER_HEADINGS = (f"what changed × {strips.GAIN}", "where it sees it")


def learn_and_judge(
    sites: str | None, prompts: dict[str, list[str]], out: Path, seed: int
) -> tuple[Any, Any, Any, float]:
    """Learn at some sites, draw and judge: raw lists, pictures by arm, heat, unit."""
    pipe, judge, edit = dsas.load_pipeline("builtin:emoji"), Judge.load(), StyleEdit("banana", "blurred")
    settings, content = settings_of(pipe), load_prompts(BANANAS)
    base = {part: draw(pipe, texts, seed + i, settings) for i, (part, texts) in enumerate(prompts.items())}
    is_default = sites is None
    concept = dsas.learn(
        pipe, content, sites=sites, seed=seed, count=COUNT, steps=LEARNING_STEPS, show_progress=is_default
    )
    if is_default:
        concept.save_pretrained(out.parent / "demo-concept", overwrite=True)
        print("drawing and judging …", flush=True)
    validation = content.draw(COUNT, seed)["source"][-8:]
    site = best_mask_site(pipe, judge, concept, edit, validation, seed + 900, settings)
    raw, arms, heats = run_trial(pipe, judge, concept, edit, prompts, seed, settings, base, site, 4, STRENGTHS)
    if is_default:
        arms["kept"], heats = draw_kept(pipe, concept, prompts, seed, settings)
        things = builtin_metrics.find_masks(judge, base["beside"], edit.thing)
        changes = {arm: similarity.change_outside(base["beside"], arms[arm]["beside"], things) for arm in ARMS}
        raw |= {f"{arm} outside": values for arm, values in changes.items()}
    return raw, arms, heats, concept.unit


def draw_kept(
    pipe: Any, concept: dsas.Concept, prompts: dict[str, list[str]], seed: int, settings: Settings
) -> tuple[dict[str, list[Image.Image]], dict[str, list[np.ndarray]]]:
    """Steered pictures that are the unsteered ones wherever the concept is not, and the masks of where it is."""
    options = {"num_inference_steps": settings.steps, "guidance_scale": settings.guidance}
    kept, masks = {}, {}
    with dsas.steer(pipe, {concept: 1.0}) as steering:
        for i, (part, texts) in enumerate(prompts.items()):
            noise = [torch.Generator().manual_seed(value) for value in seeds_for(texts, seed + i)]
            made = steering.generate(texts, generator=noise, preserve=True, **options)
            kept[part], masks[part] = made.images, made.masks or []
    return kept, masks


def main() -> None:
    parser = build_parser(__doc__, OUTPUTS / "demo", seed=True)
    args = parser.parse_args()

    began = time.monotonic()
    content = load_prompts(BANANAS)
    prompts = {part: content.expanded(part) for part in ("alone", "beside", "without", "unnamed")}
    print(f"learning {content.name} …", flush=True)
    with single_thread_pool(2) as pool:
        jobs = [pool.submit(learn_and_judge, sites, prompts, args.out, args.seed) for sites in (None, "denoiser")]
        (raw, arms, heats, unit), (other, *_, other_unit) = (job.result() for job in jobs)
    report = summarise(raw) | {"unit": unit, "denoiser": summarise(other) | {"unit": other_unit}}
    report["change_outside"] = {arm: float(np.mean(raw[f"{arm} outside"])) for arm in ARMS if arm != "base"}
    report |= {"seed": args.seed, **provenance(began=began)}
    _write(args.out, prompts, arms, heats, report)
    _print(report, args.out)


def _write(out: Path, prompts: dict[str, list[str]], arms: Any, heats: Any, report: dict[str, Any]) -> None:
    shutil.rmtree(out / "arms", ignore_errors=True)
    rows, captions, listed = [], [], []
    for part, texts in prompts.items():
        for i, text in enumerate(texts):
            pictures = [arms[arm][part][i] for arm in ARMS]
            for arm, picture in zip(ARMS, pictures, strict=True):
                folder = out / "arms" / arm
                folder.mkdir(parents=True, exist_ok=True)
                picture.save(folder / f"{len(listed):03d}.png")
            listed.append({"number": len(listed), "part": part, "prompt": text})
            if i < (2 if part == "unnamed" else 3):
                changed = strips.difference(pictures[0], pictures[-1])
                rows.append([*pictures, changed, strips.overlay(pictures[0], heats[part][i])])
                captions.append(text)
    strips.grid(rows, [*ARMS.values(), *OTHER_HEADINGS], captions).save(out / "comparison.png")
    (out / "prompts.json").write_text(json.dumps(listed, indent=2) + "\n")
    write_record(out / "report.json", report)


def _print(report: dict[str, Any], out: Path) -> None:
    lines = {
        "bananas blurred, of what words achieve": "effect",
        "other pictures left alone": "unchanged",
        "neighbours kept": "neighbour_kept",
    }
    print(f"\n{'':42}{'always on':>12}{'DSAS':>8}")
    for label, key in lines.items():
        print(f"{label:42}{report['vanilla'][key]:>12.2f}{report[key]:>8.2f}")
    outside = report["change_outside"]
    label = "change around the banana, of 255"
    print(f"{label:42}{outside['vanilla']:>12.2f}{outside['dsas']:>8.2f}   with the rest kept: {outside['kept']:.2f}")
    print(f"\n{report['seconds']:.0f} s. Look at {out / 'comparison.png'}")


if __name__ == "__main__":
    main()
