"""Steered pictures of many prompts, batch by batch, as commands, the evaluation and the demo draw them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from ..generation.pictures import decode, draw_batches
from ..generation.settings import Settings
from .preserve import Generation
from .steer import PipelineSteering


def generate_batches(
    steering: PipelineSteering,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: Settings,
    preserve: Any = False,
    batch: int = 8,
    unsteered: Sequence[Generation] = (),
    negative: str | None = None,
) -> Iterator[Generation]:
    """Draw a picture of each prompt, whatever the steering is set to.

    Args:
        steering: attached; its trace, where it has one, is of the batch that was yielded last.
        prompts: what to draw.
        seeds: of the noise, one per prompt.
        settings: how to draw.
        preserve: as for `PipelineSteering.generate`; without it, pictures are decoded from latents.
        batch: prompts per call of the pipeline.
        unsteered: what the same batches were before, at other strengths: their unsteered passes are used again.
        negative: a negative prompt for all, or None.

    Example:
        >>> import numpy as np
        >>> from dsas_diffusion import load_pipeline, steer
        >>> from dsas_diffusion.generation.settings import settings_of
        >>> pipe = load_pipeline("builtin:emoji", device="cpu")
        >>> with steer(pipe, {"builtin:banana-blur": 1.0}) as steering:
        ...     keep_all = np.zeros((64, 64), bool)
        ...     (made,) = generate_batches(steering, ["a dog"], [7], settings_of(pipe, steps=2), keep_all)
        >>> made.images == made.unsteered
        True
    """
    earlier = iter(unsteered)
    options: dict[str, Any] = {"output_type": "latent"} if preserve is False else {"output_type": "pil"}

    def call(**arguments: Any) -> Generation:
        return steering.generate(**arguments, preserve=preserve, unsteered=next(earlier, None))

    for made in draw_batches(call, steering.adapter, prompts, seeds, settings, batch, negative, **options):
        if preserve is not False:
            yield made
        else:
            yield replace(made, images=decode(steering.adapter, made.images, sides=settings.sides))
