"""Which rows are the prompt's where a callback hands back embeddings, ends guidance, or encodes prompts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dsas_diffusion import DSASCallback, steer
from dsas_diffusion.pipelines.adapter import adapt
from tests.diffusion.pipelines.test_prompt_rows import BANANA, DOG, TWO_CALLS, encode, rows_of
from tests.diffusion.steering.test_identities_by_family import CALLS, concept_of, pipe_of, ready_made
from tests.fixtures.pipelines import FAMILIES, SIZE, latents


def hand_back(change: Callable[[torch.Tensor], torch.Tensor], *names: str) -> dict[str, Any]:
    """A callback that hands back embeddings, changed."""

    def callback(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        return kwargs | {name: change(kwargs[name]) for name in names}

    return {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["latents", *names]}


def test_a_callback_that_hands_back_the_negative_prompt_for_a_while() -> None:
    """Where its embeddings are known they tell; the turns stay what they were."""
    pipe = pipe_of("flux")
    given = ready_made("flux") | {"negative_prompt_embeds": ready_made("flux")["prompt_embeds"] * 0.5}
    given["negative_pooled_prompt_embeds"] = given["pooled_prompt_embeds"]

    def callback(_: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        embeds = given["negative_prompt_embeds"] if step == 0 else given["prompt_embeds"] * 2
        return kwargs | {"prompt_embeds": embeds}

    back = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    options = {"true_cfg_scale": 3.0, "output_type": "latent", "height": SIZE, "width": SIZE, "num_inference_steps": 3}
    rows = rows_of(pipe, lambda: pipe(**options, **given, **back))
    assert rows["transformer"] == [[1, 1], [0, 0], [0, 0], [0, 0], [1, 1], [0, 0]]


CHANGES = {"a copy": torch.clone, "others": lambda embeds: 0.5 * embeds}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("negative", [BANANA, DOG])
@pytest.mark.parametrize("family", TWO_CALLS)
def test_callbacks_that_hand_back_embeddings(family: str, negative: str, change: str) -> None:
    pipe, back = pipe_of(family), hand_back(CHANGES[change], "prompt_embeds")
    found = rows_of(
        pipe, lambda: latents(pipe, family, BANANA, negative_prompt=negative, num_inference_steps=3, **back)
    )
    assert found[adapt(pipe).family.denoiser] == [[1], [0]] * 3
    with steer(pipe, {concept_of(family, "image"): 1.0}):
        made = latents(pipe, family, BANANA, negative_prompt=negative, num_inference_steps=3, **back)
        same = latents(pipe, family, BANANA, negative_prompt=negative, num_inference_steps=3)
    assert torch.equal(made, same) == (change == "a copy")


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "zimage"])
def test_callbacks_that_hand_back_embeddings_of_both_branches(family: str, change: str) -> None:
    pipe, names = pipe_of(family), ("prompt_embeds", "negative_prompt_embeds")
    names = tuple(name for name in names if name in pipe._callback_tensor_inputs)

    def changed(embeds: Any) -> Any:
        return [CHANGES[change](part) for part in embeds] if isinstance(embeds, list) else CHANGES[change](embeds)

    options = {"negative_prompt": BANANA, "num_inference_steps": 3, **hand_back(changed, *names)}
    found = rows_of(pipe, lambda: latents(pipe, family, BANANA, **options))
    expected, _ = CALLS[family][0]
    assert found[adapt(pipe).family.denoiser] == [expected[::2]] * 3


@pytest.mark.parametrize("guidance", [3.0, 1.0])
@pytest.mark.parametrize("change", CHANGES)
def test_words_of_a_prompt_whose_embeddings_are_replaced(change: str, guidance: float) -> None:
    """It is told of, as nobody knows where words are in the new ones; copies are the old ones."""
    pipe, concept = pipe_of("sd"), concept_of("sd", "cross")
    options = {"guidance_scale": guidance, "num_inference_steps": 3, **hand_back(CHANGES[change], "prompt_embeds")}
    with (
        steer(pipe, {concept: 1.0}, words={concept.name: "banana"}),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        latents(pipe, "sd", BANANA, negative_prompt=BANANA, **options)
    told = [item for item in caught if "a callback has handed back other embeddings" in str(item.message)]
    assert len(told) == (change == "others")


@pytest.mark.parametrize(("keep", "expected"), [("prompt", [1]), ("negative", [0])])
@pytest.mark.parametrize("copied", [False, True])
def test_callbacks_that_end_guidance(keep: str, expected: list[int], copied: bool) -> None:
    pipe = pipe_of("sd")

    def callback(pipeline: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        pipeline._guidance_scale = 0.0
        half = kwargs["prompt_embeds"].chunk(2)[keep == "prompt"] if step == 0 else kwargs["prompt_embeds"]
        return kwargs | {"prompt_embeds": half.clone() if copied else half}

    options = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    rows = rows_of(pipe, lambda: latents(pipe, "sd", BANANA, num_inference_steps=3, **options))["unet"]
    assert rows == [[0, 1], expected, expected]


HEARD = [family for family in FAMILIES if family not in ("pixart", "flux2")]
#: the others are as these, or take long
SOME = [pytest.param(name, marks=[] if name in ("sd", "flux", "zimage") else pytest.mark.slow) for name in HEARD]


@pytest.mark.parametrize("family", SOME)
def test_callbacks_that_encode_prompts(family: str) -> None:
    """The generation goes on: its prompts, strengths by prompt, trace and strengths by step."""
    pipe = pipe_of(family)
    concept = concept_of(family, "image" if "image" in adapt(pipe).family.groups else "cross")
    prompts, steps = [BANANA, DOG], 3

    def encoding(pipeline: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        ready_made(family)
        encode(family, "a pig")
        return moving(pipeline, step, timestep, kwargs)

    seen = []
    with steer(pipe, {concept: 1.0}, trace=True) as steering:
        assert steering.trace is not None
        moving = DSASCallback(steering, {concept.name: {0: 0.0, 1: 1.0}})
        for callback in (moving, encoding):
            made = latents(pipe, family, prompts, (0, 1), num_inference_steps=steps, callback_on_step_end=callback)
            seen.append((made, len(steering.trace.by_step(concept.name, prompt=1).popitem()[1])))
        steering.strengths[concept.name] = [1.0, 0.5]
        latents(pipe, family, prompts, (0, 1), num_inference_steps=steps, callback_on_step_end=encoding)
    (first, count), (second, again) = seen
    assert count == again == steps
    assert torch.equal(first, second)


@pytest.mark.parametrize("family", SOME)
def test_what_a_callback_encodes_is_steered_as_prompts(family: str) -> None:
    pipe, made = pipe_of(family), []

    def callback(pipeline: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        made.append(ready_made(family))
        return kwargs

    latents(pipe, family, BANANA, num_inference_steps=1, callback_on_step_end=callback)
    with steer(pipe, {concept_of(family, "text"): 1.0}):
        latents(pipe, family, BANANA, num_inference_steps=1, callback_on_step_end=callback)
    before, after = made

    def embeds(given: Any) -> torch.Tensor:
        return torch.cat(given) if isinstance(given, list) else given

    assert not torch.equal(embeds(before["prompt_embeds"]), embeds(after["prompt_embeds"]))
    if adapt(pipe).family.negative_encoding == "together":
        assert torch.equal(embeds(before["negative_prompt_embeds"]), embeds(after["negative_prompt_embeds"]))
