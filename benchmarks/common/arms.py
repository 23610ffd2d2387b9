"""The arms of one concept (base, vanilla, DSAS): drawn, judged and summarised. Used by demo.py and concept.py.

A trial returns raw lists, one entry per picture; the lists of all seeds are joined before rates are computed.
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
from dsas_diffusion.pipelines.sites import has_patches
from dsas_diffusion.vision import similarity
from dsas_diffusion.vision.localisation import Localisation, average, localisation

#: strengths of DSAS and vanilla for the change at equal effect; all other figures are at strength 1
STRENGTHS = (0.5, 1.0, 1.5)
BATCH = 8
#: heat is averaged over the steps below this timestep: above it, the latents do not show the things yet
MAX_HEAT_TIMESTEP = 500.0

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
    steering = nullcontext() if concept is None else dsas.steer(pipe, {concept: strength}, gate=gate)
    with steering:
        return pictures_of(adapt(pipe), prompts, seeds_for(prompts, seed), settings, BATCH)


def draw_traced(
    pipe: Any, prompts: Sequence[str], seed: int, settings: Settings, concept: dsas.Concept, strength: float = 1.0
) -> tuple[list[Image.Image], list[float], dict[str, list[np.ndarray]]]:
    """Pictures with the concept's own gate, mean h of each picture's batch, and heatmaps by denoiser site."""
    seeds = seeds_for(prompts, seed)
    pictures: list[Image.Image] = []
    h: list[float] = []
    heats: dict[str, list[np.ndarray]] = {str(site): [] for site in concept.sites if has_patches(site, "unet")}
    with dsas.steer(pipe, {concept: strength}, trace=True) as steering:
        for start in range(0, len(prompts), BATCH):
            batch = slice(start, start + BATCH)
            drawn = pictures_of(adapt(pipe), prompts[batch], seeds[batch], settings, BATCH)
            pictures += drawn
            h += [steering.trace.mean_h(concept.name)] * len(drawn)
            for site, site_heats in heats.items():
                site_heats += [
                    steering.trace.heat(concept.name, p.size, image=i, site=site, below=MAX_HEAT_TIMESTEP)
                    for i, p in enumerate(drawn)
                ]
    return pictures, h, heats


def best_mask_site(
    pipe: Any,
    judge: Judge,
    concept: dsas.Concept,
    edit: StyleEdit,
    prompts: Sequence[str],
    seed: int,
    settings: Settings,
) -> str | None:
    """The denoiser site whose heat fits the mask of the thing best on validation prompts; None without such sites."""
    pictures, _, heats = draw_traced(pipe, prompts, seed, settings, concept, strength=0.0)
    masks = builtin_metrics.find_masks(judge, pictures, edit.thing)
    scores = {site: _mask_fit(site_heats, masks) for site, site_heats in heats.items()}
    return max(scores, key=lambda site: scores[site]) if scores else None


def _localise_all(heats: Sequence[np.ndarray], masks: Sequence[np.ndarray | None]) -> list[Localisation]:
    """Localisation scores of the heatmaps, for the pictures that have a mask."""
    pairs = zip(heats, masks, strict=True)
    return [localisation(heat, mask) for heat, mask in pairs if mask is not None and not mask.all()]


def _mask_fit(heats: Sequence[np.ndarray], masks: Sequence[np.ndarray | None]) -> float:
    """Mean of AUROC and IoU; 0 without any mask."""
    scores = _localise_all(heats, masks)
    return (average(scores).auroc + average(scores).iou) / 2 if scores else 0.0


def run_trial(
    pipe: Any,
    judge: Judge,
    concept: dsas.Concept,
    edit: StyleEdit,
    prompts: Mapping[str, Sequence[str]],
    seed: int,
    settings: Settings,
    base: Mapping[str, list[Image.Image]],
    mask_site: str | None,
    grid_prompts: int,
    strengths: Sequence[float] = STRENGTHS,
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
    rewritten = {
        part: draw(pipe, [edit.in_words(prompt) for prompt in prompts[part]], seed + i, settings)
        for i, part in enumerate(("alone", "beside"))
    }
    raw["rewritten"] = builtin_metrics.detect_edit(judge, [*rewritten["alone"], *rewritten["beside"]], edit).tolist()
    names = builtin_metrics.find_neighbours(prompts["beside"], edit)
    raw["base_intact"] = builtin_metrics.detect_neighbours(judge, base["beside"], names).tolist()
    raw["rewritten_intact"] = builtin_metrics.detect_neighbours(judge, rewritten["beside"], names).tolist()
    masks = builtin_metrics.find_masks(judge, base["beside"], edit.thing)
    for arm, pictures in {"rewritten": rewritten["beside"], "dsas": arms["dsas"]["beside"]}.items():
        raw[f"{arm}_change_beside"] = similarity.change_outside(base["beside"], pictures, masks)
    has_thing = [mask is not None for mask in builtin_metrics.find_masks(judge, base["unnamed"], edit.thing)]
    for arm in ("vanilla", "dsas"):
        steered = arms[arm]
        hits = builtin_metrics.detect_edit(judge, [*steered["alone"], *steered["beside"]], edit)
        raw[f"{arm}_hits"] = hits.tolist()
        raw[f"{arm}_change"] = change(base["without"], steered["without"]).tolist()
        raw[f"{arm}_intact"] = builtin_metrics.detect_neighbours(judge, steered["beside"], names).tolist()
        hits = builtin_metrics.detect_edit(judge, steered["unnamed"], edit)
        raw[f"{arm}_unnamed"] = [bool(hit) for hit, present in zip(hits, has_thing, strict=True) if present]
    if mask_site:
        masks = builtin_metrics.find_masks(judge, [*base["alone"], *base["beside"]], edit.thing)
        for scores in _localise_all([*heat["alone"], *heat["beside"]], masks):
            raw.setdefault("mask_auroc", []).append(scores.auroc)
            raw.setdefault("mask_iou", []).append(scores.iou)
    sources, controls = list(prompts["alone"][:grid_prompts]), list(prompts["without"][:grid_prompts])
    for strength in strengths:
        for arm, gate in (("vanilla", "on"), ("dsas", None)):
            pictures = draw(pipe, sources, seed, settings, concept, gate, strength)
            raw[f"{arm}_hits@{strength}"] = builtin_metrics.detect_edit(judge, pictures, edit).tolist()
            pictures = draw(pipe, controls, seed + 2, settings, concept, gate, strength)
            raw[f"{arm}_change@{strength}"] = change(base["without"][: len(controls)], pictures).tolist()
    return raw, arms, heat


def join_rows(raws: Sequence[Raw]) -> Raw:
    """Concatenate the raw lists of several trials."""
    return {
        key: [value for raw in raws for value in raw.get(key, [])] for key in dict.fromkeys(k for r in raws for k in r)
    }


def summarise(raw: Raw) -> dict[str, Any]:
    """The figures of the report, from raw lists."""
    mean = {key: float(np.mean(values)) if values else None for key, values in raw.items()}
    rewritten_rate = max(mean["rewritten"] or 0.0, 1e-9)
    intact = np.array(raw["base_intact"])
    figures: dict[str, Any] = {"asked_in_words": mean["rewritten"], "control_h": mean["control_h"]}
    # rewriting the prompt is the alternative to steering the text encoder: compare how much each changes the rest
    rewritten_kept = np.array(raw["rewritten_intact"]) & intact
    figures["rewritten"] = {
        "neighbour_kept": float(rewritten_kept.sum() / max(1, intact.sum())),
        "change_beside": mean["rewritten_change_beside"],
    }
    figures["change_beside"] = mean["dsas_change_beside"]
    for arm in ("dsas", "vanilla"):
        neighbours_kept = np.array(raw[f"{arm}_intact"]) & intact
        values = {
            "effect": (mean[f"{arm}_hits"] or 0.0) / rewritten_rate,
            "unchanged": float((np.array(raw[f"{arm}_change"]) <= UNCHANGED).mean()),
            "mean_change": mean[f"{arm}_change"],
            "neighbour_kept": float(neighbours_kept.sum() / max(1, intact.sum())),
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
                "effect": (mean[f"{arm}_hits@{strength}"] or 0.0) / rewritten_rate,
                "change": mean[f"{arm}_change@{strength}"] or 0.0,
            }
            for strength in sorted(float(key.split("@")[1]) for key in raw if key.startswith(f"{arm}_hits@"))
        ]
        for arm in ("dsas", "vanilla")
    }
    effect_at_one = next(point["effect"] for point in curves["dsas"] if point["strength"] == 1.0)
    fronts = {arm: [(point["change"], point["effect"]) for point in points] for arm, points in curves.items()}
    equal = at_equal_gain(fronts["dsas"], fronts["vanilla"], effect_at_one)
    figures |= {"change_ratio": equal.ratio, "change_ratio_how": asdict(equal), "curves": curves}
    for key in ("mask_auroc", "mask_iou"):
        if raw.get(key):
            figures[key] = mean[key]
    figures["pictures_an_arm"] = len(raw["dsas_hits"]) + len(raw["dsas_change"])
    return figures
