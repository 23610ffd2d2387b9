"""`DSASCallback`: strengths that move from step to step, and progress, for a pipeline's `callback_on_step_end`.

diffusers calls it after each step, so what it sets counts from the next step on. A strength that depends on the
timestep is better given as a `Schedule`, which needs no callback and works in every pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from diffusers.callbacks import PipelineCallback

from dsas_core.errors import DSASError, UnsupportedError
from dsas_core.steering.strengths import Strength

from .steer import PipelineSteering

#: strength by step, as a table whose entries hold until the next one, or as a function of the progress, from 0 in the
#: first step to 1 in the last
StrengthByStep = Mapping[int, Strength] | Callable[[float], Strength]
#: called with how many steps are done, and of how many
Progress = Callable[[int, int], object]


class DSASCallback(PipelineCallback):  # type: ignore[misc]
    """Moves the strengths of a steering between steps, and reports the progress of a generation.

    Args:
        steering: what `steer` returned; its strengths are set to those of the first step, now and after each
            generation, or before the next where one breaks off.
        strengths: by concept name, a table {step: strength}, whose entries hold until the next one, or a function of
            the progress, 0 in the first step and 1 in the last. Concepts that are not named stay as they are.
        progress: called after each step with how many are done, and of how many.

    Raises:
        UnsupportedError: a pipeline that has no callback after its steps.
        DSASError: a concept that is not steered; a table without a first step.

    Example:
        >>> from dsas_diffusion import load_pipeline, steer
        >>> pipe = load_pipeline("builtin:emoji", device="cpu")
        >>> with steer(pipe, {"builtin:banana-blur": 0.0}) as steering:
        ...     callback = DSASCallback(steering, {"banana-blur": {0: 0.0, 1: 1.0}}, progress=print)
        ...     image = pipe("a banana", num_inference_steps=2, callback_on_step_end=callback).images[0]
        1 2
        2 2
    """

    def __init__(
        self,
        steering: PipelineSteering,
        strengths: Mapping[str, StrengthByStep] | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__()
        if "callback_on_step_end" not in steering.adapter.call_parameters:
            raise UnsupportedError(
                f"{type(steering.adapter.pipe).__name__} calls nobody after its steps, so a callback would be ignored: "
                "let the strength go by the timestep, steer(…, schedule=Schedule(…))"
            )
        self.steering, self.progress = steering, progress
        self.strengths = dict(strengths or {})
        for name, by_step in self.strengths.items():
            steering.strengths[name]  # raises where it is not steered
            if not callable(by_step) and 0 not in by_step:
                raise DSASError(f"strengths of {name!r}: the table has no step 0, the first: it has {list(by_step)}")
        self._rewind()

    @property
    def tensor_inputs(self) -> list[str]:
        """None of the pipeline's tensors is needed."""
        return []

    def callback_fn(
        self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """After a step: set the strengths of the next, or, after the last, those of the first."""
        if pipeline is not self.steering.adapter.pipe:
            raise DSASError("this callback is of a steering of another pipeline: make one of each")
        done, count = step_index + 1, int(pipeline.num_timesteps)
        if done < count:
            self._set_strengths(done, count)
            self.steering.at_start.add(self._rewind)
        else:
            self._rewind()
            self.steering.at_start.discard(self._rewind)
        if self.progress is not None:
            self.progress(done, count)
        return callback_kwargs

    def _rewind(self) -> None:
        self._set_strengths(0, 1)

    def _set_strengths(self, step: int, count: int) -> None:
        for name, by_step in self.strengths.items():
            if callable(by_step):
                self.steering.strengths[name] = by_step(step / max(1, count - 1))
            else:
                self.steering.strengths[name] = by_step[max(start for start in by_step if start <= step)]
