"""`calibrate(pipe, concept)`: what a strength of 1 is, and between which ends a slider is of use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dsas_core.concept.concept import Concept
from dsas_core.learning.calibration.slider_range import prompts_of
from dsas_core.learning.prompts.prompt_set import PromptSet, split_held_out
from dsas_core.utils.progress import progress_bar

from ..generation.pictures import latent_batches, seeds_for
from ..generation.settings import settings_of
from ..pipelines.adapter import adapt
from .held_out_trial import PictureTrial


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

    Both are found on the quarter of the prompts that nothing was fitted on; `PictureTrial` tells how strengths do. The
    other source and target prompts are drawn again, for its classifier to be fitted on.

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
    adapter = adapt(pipe)
    adapter.check_loaded()
    drawn, seed = prompts_of(concept, prompts, count, seed)
    concept.check(adapter.roots)
    fitting, held_out = split_held_out(drawn)
    learned = concept.provenance.get("settings") or {}
    guidance = learned.get("guidance") if guidance is None else guidance
    settings = settings_of(adapter, steps or learned.get("steps"), guidance, size or learned.get("size"))
    settings = replace(settings, scheduler=learned.get("scheduler"))
    latents = {}
    with progress_bar(sum(len(fitting[side]) for side in ("source", "target")), "drawing", show_progress) as bar:
        for side in ("source", "target"):
            parts = []
            for part in latent_batches(adapter, fitting[side], seeds_for(fitting[side], seed), settings, batch):
                parts.append(part)
                bar.update(len(part))
            latents[side] = torch.cat(parts)
    return PictureTrial(adapter, latents, held_out, settings, seed, batch).calibrate(concept, drift, show_progress)
