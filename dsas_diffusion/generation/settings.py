"""How pictures are made: steps, guidance, scheduler and size, and what of these suits a pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dsas_core.errors import DSASError, UnsupportedError

from ..pipelines.adapter import PipelineAdapter, adapt

#: of denoising, where a model's own number is larger
MAX_STEPS = 30
#: what only those pipelines are told that draw from a picture, or follow one
_PICTURED = ("strength", "mask_image", "control_image", "controlnet_conditioning_scale", "image_guidance_scale")
#: schedulers to try a concept under that was learned under another
_SCHEDULERS = ("UniPCMultistepScheduler", "EulerDiscreteScheduler", "DDIMScheduler", "DEISMultistepScheduler")


@dataclass(frozen=True)
class Settings:
    """How pictures are made.

    Args:
        steps: of denoising. guidance: its scale, which pipelines call `guidance_scale`, Qwen-Image's
            `true_cfg_scale`.
        scheduler: of diffusers, by class name; None is the pipeline's own.
        size: pixels of a side; None is the pipeline's own.
    """

    steps: int
    guidance: float
    scheduler: str | None = None
    size: int | None = None


def settings_of(
    pipe: Any, steps: int | None = None, guidance: float | None = None, size: int | None = None
) -> Settings:
    """What the user asked for, else what suits the model: 12 steps at guidance 3 for the built-in one.

    Of others it is what the pipeline does when nobody says otherwise, though in 30 steps at most.

    Args:
        pipe: the pipeline, or its adapter.

    Raises:
        UnsupportedError: a pipeline that draws from more than a text.
    """
    adapter = adapt(pipe)
    if pictured := [name for name in _PICTURED if name in adapter.call_parameters]:
        raise UnsupportedError(
            f"{type(adapter.pipe).__name__} draws from pictures, too (it takes {pictured[0]}), and here are only "
            "texts: take diffusers' AutoPipelineForText2Image.from_pipe(pipe), which has the same parts"
        )
    if adapter.is_builtin:
        usual = Settings(12, 3.0)
    else:
        own = adapter.call_parameters
        usual = Settings(min(MAX_STEPS, own["num_inference_steps"].default), own[guidance_argument(adapter)].default)
    return Settings(steps or usual.steps, usual.guidance if guidance is None else guidance, size=size)


def guidance_argument(adapter: PipelineAdapter) -> str:
    """The argument that says how much guidance there is: the true one, where the pipeline's own number asks for it."""
    true = adapter.call_parameters.get("true_cfg_scale")
    return "guidance_scale" if true is None or true.default <= 1 else "true_cfg_scale"


def other_schedulers(adapter: PipelineAdapter) -> list[str]:
    """Schedulers that a pipeline can take in place of its own, of those in use; at most two."""
    own = adapter.pipe.scheduler
    flows = bool(getattr(own.config, "use_flow_sigmas", False))
    found = [
        kind.__name__
        for kind in own.compatibles
        if type(own) is not kind
        and kind.__name__ in _SCHEDULERS
        and (not flows or "use_flow_sigmas" in inspect.signature(kind.__init__).parameters)
    ]
    return sorted(found, key=_SCHEDULERS.index)[:2]


@contextmanager
def use_scheduler(adapter: PipelineAdapter, name: str | None) -> Iterator[None]:
    """Another scheduler in the pipeline until the block ends, set up as its own is; None for its own."""
    pipe, own = adapter.pipe, adapter.pipe.scheduler
    if name is not None:
        kinds = {kind.__name__: kind for kind in own.compatibles}
        if name not in kinds:
            raise DSASError(f"scheduler {name!r} does not go with {type(own).__name__}: try {', '.join(sorted(kinds))}")
        pipe.scheduler = kinds[name].from_config(own.config)
    try:
        yield
    finally:
        pipe.scheduler = own
