"""How pictures are drawn: steps, guidance, scheduler and size, and which of these suit a pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dsas_core.errors import DSASError, UnsupportedError, quote
from dsas_core.utils.numbers import number, optional

from ..pipelines.adapter import PipelineAdapter, adapt

#: denoising steps, where a pipeline's default is larger
MAX_STEPS = 30
#: largest side of a picture, as a multiple of what the model draws by itself
MAX_ENLARGEMENT = 16
#: arguments that only pipelines take that draw from a picture, or follow one
_IMAGE_ARGUMENTS = ("strength", "mask_image", "control_image", "controlnet_conditioning_scale", "image_guidance_scale")
#: schedulers to try a concept with that was learned with another
_SCHEDULERS = ("UniPCMultistepScheduler", "EulerDiscreteScheduler", "DDIMScheduler", "DEISMultistepScheduler")


@dataclass(frozen=True)
class Settings:
    """How pictures are drawn.

    Args:
        steps: of denoising.
        guidance: scale of classifier-free guidance; pipelines call it `guidance_scale`, Qwen-Image's `true_cfg_scale`.
        scheduler: class name of a scheduler of diffusers; None is the pipeline's own.
        size: pixels of a side, or (width, height); None is the pipeline's default.

    Raises:
        DSASError: a number out of bounds (`dsas_core.utils.numbers`).

    Example:
        >>> Settings(12, 3.0, size=[96, 64]).sides
        (96, 64)
    """

    steps: int
    guidance: float
    scheduler: str | None = None
    size: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "guidance"):
            object.__setattr__(self, name, number(name, getattr(self, name)))
        object.__setattr__(self, "size", _read_size(self.size))

    @property
    def sides(self) -> tuple[int, int] | None:
        """(width, height) in pixels; None is the pipeline's default."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


def _read_size(size: Any) -> int | tuple[int, int] | None:
    """A size as users give it: two equal sides are one number."""
    if not isinstance(size, list | tuple):
        return optional("size", size)  # type: ignore[no-any-return]
    if len(size) != 2:
        raise DSASError(f"size: expected pixels of a side, or (width, height), found {quote(size)}")
    width, height = number("size", size[0], "width"), number("size", size[1], "height")
    return width if width == height else (width, height)


def settings_of(
    pipe: Any,
    steps: int | None = None,
    guidance: float | None = None,
    size: int | tuple[int, int] | None = None,
) -> Settings:
    """What the user asked for, else what suits the model.

    That is 12 steps at guidance 3 for the built-in model, and the pipeline's defaults for others, in 30 steps at most.

    Args:
        pipe: the pipeline, or its adapter.
        steps: of denoising; None for what suits the model.
        guidance: scale of guidance; None for what suits the model.
        size: pixels of a side, or (width, height); None for the pipeline's default.

    Raises:
        UnsupportedError: a pipeline that draws from more than a text.
        DSASError: a number out of bounds, or a size that the pipeline does not draw.

    Example:
        >>> from dsas_diffusion import load_pipeline
        >>> settings_of(load_pipeline("builtin:emoji", device="cpu"), steps=4)
        Settings(steps=4, guidance=3.0, scheduler=None, size=None)
    """
    adapter = adapt(pipe)
    parameters = adapter.call_parameters
    if taken := [name for name in _IMAGE_ARGUMENTS if name in parameters]:
        raise UnsupportedError(
            f"{type(adapter.pipe).__name__} draws from pictures, too (it takes {taken[0]}), and here are only "
            "texts: take diffusers' AutoPipelineForText2Image.from_pipe(pipe), which has the same parts"
        )
    usual_steps, usual_guidance = 12, 3.0
    if not adapter.is_builtin:
        usual_steps = min(MAX_STEPS, parameters["num_inference_steps"].default)
        usual_guidance = parameters[guidance_argument(adapter)].default
    settings = Settings(
        usual_steps if steps is None else steps, usual_guidance if guidance is None else guidance, size=size
    )
    for side in settings.sides or ():
        _check_size(adapter, side)
    return settings


def _check_size(adapter: PipelineAdapter, size: int) -> None:
    """Raise a DSASError where a pipeline cannot draw pictures of a size, or they would be beyond all memory."""
    multiple, usual = adapter.size_multiple, adapter.usual_size
    if size % multiple:
        below = max(multiple, size // multiple * multiple)
        raise DSASError(
            f"size {size}: {type(adapter.pipe).__name__} draws sides of a multiple of {multiple} pixels: try {below}"
        )
    if usual is not None and size > usual * MAX_ENLARGEMENT:
        raise DSASError(
            f"size {size}: this model draws {usual} pixels a side, and at most {MAX_ENLARGEMENT} times that is taken: "
            f"try {usual}"
        )


def guidance_argument(adapter: PipelineAdapter) -> str:
    """The argument for the scale of guidance: `true_cfg_scale` where the pipeline guides with it by default."""
    true = adapter.call_parameters.get("true_cfg_scale")
    return "guidance_scale" if true is None or true.default <= 1 else "true_cfg_scale"


def other_schedulers(adapter: PipelineAdapter) -> list[str]:
    """Class names of schedulers that a pipeline can take in place of its own, at most two of those that are common."""
    names = set(_fitting(adapter)) - {type(adapter.pipe.scheduler).__name__}
    return [name for name in _SCHEDULERS if name in names][:2]


def _fitting(adapter: PipelineAdapter) -> dict[str, Any]:
    """The schedulers that a pipeline can take, by class name: of models of flow matching, those that can do it."""
    own = adapter.pipe.scheduler
    flow_matching = bool(getattr(own.config, "use_flow_sigmas", False))
    return {
        kind.__name__: kind
        for kind in own.compatibles
        if not flow_matching or "use_flow_sigmas" in inspect.signature(kind.__init__).parameters
    }


@contextmanager
def use_scheduler(adapter: PipelineAdapter, name: str | None) -> Iterator[None]:
    """Give the pipeline another scheduler, configured as its own is, until the block ends; None for its own."""
    pipe, own = adapter.pipe, adapter.pipe.scheduler
    if name is not None:
        kinds = _fitting(adapter)
        if name not in kinds:
            raise DSASError(
                f"scheduler {quote(name)} does not go with this model's {type(own).__name__}: try "
                f"{', '.join(sorted(kinds))}"
            )
        pipe.scheduler = kinds[name].from_config(own.config)
    try:
        yield
    finally:
        pipe.scheduler = own
