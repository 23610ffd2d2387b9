"""`calibrate(pipe, concept)`: what a strength of 1 is, and between which ends a slider is useful."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dsas_core.concept.concept import Concept
from dsas_core.learning.calibration.slider_range import prompts_of
from dsas_core.learning.prompts.held_out import split_held_out
from dsas_core.learning.prompts.kept import kept_prompts
from dsas_core.learning.prompts.prompt_file import load_prompts
from dsas_core.learning.prompts.prompt_set import PromptSet
from dsas_core.steering.handle import refuse_steered
from dsas_core.utils.numbers import number, optional
from dsas_core.utils.progress import progress_bar

from ..generation.pictures import latent_batches, seeds_for
from ..generation.settings import settings_of
from ..pipelines.adapter import adapt
from .trial.held_out_trial import PictureTrial


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
    drift: float = 0.1,
    batch: int = 8,
    show_progress: bool = False,
) -> Concept:
    """Measure a concept's unit of strength and the useful ends of its signed range anew.

    Both are chosen on the quarter of the prompts that nothing was fitted on, see `find_range` in
    dsas_core/learning/calibration/slider_range.py; `PictureTrial` measures what strengths do. The other source and
    target prompts are drawn again, to fit its classifier on.

    Args:
        pipe: the pipeline that the concept was learned on, or one like it.
        concept: the concept; it is not changed.
        prompts: a prompt file, or its content; None for the prompts that the concept was learned from.
        count: source and target prompts, where `prompts` are given; None for as many as learning took.
        steps: denoising steps of each picture; None for those of learning.
        guidance: classifier-free guidance scale; None for that of learning.
        size: side of a picture in pixels; None for that of learning.
        seed: of noise, and of the choice among `prompts`; None for that of learning.
        drift: share of pictures that may change where they must stay, of those without the concept and of those with
            something beside it.
        batch: prompts per generation.
        show_progress: whether to show progress bars.

    Returns:
        The concept with unit, range and evidence of all trials, without samples; not saved yet.

    Raises:
        DSASError: the concept was learned on another architecture, or records no prompts, or only hashes of them, and
            none are given.

    Example:
        >>> import dsas_diffusion as dsas
        >>> pipe, concept = dsas.load_pipeline("builtin:emoji"), dsas.Concept.from_pretrained("builtin:banana-blur")
        >>> calibrate(pipe, concept, "nowhere.yaml")  # without the file: a minute
        Traceback (most recent call last):
        dsas_core.errors.PromptError: no prompt file nowhere.yaml: write a prompt file (see prompts/)
    """
    batch, drift = number("batch", batch), number("drift", drift)
    adapter = adapt(pipe)
    adapter.check_loaded()
    refuse_steered(adapter.roots, "calibrating")
    drawn, seed = prompts_of(concept, prompts, count, seed)
    concept.check(adapter.roots)
    fitting, held_out = split_held_out(drawn)
    learned = concept.provenance.get("settings") or {}
    guidance = learned.get("guidance") if guidance is None else guidance
    settings = settings_of(
        adapter,
        learned.get("steps") if steps is None else steps,
        guidance,
        optional("size", size) or learned.get("size"),
    )
    settings = replace(settings, scheduler=learned.get("scheduler"))
    parts: dict[str, list[torch.Tensor]] = {"source": [], "target": []}
    with progress_bar(sum(len(fitting[side]) for side in parts), "drawing", show_progress) as bar:
        for side in parts:
            seeds = seeds_for(fitting[side], seed)
            for part in latent_batches(adapter, fitting[side], seeds, settings, batch):
                parts[side].append(part)
                bar.update(len(part))
    latents = {side: torch.cat(tensors) for side, tensors in parts.items()}
    kept = kept_prompts(concept)
    own = load_prompts(prompts) if prompts is not None else None if kept is None else kept.content
    trial = PictureTrial(adapter, latents, held_out, own, settings, seed, batch)
    ranged = trial.calibrate(concept, drift, show_progress)
    return replace(
        ranged, evidence={**ranged.evidence, "kept": trial.pictures.count_kept(ranged, ranged.unit).as_evidence()}
    )
