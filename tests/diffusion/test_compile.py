"""torch.compile after attaching: one graph, whatever moves. Before: refused, with the remedy."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from dsas_core import DSASError
from dsas_diffusion import Schedule, find_sites, steer
from tests.helpers import (
    BANANA,
    DOG,
    Bare,
    Counting,
    build_ddim_pipe,
    build_flow_pipe,
    differ,
    latents,
    random_concept,
    same,
    seen_at,
)

pytestmark = pytest.mark.usefixtures("fresh_graphs")


def compile_denoiser(pipe: Any, in_place: bool = False) -> Counting:
    counting = Counting()
    if in_place:
        pipe.unet.compile(backend=counting, fullgraph=True)
    else:
        pipe.unet = torch.compile(pipe.unet, backend=counting, fullgraph=True)
    return counting


@pytest.mark.parametrize(
    ("build", "edges", "in_place"),
    [(build_flow_pipe, (), False), (build_ddim_pipe, (300.0, 700.0), True)],
    ids=["wrapped", "in place with bins"],
)
def test_one_graph_serves_every_strength_timestep_and_bin(
    build: Any, edges: tuple[float, ...], in_place: bool, tmp_path: Path
) -> None:
    pipe = build(tmp_path, shallow=True)
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
        counting = compile_denoiser(pipe, in_place)
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


@pytest.mark.parametrize("in_place", [False, True], ids=["wrapped", "in place"])
def test_attaching_to_a_compiled_denoiser_is_refused_with_the_remedy(tmp_path: Path, in_place: bool) -> None:
    pipe = build_flow_pipe(tmp_path, shallow=True)
    concept = random_concept(seen_at(pipe, find_sites(pipe, "cross")))
    compile_denoiser(pipe, in_place)
    with pytest.raises(DSASError, match=r"unet is compiled, .*attach first .* and compile then"):
        steer(pipe, {concept: 1.0})
    assert Bare.of(pipe.unet).hooks == 0
    assert "encode_prompt" not in vars(pipe)
