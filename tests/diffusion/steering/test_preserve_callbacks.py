"""`generate(preserve=…)` and the user's own callback, which runs in both passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from diffusers.callbacks import PipelineCallback

from dsas_diffusion import DSASCallback, steer
from tests.diffusion.steering.conftest import Seeing
from tests.diffusion.steering.test_identities_by_family import pipe_of
from tests.diffusion.steering.test_preserve import (
    STEPS,
    asked,
    concept_in,
    equal,
)


class Halving(PipelineCallback):  # type: ignore[misc]
    """Halves the latents, and notes what it is given."""

    def __init__(self, inputs: list[str]) -> None:
        super().__init__()
        self.inputs, self.given = inputs, []

    @property
    def tensor_inputs(self) -> list[str]:
        return self.inputs

    def callback_fn(self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        self.given.append((step, sorted(tensors)))
        return {name: tensor / 2 for name, tensor in tensors.items() if name == "latents"}


@pytest.mark.parametrize("kind", ["function", "object"])
@pytest.mark.parametrize("inputs", [["latents"], ["prompt_embeds"], ["prompt_embeds", "latents"]])
def test_the_callback_of_the_user_runs_in_both_passes(kind: str, inputs: list[str]) -> None:
    pipe, concept, callback = pipe_of("sd"), concept_in("sd"), Halving(inputs)
    options = {"callback_on_step_end": callback}
    if kind == "function":
        options = {"callback_on_step_end": callback.callback_fn, "callback_on_step_end_tensor_inputs": inputs}
    with steer(pipe, {concept: 1.0}) as steering:
        plain = steering.generate(**asked("sd", **options)).images
        seen = list(callback.given)
        made = steering.generate(**asked("sd", **options), preserve=np.ones((1, 1)))
        unheard = steering.generate(**asked("sd")).images
    assert seen == [(step, sorted(inputs)) for step in range(STEPS)]
    assert callback.given == seen * 3
    assert equal(made.images, plain) == [True]
    assert equal(unheard, plain) == ["latents" not in inputs]


def test_strengths_that_the_callback_moves_count(seeing: type[Seeing]) -> None:
    """They are 0 when the call begins."""
    pipe, concept = pipe_of("sd"), concept_in("sd")
    with steer(pipe, {concept: 0.0}) as steering:
        callback = DSASCallback(steering, {concept.name: {0: 0.0, 1: 1.0}})
        made = steering.generate(**asked("sd", callback_on_step_end=callback), preserve=True)
        assert float(steering.strengths[concept.name]) == 0.0
    assert equal(made.unsteered, pipe(**asked("sd")).images) == [True]
    assert equal(made.images, made.unsteered) == [False]


def test_strengths_that_the_callback_moves_count_beside_an_earlier_pass(seeing: type[Seeing]) -> None:
    """They are 0 when the call begins that uses it again."""
    pipe, concept = pipe_of("sd"), concept_in("sd")
    with steer(pipe, {concept: 0.0}) as steering:
        callback = DSASCallback(steering, {concept.name: {0: 0.0, 1: 1.0}})
        expected = steering.generate(**asked("sd", callback_on_step_end=callback), preserve=True)
        base = steering.generate(**asked("sd"), preserve=True)
        made = steering.generate(**asked("sd", callback_on_step_end=callback), preserve=True, unsteered=base)
        seeing.localises = False
        with pytest.warns(UserWarning, match="no probes that see it at some place"):
            unplaced = steering.generate(**asked("sd", callback_on_step_end=callback), preserve=True, unsteered=base)
    assert equal(made.images, expected.images) == [True]
    assert equal(made.images, made.unsteered) == equal(unplaced.images, made.unsteered) == [False]
