"""`calibrate(pipe, concept)`: what a strength of 1 is, and between which ends a slider is of use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dsas_core.calibration import MOST_TRIALS, calibrated, prompts_of
from dsas_core.concept import Concept
from dsas_core.progress import progress_bar
from dsas_core.prompts import PromptSet
from dsas_core.unit import held_back

from .families import check_loaded, roots_of
from .generation import latent_batches, seeds_for, settings_of
from .held_out import HeldOut


def calibrate(
    pipe: Any,
    concept: Concept,
    prompts: str | Path | Mapping[str, Any] | PromptSet | None = None,
    *,
    count: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    size: int | None = None,
    seed: int | None = None,
    drift: float = 0.05,
    batch: int = 8,
    show_progress: bool = False,
) -> Concept:
    """Find a concept's unit of strength and the useful ends of its signed range anew; see `calibration.calibrated`.

    Both are found on the quarter of the prompts that nothing was fitted on; `held_out.HeldOut` tells how strengths do.
    The other source and target prompts are drawn again, for the model's eyes to learn the difference by.

    Args:
        pipe: the pipeline that the concept was learned on, or one that is like it.
        concept: the concept; it is not changed.
        prompts: a prompt file, or its content; None for the prompts that the concept was learned from.
        count: source and target prompts, where `prompts` are given; None for as many as learning took.
        steps, guidance, size: of the generations; None for those of learning.
        seed: of noise, and of the choice among `prompts`; None for that of learning.
        drift: share of control prompts whose picture may change.
        batch: prompts per generation.

    Returns:
        The concept with unit, range and evidence of all trials, without samples; not saved yet.

    Raises:
        DSASError: the concept was learned on another architecture, or tells no prompts and none are given.
    """
    check_loaded(pipe)
    drawn, seed = prompts_of(concept, prompts, count, seed)
    concept.check(roots_of(pipe))
    fitting, held_out = held_back(drawn)
    learned = concept.provenance.get("settings") or {}
    settings = settings_of(
        pipe, steps or learned.get("steps"), learned.get("guidance") if guidance is None else guidance
    )
    settings = replace(settings, scheduler=learned.get("scheduler"), size=size or learned.get("size"))
    latents = {}
    with progress_bar(sum(len(fitting[side]) for side in ("source", "target")), "drawing", show_progress) as bar:
        for side in ("source", "target"):
            made = []
            for some in latent_batches(pipe, fitting[side], seeds_for(fitting[side], seed), settings, batch):
                made.append(some)
                bar.update(len(some))
            latents[side] = torch.cat(made)
    trial = HeldOut(pipe, latents, held_out, settings, seed, batch)
    with progress_bar(MOST_TRIALS, "trying strengths", show_progress) as bar:
        found = calibrated(concept, lambda strength: trial(concept, strength), drift, bar.update)
    return replace(found, evidence={**found.evidence, "unit": trial.judged(found.evidence["unit"])})
