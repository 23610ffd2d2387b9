"""Strengths that move from step to step."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch

from dsas_core import DSASError
from dsas_diffusion import DSASCallback, steer
from tests.diffusion.pipelines.test_other_pipelines import other
from tests.diffusion.steering.test_identities_by_family import BANANA, ROLES, base_of, concept_of, pipe_of
from tests.fixtures.pipelines import FAMILIES, latents

HEARD = [family for family in FAMILIES if family != "pixart"]


def made(family: str, callback: Any, **options: Any) -> torch.Tensor:
    return latents(pipe_of(family), family, BANANA, callback_on_step_end=callback, **options)


@pytest.mark.parametrize("family", HEARD)
def test_a_change_acts_from_the_step_after_it(family: str) -> None:
    """What the denoiser does in a step is what it does with the strength that the step before left."""
    pipe, concept, steps = pipe_of(family), concept_of(family, "image" if "image" in ROLES[family] else "cross"), 3
    after: dict[str, list[torch.Tensor]] = {}

    def noted(name: str, callback: Any = None) -> Any:
        def note(pipeline: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            after.setdefault(name, []).append(kwargs["latents"].clone())
            return kwargs if callback is None else callback(pipeline, step, timestep, kwargs)

        return note

    name = concept.name
    with steer(pipe, {concept: 0.0}) as steering:
        made(family, noted("off"), num_inference_steps=steps)
        callback = DSASCallback(steering, {name: {0: 0.0, 2: 1.0}})
        made(family, noted("table", callback), num_inference_steps=steps)
        assert float(steering.strengths[name]) == 0.0, "the next generation begins as this one did"
        callback = DSASCallback(steering, {name: lambda progress: 1.0 if progress == 1 else 0.0})
        made(family, noted("function", callback), num_inference_steps=steps)
    off, table, function = (after[key] for key in ("off", "table", "function"))
    assert [torch.equal(a, b) for a, b in zip(off, table, strict=True)] == [True, True, False]
    assert all(torch.equal(a, b) for a, b in zip(table, function, strict=True))


def test_a_constant_table_is_a_constant_strength() -> None:
    pipe, concept = pipe_of("sd"), concept_of("sd", "cross")
    with steer(pipe, {concept: 1.0}) as steering:
        expected = latents(pipe, "sd", BANANA)
        steering.strengths[concept.name] = 0.0
        assert torch.equal(made("sd", DSASCallback(steering, {concept.name: {0: 1.0}})), expected)
    assert not torch.equal(expected, base_of("sd"))


@pytest.mark.parametrize("way", ["an error", "the pipeline's own way"])
def test_after_a_generation_that_broke_off_the_next_begins_with_the_first_step(way: str) -> None:
    pipe, concept = pipe_of("sd"), concept_of("sd", "cross")

    def breaking(pipeline: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        callback(pipeline, step, timestep, kwargs)
        if way == "an error":
            raise KeyboardInterrupt
        pipeline._interrupt = True
        return kwargs

    with steer(pipe, {concept: 1.0}) as steering:
        callback = DSASCallback(steering, {concept.name: {0: 0.0, 1: 1.0}})
        expected = made("sd", callback)
        with suppress(KeyboardInterrupt):
            made("sd", breaking)
        assert torch.equal(made("sd", callback), expected)
        steering.strengths[concept.name] = 0.5
        made("sd", None)
        assert float(steering.strengths[concept.name]) == 0.5, "it is done once"


def test_progress_is_told_after_every_step() -> None:
    pipe, concept = pipe_of("sd"), concept_of("sd", "cross")
    told: list[tuple[int, int]] = []
    with steer(pipe, {concept: 0.0}) as steering:
        made("sd", DSASCallback(steering, progress=lambda *done: told.append(done)), num_inference_steps=3)
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_what_cannot_be_is_said_at_once() -> None:
    concept = concept_of("pixart", "cross")
    with (
        steer(pipe_of("pixart"), {concept: 1.0}) as steering,
        pytest.raises(DSASError, match=r"PixArtSigmaPipeline calls nobody after its steps.*schedule="),
    ):
        DSASCallback(steering, {concept.name: {0: 1.0}})
    concept = concept_of("sd", "cross")
    with steer(pipe_of("sd"), {concept: 1.0}) as steering:
        with pytest.raises(DSASError, match="no concept 'cat' is attached; there is random"):
            DSASCallback(steering, {"cat": {0: 1.0}})
        with pytest.raises(DSASError, match=r"the table has no step 0, the first: it has \[2\]"):
            DSASCallback(steering, {concept.name: {2: 1.0}})
        callback = DSASCallback(steering, {concept.name: {0: 1.0}})
        with pytest.raises(DSASError, match="of a steering of another pipeline"):
            callback(other("StableDiffusionPAGPipeline", "sd"), 0, 999, {})
