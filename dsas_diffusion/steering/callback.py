"""`DSASCallback`: strengths that move from step to step, and progress, for a pipeline's `callback_on_step_end`.

diffusers calls it after each step, so what it sets counts from the step after. A strength that goes by the timestep is
better told by a `Schedule`, which needs no callback and works in every pipeline.

Example:
    >>> with dsas.steer(pipe, {"banana-blur": 0.0}) as steering:
    ...     callback = dsas.DSASCallback(steering, {"banana-blur": {0: 0.0, 10: 1.0}})
    ...     image = pipe("a banana and a dog", callback_on_step_end=callback).images[0]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from diffusers.callbacks import PipelineCallback

from dsas_core.errors import DSASError, UnsupportedError
from dsas_core.steering.strengths import Strength

from .steer import PipelineSteering

#: by step, as a table whose entries hold until the next one, or as a function of the progress, from 0 in the first step
#: to 1 in the last
Moves = Mapping[int, Strength] | Callable[[float], Strength]
#: told how many steps are done, and of how many
Progress = Callable[[int, int], object]


class DSASCallback(PipelineCallback):  # type: ignore[misc]
    """Moves the strengths of a steering between steps, and tells how far a generation is.

    Args:
        steering: what `steer` gave; its strengths are set to those of the first step, now and after each generation,
            or before the next where one breaks off.
        strengths: by concept name, a table {step: strength}, whose entries hold until the next one, or a function of
            the progress, 0 in the first step and 1 in the last. Concepts that are not named stay as they are.
        progress: told after each step how many are done, and of how many.

    Raises:
        DSASError: a pipeline that calls nobody after its steps; a concept that is not steered; a table without a first
            step.
    """

    def __init__(
        self,
        steering: PipelineSteering,
        strengths: Mapping[str, Moves] | None = None,
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
        for name, moves in self.strengths.items():
            steering.strengths[name]  # raises where it is not steered
            if not callable(moves) and 0 not in moves:
                raise DSASError(f"strengths of {name!r}: the table has no step 0, the first: it has {list(moves)}")
        self._rewind()

    @property
    def tensor_inputs(self) -> list[str]:
        """Nothing of the pipeline's own is looked at."""
        return []

    def callback_fn(
        self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """After a step: the strengths of the next, or, after the last, those of the first."""
        if pipeline is not self.steering.adapter.pipe:
            raise DSASError("this callback is of a steering of another pipeline: make one of each")
        done, count = step_index + 1, int(pipeline.num_timesteps)
        if done < count:
            self._move(done, count)
            self.steering.at_start.add(self._rewind)
        else:
            self._rewind()
            self.steering.at_start.discard(self._rewind)
        if self.progress is not None:
            self.progress(done, count)
        return callback_kwargs

    def _rewind(self) -> None:
        self._move(0, 1)

    def _move(self, step: int, count: int) -> None:
        for name, moves in self.strengths.items():
            if callable(moves):
                self.steering.strengths[name] = moves(step / max(1, count - 1))
            else:
                self.steering.strengths[name] = moves[max(start for start in moves if start <= step)]
