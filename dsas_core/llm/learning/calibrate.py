"""`calibrate(model, tokenizer, concept)`: what a strength of 1 is, and between which ends a slider is useful."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ...concept.concept import Concept
from ...errors import UnsupportedError
from ...learning.calibration.slider_range import prompts_of
from ...learning.prompts.held_out import split_held_out
from ...learning.prompts.prompt_set import PromptSet
from ...steering.handle import refuse_steered
from ...utils.numbers import number
from ..model.conversations import pad_token
from ..model.layers import roots_of
from .held_out_trial import TextTrial
from .reader import Reader, encode_all, have_answers


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
    """Measure a concept's unit of strength and the useful ends of its signed range anew.

    Both are chosen on the quarter of the prompts that nothing was fitted on, see `find_range` in
    dsas_core/learning/calibration/slider_range.py; `TextTrial` measures what strengths do.

    Args:
        model: the transformers language model that the concept was learned on, or one like it.
        tokenizer: its tokenizer.
        concept: the concept; it is not changed.
        prompts: a prompt file with conversations, or its content; None for the prompts that the concept was learned
            from.
        count: source and target prompts, where `prompts` are given; None for as many as learning took.
        seed: of the choice among `prompts`; None for that of learning.
        drift: mean Kullback-Leibler divergence per control token, in nats, that a strength may cost.
        batch: prompts per forward pass; three times as many are answered at once.
        show_progress: whether to show progress bars.

    Returns:
        The concept with unit, range and evidence of all trials, without samples; not saved yet.

    Raises:
        DSASError: the concept was learned on another architecture, or records no prompts, or only hashes of them, and
            none are given; prompts without answers; a model that answers source prompts much as it answers control
            prompts.

    Example:
        >>> from dsas_core import llm
        >>> plain = {"name": "plain", "source": [], "target": [], "control": []}
        >>> model, tokenizer = llm.load("builtin:chat")
        >>> calibrate(model, tokenizer, llm.Concept.from_pretrained("builtin:rudeness"), plain)  # else half a minute
        Traceback (most recent call last):
        dsas_core.errors.PromptError: prompts: lacks source, target, control; known are control, ...
    """
    batch, drift = number("batch", batch), number("drift", drift)
    drawn, _ = prompts_of(concept, prompts, count, seed)
    roots = roots_of(model)
    concept.check(roots)
    refuse_steered(roots, "calibrating")
    texts = {side: encode_all(model, tokenizer, drawn[side]) for side in drawn}
    if "encoder" in roots or not have_answers(texts):
        raise UnsupportedError(
            "calibration goes by what a model answers: it needs a decoder-only model, and an assistant's turn at the "
            "end of each source and target prompt"
        )
    trial = TextTrial(Reader(model, pad_token(tokenizer), batch, steered=concept.steered_sites), *split_held_out(texts))
    if not trial.answers_differ:
        raise UnsupportedError(
            "the model answers source prompts much as it answers control prompts, so nothing tells what a strength does"
        )
    return trial.calibrate(concept, drift, show_progress)
