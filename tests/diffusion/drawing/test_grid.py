"""Grids: each picture is the one that a call of the pipeline draws, and axes are what they say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import dsas_diffusion as dsas
from dsas_core import Concept, Site
from dsas_core.errors import DSASError
from dsas_diffusion.drawing.grid import Axis
from dsas_diffusion.drawing.picture_settings import HowSteered
from dsas_diffusion.generation.settings import Settings
from tests.fixtures.concepts import random_concept
from tests.fixtures.judges import random_banana_with_place
from tests.fixtures.models import TINY

SETTINGS = Settings(2, 3.0)
SITES = {Site("text_encoder.encoder.layers.1"): TINY.text_width}


@pytest.fixture(scope="module")
def concepts() -> dict[str, Concept]:
    return {name: random_concept(SITES, name=name, seed=i, unit=3.0) for i, name in enumerate(("one", "two"))}


def draw(pipe: Any, concepts: dict[Concept, float], prompt: str = "a dog", seed: int = 0, **options: Any) -> bytes:
    options = {"num_inference_steps": 2, "guidance_scale": 3.0, **options}
    generator = torch.Generator().manual_seed(seed)
    if not concepts:
        return bytes(pipe(prompt, generator=generator, **options).images[0].tobytes())
    with dsas.steer(pipe, concepts):
        return bytes(pipe(prompt, generator=generator, **options).images[0].tobytes())


def test_each_picture_is_what_a_call_draws(tiny_pipe: Any, concepts: dict[str, Concept]) -> None:
    one, two = concepts.values()
    axes = {"strength": [0, -2], "seed": [5, 3], "concept": [one, two]}
    told: list[tuple[int, int]] = []
    given = {one: 0.5}
    grid = dsas.draw_grid(tiny_pipe, "a dog", given, axes, settings=SETTINGS, on_picture=lambda *n: told.append(n))
    assert told == [(i, 8) for i in range(1, 9)]
    drawn = {}
    for z, concept in enumerate((one, two)):
        for y, seed in enumerate((5, 3)):
            for x, strength in enumerate((0, -2)):
                picture, cell = grid.pictures[z][y][x], grid.cells[z][y][x]
                drawn[z, y, x] = picture.tobytes()
                assert drawn[z, y, x] == draw(tiny_pipe, {concept: strength}, seed=seed)
                assert [(it.name, it.strength) for it in cell.concepts] == [(concept.name, strength)]
                assert cell.noise_seed == seed
    assert len(set(drawn.values())) == 8 - 2, "strength 0 is the same with each concept"
    assert grid.sheet().size == (190 + 2 * 168 + 8, 34 + 4 * 168 + 8)


def test_prompts_steps_and_guidance_vary_and_tags_count(tiny_pipe: Any, concepts: dict[str, Concept]) -> None:
    one, two = concepts.values()
    axes = {"prompt": ["a dog", "a cat <dsas:two:2>"], "steps": [1, 2], "guidance": [1.0, 4.0]}
    grid = dsas.draw_grid(tiny_pipe, "", {one: 1.0, two: 0.0}, axes, settings=SETTINGS, seed=9)
    for z, guidance in enumerate((1.0, 4.0)):
        for y, steps in enumerate((1, 2)):
            how = {"num_inference_steps": steps, "guidance_scale": guidance, "seed": 9}
            row = [picture.tobytes() for picture in grid.pictures[z][y]]
            assert row[0] == draw(tiny_pipe, {one: 1.0, two: 0.0}, "a dog", **how)
            assert row[1] == draw(tiny_pipe, {one: 1.0, two: 2.0}, "a cat", **how)


def test_size_negative_prompt_and_gate_reach_the_pipeline(tiny_pipe: Any, concepts: dict[str, Concept]) -> None:
    one = concepts["one"]
    settings = replace(SETTINGS, size=(64, 32))
    options: dict[str, Any] = {"settings": settings, "negative_prompt": "a cat", "how": HowSteered("off")}
    grid = dsas.draw_grid(tiny_pipe, "a dog", {one: 1.0}, {"seed": [4]}, **options)
    (((picture,),),) = grid.pictures
    assert picture.size == (64, 32)
    assert picture.tobytes() == draw(tiny_pipe, {}, seed=4, width=64, height=32, negative_prompt="a cat")
    assert picture.tobytes() != draw(tiny_pipe, {}, seed=4, width=64, height=32)
    assert grid.sheet().size == (190 + 168 + 8, 34 + 80 + 8 + 8), "cells have the pictures' shape"


@pytest.mark.parametrize("preserve", ["latents", np.eye(32, dtype=bool)], ids=["latents", "mask"])
def test_what_is_preserved_is_what_a_call_preserves(tiny_pipe: Any, preserve: Any) -> None:
    concept = random_banana_with_place(tiny_pipe)
    both = [concept, replace(concept, name="other")]
    grid = dsas.draw_grid(tiny_pipe, "a dog", {}, {"concept": both}, settings=SETTINGS, seed=3, preserve=preserve)
    for picture, one in zip(grid.pictures[0][0], both, strict=True):
        with dsas.steer(tiny_pipe, {one: 1.0}) as steering:
            options = {"num_inference_steps": 2, "guidance_scale": 3.0, "generator": torch.Generator().manual_seed(3)}
            (expected,) = steering.generate("a dog", preserve=preserve, **options).images
        assert picture.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({}, "axes: expected 1 to 3"),
        ({"seed": [1], "steps": [1], "guidance": [1], "prompt": ["x"]}, "axes: expected 1 to 3"),
        ({"colour": [1]}, "axis 'colour': expected one of strength, seed"),
        ({"seed": []}, "axis seed: expected a list of values, found []"),
        ({"seed": 3}, "axis seed: expected a list of values, found 3"),
        ({"prompt": "abc"}, "axis prompt: expected a list of values, found 'abc'"),
        ({"prompt": [3]}, "axis prompt: expected texts, found 3"),
        ({"seed": [1, 1]}, "axis seed: one value stands twice"),
        ({"seed": [-1]}, "axis seed: expected a whole number from 0"),
        ({"steps": [0.5]}, "axis steps: expected a whole number from 1"),
        ({"strength": ["much"]}, "axis strength: expected a number"),
        ({"strength": [float("nan")]}, "axis strength: expected a number"),
        ({"strength": [1]}, "expected one concept that it is of, found 2 (one, two)"),
        ({"strength:three": [1]}, "expected strength:NAME of a concept that is given; there is one, two"),
        ({"seed:one": [1]}, "expected strength:NAME of a concept that is given"),
        ({"concept": ["builtin:none"]}, "builtin:none"),
        ({"concept": "one"}, "axis concept: expected a list of values"),
        ({"strength:one": [0, 1], "concept": ["one"], "strength": [0, 1]}, "two axes are strengths of 'one'"),
        ({"seed": list(range(401))}, "a grid of 401 pictures: at most 400 are drawn"),
        ({"strength:one": [1], "prompt": ["a <dsas:one:2>"]}, "a tag in the prompt sets 'one', too"),
        ({"concept": ["one", "two"], "prompt": ["a <dsas:one:2>"]}, "a tag in the prompt sets 'one', too"),
    ],
)
def test_axes_that_are_none_are_told(
    tiny_pipe: Any, concepts: dict[str, Concept], axes: dict[str, Any], message: str
) -> None:
    given = dict.fromkeys(concepts.values(), 1.0)
    with pytest.raises(DSASError) as caught:
        dsas.draw_grid(tiny_pipe, "a dog", given, axes, settings=SETTINGS)
    assert message in str(caught.value)


def test_headings_say_what_varies() -> None:
    assert Axis("strength", [0, 1.5, "auto"], "one").labels == ("one off", "one +1.5", "one auto:0.5")
    assert Axis("guidance", [1, 2.5]).labels == ("guidance 1", "guidance 2.5")
    assert Axis("seed", [3]).labels == ("seed 3",)
