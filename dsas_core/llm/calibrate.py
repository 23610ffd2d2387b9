"""`calibrate(model, tokenizer, concept)`: what a strength of 1 is, and between which ends a slider is of use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ..calibration import MOST_TRIALS, calibrated, prompts_of
from ..concept import Concept
from ..errors import DSASError
from ..progress import progress_bar
from ..prompts import PromptSet
from ..unit import held_back
from .layers import positions_of, roots_of
from .prompts import encode, pad_token
from .reader import HeldOut, Reader


def calibrate(
    model: nn.Module,
    tokenizer: Any,
    concept: Concept,
    prompts: str | Path | Mapping[str, Any] | PromptSet | None = None,
    *,
    count: int | None = None,
    seed: int | None = None,
    drift: float = 0.01,
    batch: int = 16,
    show_progress: bool = False,
) -> Concept:
    """Find a concept's unit of strength and the useful ends of its signed range anew; see `calibration.calibrated`.

    Both are found on the quarter of the prompts that nothing was fitted on; `reader.HeldOut` tells how strengths do.

    Args:
        model: the transformers language model that the concept was learned on, or one that is like it. tokenizer: its
            own.
        concept: the concept; it is not changed.
        prompts: a prompt file with conversations, or its content; None for the prompts that the concept was learned
            from.
        count, seed: source and target prompts, and their choice, where `prompts` are given; None for those of learning.
        drift: mean Kullback-Leibler divergence per control token, in nats, that a strength may cost.
        batch: prompts per forward pass.

    Returns:
        The concept with unit, range and evidence of all trials, without samples; not saved yet.

    Raises:
        DSASError: the concept was learned on another architecture, or tells no prompts and none are given; prompts
            without answers; a model that answers source prompts much as it answers control prompts.
    """
    drawn, _ = prompts_of(concept, prompts, count, seed)
    roots = roots_of(model)
    concept.check(roots)
    limit = positions_of(model)
    texts = {side: [encode(tokenizer, prompt, limit) for prompt in found] for side, found in drawn.items()}
    answered = all(text.answer < len(text.ids) for side in ("source", "target") for text in texts[side])
    if "encoder" in roots or not answered:
        raise DSASError(
            "calibration goes by what a model answers: it needs a decoder-only model, and an assistant's turn at the "
            "end of each source and target prompt"
        )
    fitting, held_out = held_back(texts)
    trial = HeldOut(Reader(model, pad_token(tokenizer), batch), fitting, held_out)
    if not trial.tells:
        raise DSASError(
            "the model answers source prompts much as it answers control prompts, so nothing tells what a strength does"
        )
    with progress_bar(MOST_TRIALS, "trying strengths", show_progress) as bar:
        found = calibrated(concept, lambda strength: trial(concept, strength), drift, bar.update)
    return replace(found, evidence={**found.evidence, "unit": trial.judged(found.evidence["unit"])})
