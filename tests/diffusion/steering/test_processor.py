"""Steering by attention processors: the same pictures as by hooks, and what it cannot carry."""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings
from typing import Any

import pytest
import torch

from dsas_core import DSASError
from dsas_core.model.sites import modules
from dsas_diffusion import DSASAttnProcessor, steer
from dsas_diffusion.pipelines.adapter import adapt
from dsas_diffusion.steering.processor import attention_layers
from tests.diffusion.steering.test_identities_by_family import BANANA, ROLES, base_of, concept_of, pipe_of
from tests.fixtures.pipelines import FAMILIES, latents
from tests.fixtures.visitors import Bare

#: families whose denoiser takes no processors as a whole; Qwen's did not in diffusers 0.35
WITHOUT = ("zimage", "lumina")
BY_PROCESSOR = [
    (family, role)
    for family in FAMILIES
    for role in ROLES[family]
    if role in ("cross", "self", "image", "prompt") and family not in WITHOUT
]


def denoiser_of(family: str) -> Any:
    pipe = pipe_of(family)
    return getattr(pipe, adapt(pipe).family.denoiser)


@pytest.mark.parametrize(("family", "role"), BY_PROCESSOR)
def test_it_gives_the_same_picture_as_the_hook(family: str, role: str) -> None:
    pipe, concept, denoiser = pipe_of(family), concept_of(family, role), denoiser_of(family)
    if family == "qwen" and not hasattr(denoiser, "set_attn_processor"):
        pytest.skip("this diffusers has no set_attn_processor of Qwen-Image")
    before = denoiser.attn_processors
    bare = [Bare.of(root) for root in adapt(pipe).roots.values()]
    with steer(pipe, {concept: 1.0}):
        hooked = latents(pipe, family, BANANA)
    with steer(pipe, {concept: 1.0}, attach="processor") as steering, warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        paths = {site.path for site in steering.sites}
        kinds = {key: type(one).__name__ for key, one in denoiser.attn_processors.items()}
        assert sum(kind == "DSASAttnProcessor" for kind in kinds.values()) == len(paths)
        assert torch.equal(latents(pipe, family, BANANA), hooked)
        steering.strengths[concept.name] = 0.0
        assert torch.equal(latents(pipe, family, BANANA), base_of(family))
    assert not torch.equal(hooked, base_of(family))
    assert denoiser.attn_processors == before
    assert [Bare.of(root) for root in adapt(pipe).roots.values()] == bare


def test_a_denoiser_that_takes_no_processors_is_told() -> None:
    concept = concept_of("lumina", "image")
    with pytest.raises(DSASError, match=r'Lumina2Transformer2DModel has no set_attn_processor.*attach="hooks"'):
        steer(pipe_of("lumina"), {concept: 1.0}, attach="processor")


def test_sites_that_are_no_attention_layers_keep_their_hooks() -> None:
    pipe, concept = pipe_of("sd"), concept_of("sd", "block")
    with steer(pipe, {concept: 1.0}) as steering:
        hooked = latents(pipe, "sd", BANANA)
    with steer(pipe, {concept: 1.0}, attach="processor") as steering:
        assert torch.equal(latents(pipe, "sd", BANANA), hooked)
        with pytest.raises(DSASError, match="no attention layer of the denoiser is steered by a processor"):
            steering.attn_processors()


def test_it_goes_around_another_processor_too() -> None:
    from diffusers.models.attention_processor import AttnProcessor

    pipe, concept = pipe_of("sd"), concept_of("sd", "cross")
    own = pipe.unet.attn_processors
    pipe.unet.set_attn_processor(AttnProcessor())
    try:
        with steer(pipe, {concept: 1.0}):
            expected = latents(pipe, "sd", BANANA)
    finally:
        pipe.unet.set_attn_processor(dict(own))
    with steer(pipe, {concept: 1.0}, attach="processor") as steering:
        pipe.unet.set_attn_processor(steering.attn_processors(AttnProcessor()))
        assert sum(isinstance(one, DSASAttnProcessor) for one in pipe.unet.attn_processors.values()) == 7
        assert torch.allclose(latents(pipe, "sd", BANANA), expected, atol=1e-3)
    assert pipe.unet.attn_processors == own


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_it_passes_on_what_its_processor_takes(family: str) -> None:
    pipe, denoiser = pipe_of(family), denoiser_of(family)
    inner = denoiser.attn_processors
    with steer(pipe, {concept_of(family, "image" if family == "flux" else "cross"): 1.0}, attach="processor"):
        steered = denoiser.attn_processors
        assert any(isinstance(one, DSASAttnProcessor) for one in steered.values())
        for key, processor in steered.items():
            assert inspect.signature(processor.__call__) == inspect.signature(inner[key].__call__)
            assert hasattr(processor, "_attention_backend") == hasattr(inner[key], "_attention_backend")
        if family == "flux":
            denoiser.set_attention_backend("native")
            assert {one._attention_backend.value for one in inner.values()} == {"native"}
            denoiser.reset_attention_backend()


def test_a_copy_and_a_pickle_are_not_steered() -> None:
    pipe = pipe_of("sd")
    with steer(pipe, {concept_of("sd", "cross"): 1.0}, attach="processor"):
        for made in (copy.deepcopy(pipe.unet), pickle.loads(pickle.dumps(pipe.unet))):
            kinds = {type(one).__name__ for one in made.attn_processors.values()}
            assert kinds == {type(one).__name__ for one in pipe.unet.attn_processors.values()} - {"DSASAttnProcessor"}
            assert Bare.of(made).hooks == Bare.of(pipe.unet).hooks
            sample = torch.randn(1, 4, 8, 8)
            made(sample, torch.tensor(500), torch.randn(1, 24, 32))


class Weighted(torch.nn.Module):
    """A processor with weights, as an IP-Adapter's."""

    def __call__(self, attn: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden_states


def test_what_it_cannot_carry_is_refused() -> None:
    pipe, concept = pipe_of("sd"), concept_of("sd", "cross")
    own = pipe.unet.attn_processors
    key = next(key for key in own if key.endswith("attn2.processor"))
    layer = attention_layers(pipe.unet)[key]
    pipe.unet.set_attn_processor({**own, key: Weighted()})
    try:
        with pytest.raises(DSASError, match=r'Weighted has weights of its own.*attach="hooks"'):
            steer(pipe, {concept: 1.0}, attach="processor")
        assert "encode_prompt" not in vars(pipe)
    finally:
        layer.set_processor(own[key])
    with steer(pipe, {concept: 1.0}, attach="processor") as steering:
        one = pipe.unet.attn_processors[key]
        with pytest.raises(DSASError, match="an attention layer is steered already"):
            DSASAttnProcessor(one, layer, [], steering)
        pipe.unet.set_attn_processor(one)
        with pytest.raises(DSASError, match="one DSASAttnProcessor serves one attention layer"):
            latents(pipe, "sd", BANANA)
    pipe.unet.set_attn_processor(dict(own))
    with pytest.raises(DSASError, match="attach 'glue': expected hooks or processor"):
        steer(pipe, {concept: 1.0}, attach="glue")


def test_a_processor_that_was_replaced_is_told_in_the_same_call() -> None:
    pipe, concept = pipe_of("sd"), concept_of("sd", "cross")
    own = pipe.unet.attn_processors
    with steer(pipe, {concept: 1.0}, attach="processor"):
        pipe.enable_attention_slicing()
        with pytest.warns(UserWarning, match=r"not reached.*unet\.down_blocks\.0.*another attention processor") as told:
            made = latents(pipe, "sd", BANANA, num_inference_steps=1)
        assert len([one for one in told if "not reached" in str(one.message)]) == 1
    pipe.disable_attention_slicing()
    pipe.unet.set_attn_processor(dict(own))
    assert torch.allclose(made, latents(pipe, "sd", BANANA, num_inference_steps=1), atol=1e-3)


@pytest.mark.parametrize(("family", "role"), [("sd", "cross"), ("flux", "image"), ("sd", "text")])
def test_a_lost_hook_is_told_in_the_same_call_with_its_site(family: str, role: str) -> None:
    pipe, concept = pipe_of(family), concept_of(family, role)
    with steer(pipe, {concept: 1.0}) as steering:
        site = steering.sites[1]
        modules(adapt(pipe).roots)[site.path]._forward_hooks.clear()
        with pytest.warns(UserWarning, match="not reached") as told:
            latents(pipe, family, BANANA, num_inference_steps=1)
        (message,) = [str(one.message) for one in told if "not reached" in str(one.message)]
        assert f": {site} (its hook was removed" in message
