"""Caches that answer a step from an earlier one: what stays of steering, and who is told.

Strength 0 and letting go are the pipeline with the cache, bit for bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dsas_core import DSASError
from dsas_diffusion import steer
from tests.diffusion.steering.test_compatibility import close, concepts, denoiser_of, no_warnings, run, turn
from tests.diffusion.steering.test_identities_by_family import concept_of
from tests.fixtures.pipelines import build


def replaying_attention(pipe: Any) -> None:
    from diffusers import PyramidAttentionBroadcastConfig
    from diffusers.hooks import apply_pyramid_attention_broadcast

    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 1001),
        cross_attention_block_skip_range=2,
        cross_attention_timestep_skip_range=(-1, 1001),
        current_timestep_callback=lambda: 500,
    )
    apply_pyramid_attention_broadcast(denoiser_of(pipe), config)


def leaving_out_blocks(pipe: Any) -> None:
    from diffusers import FirstBlockCacheConfig

    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))


CACHED = {"num_inference_steps": 4}


@pytest.mark.parametrize("family", ["pixart", "sd3", "flux"])
def test_attention_that_is_replayed_is_steered_by_hooks(family: str, tmp_path: Path) -> None:
    """The cache holds what layers made before any hook, so strengths of now come on top."""
    pipe = build(family, tmp_path)
    exact = run(pipe, family, **CACHED)
    replaying_attention(pipe)
    bare = run(pipe, family, **CACHED)
    assert not torch.equal(bare, exact), "the cache is at work"
    moving = concepts(family)[0]
    with steer(pipe, {moving: 0.0}) as steering, no_warnings():
        assert torch.equal(run(pipe, family, **CACHED), bare)
        turn(steering, 1.0)
        made = run(pipe, family, **CACHED)
    assert not close(made, bare, 0.01)
    assert torch.equal(run(pipe, family, **CACHED), bare)


@pytest.mark.parametrize("family", ["flux", pytest.param("pixart", marks=pytest.mark.slow)])
def test_processors_that_are_not_asked_are_told(family: str, tmp_path: Path) -> None:
    pipe, concept = build(family, tmp_path), concepts(family)[0]
    replaying_attention(pipe)
    bare = run(pipe, family, **CACHED)
    with (
        steer(pipe, {concept: 0.0}, attach="processor") as steering,
        pytest.warns(UserWarning, match="pyramid_attention_broadcast answers from an earlier step") as told,
    ):
        assert torch.equal(run(pipe, family, **CACHED), bare)
    (message,) = [str(one.message) for one in told if "answers from" in str(one.message)]
    assert all(str(site) in message for site in steering.sites)
    assert torch.equal(run(pipe, family, **CACHED), bare)


def test_blocks_that_are_left_out_are_told_with_their_sites(tmp_path: Path) -> None:
    pipe = build("flux", tmp_path)
    exact = run(pipe, "flux", **CACHED)
    leaving_out_blocks(pipe)
    bare = run(pipe, "flux", **CACHED)
    assert not torch.equal(bare, exact), "the cache is at work"
    attention, block = concept_of("flux", "image"), concept_of("flux", "block")
    for strength in (0.0, 1.0):
        with (
            steer(pipe, {attention: strength}) as steering,
            pytest.warns(UserWarning, match="first_block_cache answers from an earlier step") as told,
        ):
            made = run(pipe, "flux", **CACHED)
        assert torch.equal(made, bare) if strength == 0 else not close(made, bare, 0.01)
        (message,) = [str(one.message) for one in told if "answers from" in str(one.message)]
        sites = ", ".join(str(site) for site in steering.sites[1:])
        assert f"for {sites}: disable it" in message, "all but the first block's"
    refused = r"first_block_cache leaves out blocks.*transformer_blocks\.1.*disable the cache"
    with steer(pipe, {block: 1.0}), pytest.raises(DSASError, match=refused):
        run(pipe, "flux", **CACHED)
    assert torch.equal(run(pipe, "flux", **CACHED), bare)


def test_a_cache_that_takes_rows_away_is_refused(tmp_path: Path) -> None:
    from diffusers import FasterCacheConfig
    from diffusers.hooks import apply_faster_cache

    pipe, concept = build("pixart", tmp_path), concepts("pixart")[0]
    config = FasterCacheConfig(
        unconditional_batch_skip_range=2,
        unconditional_batch_timestep_skip_range=(-1, 1001),
        tensor_format="BCHW",
        current_timestep_callback=lambda: 500,
    )
    apply_faster_cache(pipe.transformer, config)
    bare = run(pipe, "pixart", **CACHED)
    pipe.transformer._diffusers_hook.reset_stateful_hooks()
    with (
        steer(pipe, {concept: 1.0}),
        pytest.raises(DSASError, match=r"1 rows reach .* called with 2.*FasterCache"),
    ):
        run(pipe, "pixart", **CACHED)
    pipe.transformer._diffusers_hook.reset_stateful_hooks()  # else it goes on where the call broke off
    assert torch.equal(run(pipe, "pixart", **CACHED), bare)
