"""torch.compile after attaching: one graph, whatever moves. Before: refused, with the remedy."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dsas_core import DSASError
from dsas_core.model.sites import modules
from dsas_diffusion import DSASAttnProcessor, Schedule, find_sites, steer
from dsas_diffusion.pipelines.adapter import adapt
from tests.diffusion.steering.test_identities_by_family import concept_of, pipe_of
from tests.fixtures import pipelines as models
from tests.fixtures.checks import differ, same
from tests.fixtures.concepts import random_concept
from tests.fixtures.models import BANANA, DOG, Counting, build_ddim_pipe, build_flow_pipe, latents
from tests.fixtures.visitors import Bare, seen_at

pytestmark = pytest.mark.usefixtures("fresh_graphs")


@contextmanager
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def compile_denoiser(pipe: Any, way: str = "wrapped", counting: Counting | None = None) -> Counting:
    counting, name = counting or Counting(), adapt(pipe).family.denoiser
    denoiser = getattr(pipe, name)
    if way == "wrapped":
        setattr(pipe, name, torch.compile(denoiser, backend=counting, fullgraph=True))
    elif way == "in place":
        denoiser.compile(backend=counting, fullgraph=True)
    else:
        denoiser.compile_repeated_blocks(backend=counting, fullgraph=True)
    return counting


@pytest.mark.parametrize(
    ("build_pipe", "edges", "way"),
    [(build_flow_pipe, (), "wrapped"), (build_ddim_pipe, (300.0, 700.0), "in place")],
    ids=["wrapped", "in place with bins"],
)
def test_one_graph_serves_every_strength_timestep_and_bin(
    build_pipe: Any, edges: tuple[float, ...], way: str, tmp_path: Path
) -> None:
    pipe = build_pipe(tmp_path, shallow=True)
    sites = find_sites(pipe, ["cross", "self"])
    concept = random_concept(seen_at(pipe, sites), form="product", edges=edges, unit=0.5)
    other = random_concept(seen_at(pipe, find_sites(pipe, ["cross", "block"])), name="other", seed=1, unit=0.5)
    schedule = {"other": Schedule([(1000, 0.0), (0, 1.0)])}
    strengths = [(0.0, 0.0), (1.0, 0.0), (-0.5, 2.0), ([0.3, 1.2], 0.0)]
    prompts, seeds = [BANANA, DOG], (1, 2)

    def run(steering: Any, strength: Any) -> torch.Tensor:
        steering.strengths.update(random=strength[0], other=strength[1])
        return latents(pipe, prompts, seeds, num_inference_steps=5)

    base = latents(pipe, prompts, seeds, num_inference_steps=5)
    with steer(pipe, {concept: 0.0, other: 0.0}, schedule=schedule) as steering:
        eager = [run(steering, strength) for strength in strengths]
    with (
        steer(pipe, {concept: 0.0, other: 0.0}, schedule=schedule) as steering,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error", UserWarning)
        counting = compile_denoiser(pipe, way)
        compiled = [run(steering, strength) for strength in strengths]
        assert counting.graphs == 1
    assert all(same(a, b) for a, b in zip(compiled, eager, strict=True))
    assert torch.equal(eager[0], base)
    assert all(differ(made, base) for made in eager[1:])


def test_letting_go_of_a_compiled_denoiser_takes_effect(tmp_path: Path) -> None:
    pipe = build_flow_pipe(tmp_path, shallow=True)
    concept, base = random_concept(seen_at(pipe, find_sites(pipe, "cross"))), latents(pipe, BANANA)
    with steer(pipe, {concept: 1.0}):
        compile_denoiser(pipe)
        assert differ(latents(pipe, BANANA), base)
    assert Bare.of(pipe.unet).hooks == 0
    assert same(latents(pipe, BANANA), base)


def test_what_was_compiled_without_steering_does_not_serve_another_pipeline_unnoticed(tmp_path: Path) -> None:
    """torch keeps graphs by class, and does not look for hooks: not before anybody has steered."""
    bare, pipe = (build_flow_pipe(tmp_path / name, shallow=True) for name in ("bare", "steered"))
    site = find_sites(pipe, "cross")[0]
    concept, base = random_concept(seen_at(pipe, [site]), unit=0.5), latents(pipe, BANANA)
    counting = compile_denoiser(bare)
    assert same(latents(bare, BANANA), base)
    both = [BANANA, DOG], (0, 1)
    with steer(pipe, {concept: 1.0}):
        eager, eager_both = latents(pipe, BANANA), latents(pipe, *both)
        compile_denoiser(pipe, counting=counting)  # graphs are of one compiler
        with no_warning():
            assert same(latents(pipe, *both), eager_both)  # of this shape there was none
        with pytest.warns(UserWarning, match=rf"not reached.*{site.path}.*call torch.compiler.reset\(\)"):
            assert same(latents(pipe, BANANA), base)
        torch.compiler.reset()
        with no_warning():
            for _ in range(2):  # whoever comes first
                assert same(latents(pipe, BANANA), eager)
                assert same(latents(bare, BANANA), base)
    assert differ(eager, base)


@pytest.mark.slow
def test_a_lost_hook_is_told_of_compiled_denoisers_too(tmp_path: Path) -> None:
    pipe = build_flow_pipe(tmp_path, shallow=True)
    site = find_sites(pipe, "cross")[0]
    concept, base = random_concept(seen_at(pipe, [site]), unit=0.5), latents(pipe, BANANA)
    hooks = modules(adapt(pipe).roots)[site.path]._forward_hooks
    with steer(pipe, {concept: 1.0}) as steering:
        compile_denoiser(pipe)
        with no_warning():
            assert differ(latents(pipe, BANANA), base)
        assert steering.fired == [str(site)]
        hooks.clear()
        with pytest.warns(UserWarning, match=rf"not reached.*{site.path}"):
            assert same(latents(pipe, BANANA), base)
        assert steering.fired == []


@pytest.mark.slow
def test_steering_comes_and_goes_where_torch_heeds_hooks(tmp_path: Path) -> None:
    """A second pipeline with the same concept, and the same one again: each graph is of those who are there."""
    pipes = [build_flow_pipe(tmp_path / name, shallow=True) for name in ("one", "other")]
    concept = random_concept(seen_at(pipes[0], find_sites(pipes[0], "cross")[:1]), unit=0.5)
    base = latents(pipes[0], BANANA)
    with steer(pipes[0], {concept: 1.0}):
        eager = latents(pipes[0], BANANA)
    counting = Counting()
    with no_warning():
        with steer(pipes[0], {concept: 1.0}), steer(pipes[1], {concept: 1.0}):
            for pipe in pipes:
                compile_denoiser(pipe, counting=counting)
                assert same(latents(pipe, BANANA), eager)
        for pipe in pipes:
            assert same(latents(pipe, BANANA), base)
            with steer(pipe, {concept: 1.0}):
                assert same(latents(pipe, BANANA), eager)


def test_a_block_that_is_not_steered_does_not_serve_one_that_is(tmp_path: Path) -> None:
    """Compiled block by block, they share their code."""
    pipe, base = models.build("flux", tmp_path), models.latents(pipe_of("flux"), "flux", BANANA)
    last = concept_of("flux", "image")
    last = replace(last, interventions=last.interventions[1:2])  # of the second of two double blocks
    with steer(pipe, {last: 1.0}), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        eager = models.latents(pipe, "flux", BANANA)
        compile_denoiser(pipe, "blocks")
        compiled = models.latents(pipe, "flux", BANANA)
    scale = float(base.std())
    assert same(compiled / scale, eager / scale)
    assert not same(eager / scale, base / scale)


#: family, its role, how it is compiled, how it is steered, and how many graphs that makes
TOGETHER = [
    pytest.param("sd", "cross", "wrapped", "processor", 1, marks=pytest.mark.slow),
    ("flux", "image", "wrapped", "hooks", 1),
    pytest.param("flux", "image", "in place", "processor", 1, marks=pytest.mark.slow),
    pytest.param("flux", "prompt", "blocks", "hooks", 4, marks=pytest.mark.slow),  # each has its own site
    pytest.param("flux", "image", "blocks", "processor", 4, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("family", "role", "way", "attach", "graphs"), TOGETHER)
def test_what_is_compiled_steers_as_what_is_not(
    family: str, role: str, way: str, attach: str, graphs: int, tmp_path: Path
) -> None:
    """Where picture and prompt are attended to in one sequence, by a processor, block by block: no graph more."""
    pipe, concept = models.build(family, tmp_path), concept_of(family, role)
    schedule = Schedule([(1000, 0.5), (0, 1.0)])
    base = models.latents(pipe, family, BANANA, num_inference_steps=3)

    def run(steering: Any) -> list[torch.Tensor]:
        made = []
        for strength in (0.0, 1.0, -0.5, 0.3):
            steering.strengths[concept.name] = strength
            made.append(models.latents(pipe, family, BANANA, num_inference_steps=3))
        return made

    with steer(pipe, {concept: 0.0}, schedule=schedule, attach=attach) as steering:
        eager = run(steering)
    with steer(pipe, {concept: 0.0}, schedule=schedule, attach=attach) as steering, warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        counting = compile_denoiser(pipe, way)
        compiled = run(steering)
        assert counting.graphs == graphs
    assert torch.equal(eager[0], base)
    scale = float(base.std())
    assert all(same(a / scale, b / scale) for a, b in zip(compiled, eager, strict=True))
    assert not any(same(made / scale, base / scale) for made in compiled[1:])


@pytest.mark.parametrize("attach", ["hooks", "processor"])
@pytest.mark.parametrize(
    ("family", "way"), [("sd", "wrapped"), ("sd", "in place"), ("flux", "wrapped"), ("flux", "blocks")]
)
def test_attaching_to_a_compiled_denoiser_is_refused_with_the_remedy(
    family: str, way: str, attach: str, tmp_path: Path
) -> None:
    pipe, concept = models.build(family, tmp_path), concept_of(family, "cross" if family == "sd" else "image")
    compile_denoiser(pipe, way)
    name = adapt(pipe).family.denoiser
    torch._dynamo.config.skip_nnmodule_hook_guards = True  # as it is before anybody has steered
    with pytest.raises(DSASError, match=rf"{name} is compiled, .*attach first .* and compile then"):
        steer(pipe, {concept: 1.0}, attach=attach)
    assert Bare.of(getattr(pipe, name)).hooks == 0
    assert not any(isinstance(one, DSASAttnProcessor) for one in getattr(pipe, name).attn_processors.values())
    assert "encode_prompt" not in vars(pipe)
