"""Steered pictures batch by batch, and an unsteered pass that is used again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from dsas_core import Concept, DSASError
from dsas_diffusion import steer
from dsas_diffusion.generation.pictures import pictures_of, seeds_for
from dsas_diffusion.generation.settings import Settings
from dsas_diffusion.pipelines.adapter import adapt
from dsas_diffusion.steering.drawing import generate_batches
from dsas_diffusion.steering.preserve import Generation
from tests.fixtures.judges import random_banana_with_place

PROMPTS, SETTINGS = ("a banana", "a dog on the grass", "a banana and a dog"), Settings(2, 3.0)
SEEDS = seeds_for(PROMPTS, 3)


@pytest.fixture(scope="module")
def concept(tiny_pipe: Any) -> Concept:
    return random_banana_with_place(tiny_pipe)


def contents(pictures: list[Image.Image]) -> list[bytes]:
    return [picture.tobytes() for picture in pictures]


def generate(steering: Any, seed: int = 3, **options: Any) -> Generation:
    """One picture, asked for as users do."""
    generator = torch.Generator().manual_seed(seed)
    asked = {"num_inference_steps": 2, "guidance_scale": 3.0, **options}
    made: Generation = steering.generate("a banana", generator=generator, **asked)
    return made


def test_batches_are_what_generate_draws(tiny_pipe: Any, concept: Concept) -> None:
    with steer(tiny_pipe, {concept: 1.0}) as steering:
        plain = list(generate_batches(steering, PROMPTS, SEEDS, SETTINGS, batch=2))
        kept = list(generate_batches(steering, PROMPTS, SEEDS, SETTINGS, True, batch=2))
        alone = generate(steering, SEEDS[0], preserve=True)
        expected = pictures_of(adapt(tiny_pipe), PROMPTS, SEEDS, SETTINGS)
    assert [len(made.images) for made in kept] == [2, 1]
    assert contents([picture for made in plain for picture in made.images]) == contents(expected)
    assert kept[0].images[0].tobytes() == alone.images[0].tobytes() != expected[0].tobytes()
    unsteered = contents(pictures_of(adapt(tiny_pipe), PROMPTS, SEEDS, SETTINGS))
    assert contents([picture for made in kept for picture in made.unsteered]) == unsteered
    assert contents(kept[1].images) != unsteered[2:]


@pytest.mark.parametrize("preserve", [True, "latents"])
def test_an_unsteered_pass_is_used_again(tiny_pipe: Any, concept: Concept, preserve: Any) -> None:
    calls: list[int] = []
    count = tiny_pipe.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        with steer(tiny_pipe, {concept: 0.0}) as steering:
            first = generate(steering, preserve=preserve)
            assert (len(calls), first.is_steered) == (2, False)
            for strength in (1.0, -1.0, 0.0):
                steering.strengths[concept.name] = strength
                calls.clear()
                again = generate(steering, preserve=preserve, unsteered=first)
                assert len(calls) == (2 if strength else 0)
                assert contents(again.images) == contents(generate(steering, preserve=preserve).images)
                assert again.is_steered == (again.images[0].tobytes() != first.images[0].tobytes()) == bool(strength)
    finally:
        count.remove()


def test_an_unsteered_pass_without_generators(tiny_pipe: Any, concept: Concept) -> None:
    """Torch's own random numbers are put back to where they stood in the call that is used again."""
    with steer(tiny_pipe, {concept: 1.0}) as steering:
        torch.manual_seed(11)
        first = steering.generate("a banana", num_inference_steps=2, preserve=True)
        again = steering.generate("a banana", num_inference_steps=2, preserve=True, unsteered=first)
    assert contents(again.images) == contents(first.images) != contents(first.unsteered)


def test_the_unsteered_pass_of_another_call_is_refused(tiny_pipe: Any, concept: Concept) -> None:
    with steer(tiny_pipe, {concept: 1.0}) as steering:
        first, plain = generate(steering, preserve=True), generate(steering)
        for options, message in (
            ({"preserve": True, "unsteered": plain}, "that one preserved nothing"),
            ({"preserve": False, "unsteered": first}, "give preserve=True, or leave it out"),
            ({"preserve": True, "unsteered": first, "num_inference_steps": 3}, "another num_inference_steps"),
            ({"preserve": True, "unsteered": first, "eta": 0.5}, "another eta"),
            ({"preserve": True, "unsteered": first, "seed": 4}, "another generator, or the same drawn from since"),
        ):
            with pytest.raises(DSASError, match=message):
                generate(steering, **options)
    with (
        steer(tiny_pipe, {replace(concept, name="other"): 1.0}) as steering,
        pytest.raises(DSASError, match="in that call nothing looked for other: leave unsteered= out"),
    ):
        generate(steering, preserve=True, unsteered=first)


def test_concepts_of_one_name_are_told_apart_by_what_their_masks_are_read_with(
    tiny_pipe: Any, concept: Concept
) -> None:
    """What they steer, and how far, does not matter."""
    rule = dict(concept.evidence["mask"])
    wider = replace(concept, evidence={"mask": {**rule, "growth": rule.get("growth", 0.0) + 0.1}})
    stronger = concept.with_unit(2 * concept.unit)
    with steer(tiny_pipe, {concept: 0.0}) as steering:
        first = generate(steering, preserve=True)
    assert [first.looked_for([it]) for it in (concept, stronger, wider)] == [True, True, False]
    with steer(tiny_pipe, {stronger: 1.0}) as steering:
        again = generate(steering, preserve=True, unsteered=first)
        assert contents(again.images) == contents(generate(steering, preserve=True).images)
    with steer(tiny_pipe, {wider: 1.0}) as steering, pytest.raises(DSASError, match="in that call nothing looked for"):
        generate(steering, preserve=True, unsteered=first)


@pytest.mark.parametrize("strength", [0.0, 1.0])
@pytest.mark.parametrize("given", [True, False], ids=["generator", "torch's own"])
def test_random_numbers_end_where_one_pass_leaves_them(
    tiny_pipe: Any, concept: Concept, strength: float, given: bool
) -> None:
    """Also where no pass is run; and torch's own stay the caller's where a generator is given."""

    def begin() -> dict[str, Any]:
        torch.manual_seed(5)
        return {"generator": torch.Generator().manual_seed(3) if given else None, "num_inference_steps": 2}

    asked = begin()
    tiny_pipe("a banana", **asked)
    expected = torch.get_rng_state() if asked["generator"] is None else asked["generator"].get_state()
    with steer(tiny_pipe, {concept: strength}) as steering:
        first = steering.generate("a banana", **begin(), preserve=True)
        asked = begin()
        torch.manual_seed(6)
        own = torch.get_rng_state()
        again = steering.generate("a banana", **asked, preserve=True, unsteered=first)
    assert again.is_steered == bool(strength)
    if given:
        assert torch.equal(asked["generator"].get_state(), expected)
        assert torch.equal(torch.get_rng_state(), own)
    else:
        assert torch.equal(torch.get_rng_state(), expected)


def test_lists_of_pictures_are_the_users_own(tiny_pipe: Any, concept: Concept) -> None:
    with steer(tiny_pipe, {concept: 0.0}) as steering:
        made = generate(steering, preserve=True)
    made.images.clear()
    assert len(made.unsteered) == 1


def test_prompts_with_strengths_of_their_own(tiny_pipe: Any, concept: Concept) -> None:
    with steer(tiny_pipe, {concept: [0.0, 1.0, 0.0]}) as steering:
        (first,) = generate_batches(steering, PROMPTS, SEEDS, SETTINGS, True)
        (again,) = generate_batches(steering, PROMPTS, SEEDS, SETTINGS, True, unsteered=[first])
    assert contents(again.images) == contents(first.images)
    assert [mask.any() for mask in again.masks or ()] == [False, True, False]
