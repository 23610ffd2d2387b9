"""What demo.py and concept.py share: the arms of one concept drawn, judged, and summed up.

A trial gives raw lists, one entry per picture; trials of several seeds are joined before anything is divided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np
from PIL import Image

import dsas_diffusion as dsas
from benchmarks.common import builtin_metrics
from benchmarks.common.builtin_metrics import StyleEdit
from dsas_core.evaluation.fronts import at_equal_gain
from dsas_diffusion.builtin.judge import Judge
from dsas_diffusion.generation.compare import UNCHANGED, change
from dsas_diffusion.generation.pictures import pictures_of, seeds_for
from dsas_diffusion.generation.settings import Settings
from dsas_diffusion.pipelines.adapter import adapt
from dsas_diffusion.vision import similarity
from dsas_diffusion.vision.localisation import Localisation, average, localisation

#: strengths that DSAS and vanilla share for the change at equal effect; the report's own strength is 1
GRID = (0.5, 1.0, 1.5)
BATCH = 8
#: heat is compared with masks over the steps from this timestep on: before, there is no picture to see
BELOW = 500.0

Raw = dict[str, list[Any]]
Pictures = dict[str, dict[str, list[Image.Image]]]


def draw(
    pipe: Any,
    prompts: Sequence[str],
    seed: int,
    settings: Settings,
    concept: dsas.Concept | None = None,
    gate: str | None = None,
    strength: float = 1.0,
) -> list[Image.Image]:
    """Pictures of one arm; the same prompts and seed start from the same noise in every arm."""
    attached = nullcontext() if concept is None else dsas.steer(pipe, {concept: strength}, gate=gate)
    with attached:
        return pictures_of(adapt(pipe), prompts, seeds_for(prompts, seed), settings, BATCH)


def draw_traced(
    pipe: Any, prompts: Sequence[str], seed: int, settings: Settings, concept: dsas.Concept, strength: float = 1.0
) -> tuple[list[Image.Image], list[float], dict[str, list[np.ndarray]]]:
    """Pictures with the concept's own gate, the mean h of each batch, and heat by denoiser site and picture."""
    seeds = seeds_for(prompts, seed)
    pictures: list[Image.Image] = []
    h: list[float] = []
    heats: dict[str, list[np.ndarray]] = {str(s): [] for s in concept.sites if s.root != "text_encoder"}
    with dsas.steer(pipe, {concept: strength}, trace=True) as steering:
        for start in range(0, len(prompts), BATCH):
            batch = slice(start, start + BATCH)
            made = pictures_of(adapt(pipe), prompts[batch], seeds[batch], settings, BATCH)
            pictures += made
            h += [steering.trace.mean_h(concept.name)] * len(made)
            for site, found in heats.items():
                found += [
                    steering.trace.heat(concept.name, p.size, image=i, site=site, below=BELOW)
                    for i, p in enumerate(made)
                ]
    return pictures, h, heats


def best_mask_site(
    pipe: Any,
    judge: Judge,
    concept: dsas.Concept,
    wanted: StyleEdit,
    prompts: Sequence[str],
    seed: int,
    settings: Settings,
) -> str | None:
    """The denoiser site whose heat fits the thing's mask best on validation prompts; None without such sites."""
    pictures, _, heats = draw_traced(pipe, prompts, seed, settings, concept, strength=0.0)
    shapes = builtin_metrics.find_masks(judge, pictures, wanted.thing)
    scores = {site: _fit(found, shapes) for site, found in heats.items()}
    return max(scores, key=lambda site: scores[site]) if scores else None


def _located(heats: Sequence[np.ndarray], shapes: Sequence[np.ndarray | None]) -> list[Localisation]:
    """How well heat fits the masks of the pictures that have one."""
    pairs = zip(heats, shapes, strict=True)
    return [localisation(heat, mask) for heat, mask in pairs if mask is not None and not mask.all()]


def _fit(heats: Sequence[np.ndarray], shapes: Sequence[np.ndarray | None]) -> float:
    """Mean of AUROC and IoU; 0 without a mask."""
    found = _located(heats, shapes)
    return (average(found).auroc + average(found).iou) / 2 if found else 0.0


def trial(
    pipe: Any,
    judge: Judge,
    concept: dsas.Concept,
    wanted: StyleEdit,
    prompts: Mapping[str, Sequence[str]],
    seed: int,
    settings: Settings,
    base: Mapping[str, list[Image.Image]],
    mask_site: str | None,
    grid_prompts: int,
    strengths: Sequence[float] = GRID,
) -> tuple[Raw, Pictures, dict[str, list[np.ndarray]]]:
    """Draw vanilla and DSAS beside `base`, and judge.

    Args:
        prompts: parts "alone", "beside", "without" and "unnamed".
        base: pictures of the same parts without steering.
        mask_site: denoiser site whose heat is compared with the masks.
        grid_prompts: prompts of "alone" and of "without" that each of the `strengths` draws.
    """
    raw: Raw = {}
    arms: Pictures = {"base": dict(base), "vanilla": {}, "dsas": {}}
    heat: dict[str, list[np.ndarray]] = {}
    for i, (part, texts) in enumerate(prompts.items()):
        arms["vanilla"][part] = draw(pipe, texts, seed + i, settings, concept, "on")
        pictures, h, heats = draw_traced(pipe, texts, seed + i, settings, concept)
        arms["dsas"][part] = pictures
        if part == "without":
            raw["control_h"] = h
        heat[part] = heats[mask_site] if mask_site else []
    words = {
        part: draw(pipe, [wanted.in_words(prompt) for prompt in prompts[part]], seed + i, settings)
        for i, part in enumerate(("alone", "beside"))
    }
    raw["asked"] = builtin_metrics.detect_edit(judge, [*words["alone"], *words["beside"]], wanted).tolist()
    names = builtin_metrics.find_neighbours(prompts["beside"], wanted)
    raw["base_intact"] = builtin_metrics.detect_neighbours(judge, base["beside"], names).tolist()
    raw["asked_intact"] = builtin_metrics.detect_neighbours(judge, words["beside"], names).tolist()
    beside = builtin_metrics.find_masks(judge, base["beside"], wanted.thing)
    for arm, pictures in {"asked": words["beside"], "dsas": arms["dsas"]["beside"]}.items():
        raw[f"{arm}_change_beside"] = similarity.change_outside(base["beside"], pictures, beside)
    unnamed = [mask is not None for mask in builtin_metrics.find_masks(judge, base["unnamed"], wanted.thing)]
    for arm in ("vanilla", "dsas"):
        shown = arms[arm]
        raw[f"{arm}_shown"] = builtin_metrics.detect_edit(judge, [*shown["alone"], *shown["beside"]], wanted).tolist()
        raw[f"{arm}_change"] = change(base["without"], shown["without"]).tolist()
        raw[f"{arm}_intact"] = builtin_metrics.detect_neighbours(judge, shown["beside"], names).tolist()
        hits = builtin_metrics.detect_edit(judge, shown["unnamed"], wanted)
        raw[f"{arm}_unnamed"] = [bool(hit) for hit, there in zip(hits, unnamed, strict=True) if there]
    if mask_site:
        shapes = builtin_metrics.find_masks(judge, [*base["alone"], *base["beside"]], wanted.thing)
        for where in _located([*heat["alone"], *heat["beside"]], shapes):
            raw.setdefault("mask_auroc", []).append(where.auroc)
            raw.setdefault("mask_iou", []).append(where.iou)
    few, other = list(prompts["alone"][:grid_prompts]), list(prompts["without"][:grid_prompts])
    for strength in strengths:
        for arm, gate in (("vanilla", "on"), ("dsas", None)):
            hits = builtin_metrics.detect_edit(judge, draw(pipe, few, seed, settings, concept, gate, strength), wanted)
            moved = draw(pipe, other, seed + 2, settings, concept, gate, strength)
            raw[f"{arm}_shown@{strength}"] = hits.tolist()
            raw[f"{arm}_change@{strength}"] = change(base["without"][: len(other)], moved).tolist()
    return raw, arms, heat


def joined(raws: Sequence[Raw]) -> Raw:
    """Lists of several trials, end to end."""
    return {
        key: [value for raw in raws for value in raw.get(key, [])] for key in dict.fromkeys(k for r in raws for k in r)
    }


def summed_up(raw: Raw) -> dict[str, Any]:
    """The figures of the report, from raw lists."""
    mean = {key: float(np.mean(values)) if values else None for key, values in raw.items()}
    asked = max(mean["asked"] or 0.0, 1e-9)
    intact = np.array(raw["base_intact"])
    figures: dict[str, Any] = {"asked_in_words": mean["asked"], "control_h": mean["control_h"]}
    # rewriting the prompt is the rival of steering in the text encoder: what either does to the rest of the picture
    rewritten = np.array(raw["asked_intact"]) & intact
    figures["rewritten"] = {
        "neighbour_kept": float(rewritten.sum() / max(1, intact.sum())),
        "change_beside": mean["asked_change_beside"],
    }
    figures["change_beside"] = mean["dsas_change_beside"]
    for arm in ("dsas", "vanilla"):
        kept = np.array(raw[f"{arm}_intact"]) & intact
        values = {
            "effect": (mean[f"{arm}_shown"] or 0.0) / asked,
            "unchanged": float((np.array(raw[f"{arm}_change"]) <= UNCHANGED).mean()),
            "mean_change": mean[f"{arm}_change"],
            "neighbour_kept": float(kept.sum() / max(1, intact.sum())),
            "unnamed_shown": mean[f"{arm}_unnamed"],
        }
        if arm == "dsas":
            figures |= values
        else:
            figures["vanilla"] = values
    curves = {
        arm: [
            {
                "strength": strength,
                "effect": (mean[f"{arm}_shown@{strength}"] or 0.0) / asked,
                "change": mean[f"{arm}_change@{strength}"] or 0.0,
            }
            for strength in sorted(float(key.split("@")[1]) for key in raw if key.startswith(f"{arm}_shown@"))
        ]
        for arm in ("dsas", "vanilla")
    }
    at_one = next(point["effect"] for point in curves["dsas"] if point["strength"] == 1.0)
    lines = {arm: [(point["change"], point["effect"]) for point in points] for arm, points in curves.items()}
    equal = at_equal_gain(lines["dsas"], lines["vanilla"], at_one)
    figures |= {"change_ratio": equal.ratio, "change_ratio_how": asdict(equal), "curves": curves}
    for key in ("mask_auroc", "mask_iou"):
        if raw.get(key):
            figures[key] = mean[key]
    figures["pictures_an_arm"] = len(raw["dsas_shown"]) + len(raw["dsas_change"])
    return figures
