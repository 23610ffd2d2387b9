"""STARS in pictures: those of one prompt are a group, rows of the negative prompt take no part."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch

from dsas_core import Concept, DSASError, visit
from dsas_diffusion import stars, steer
from dsas_diffusion.pipelines.adapter import adapt
from tests.fixtures.checks import differ, same
from tests.fixtures.pipelines import FAMILIES, build, latents
from tests.fixtures.visitors import Recorder

TWO = ["a banana", "a banana"]


@cache
def pipe_of(family: str) -> Any:
    return build(family, Path(mkdtemp()))


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_of_a_prompt_are_pushed_apart(family: str) -> None:
    pipe, seeds = pipe_of(family), (5, 5)
    concept, base = stars(pipe, c=0.1), latents(pipe, family, TWO, seeds)
    assert same(base[0], base[1]), "of one noise"
    with steer(pipe, {concept: 0.0}) as steering:
        assert torch.equal(latents(pipe, family, TWO, seeds), base), "strength 0 is exact"
        steering.strengths["stars"] = 3.0
        steered = latents(pipe, family, TWO, seeds)
        assert not same(steered[0], steered[1])
        steering.strengths["stars"] = -3.0
        assert not same(latents(pipe, family, TWO, seeds), steered), "+s is not -s"
        with pytest.raises(DSASError, match=r"'stars' goes by several runs of one prompt: found 1 run"):
            latents(pipe, family, TWO[:1], seeds[:1])
    assert torch.equal(latents(pipe, family, TWO, seeds), base), "detached, nothing is left"


def test_rows_of_the_negative_prompt_take_no_part() -> None:
    pipe = pipe_of("sd")
    concept = stars(pipe, c=0.5)

    def seen(strength: float) -> torch.Tensor:
        """What comes behind the steered site in the first call, rows of the negative prompt first."""
        recorder = Recorder()
        with visit(adapt(pipe).roots, concept.sites, recorder), steer(pipe, {concept: strength}):
            latents(pipe, "sd", TWO, (1, 2))
        (read,) = recorder.seen.values()
        return read[0]

    base, steered = seen(0.0), seen(1.0)
    assert torch.equal(base[:2], steered[:2])
    assert differ(base[2:], steered[2:])
    V = (steered - base)[2:].transpose(0, 1)  # [positions, runs, width]
    alpha = 0.5 * torch.linalg.svdvals(base[2:].transpose(0, 1)).amax(-1).square()
    assert same(V @ V.mT / alpha[:, None, None], torch.eye(2).expand(len(V), 2, 2))


def test_groups_are_prompts_however_their_pictures_are_asked_for() -> None:
    pipe, concept = pipe_of("sd"), stars(pipe_of("sd"), c=0.5)
    options: dict[str, Any] = {"num_inference_steps": 2, "output_type": "pt"}

    def draw(prompts: Any, seeds: list[int], **more: Any) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipe(prompts, generator=generators, **options, **more).images

    with steer(pipe, {concept: 2.0}):
        by_count = draw(["a banana", "a dog"], [1, 2, 3, 4], num_images_per_prompt=2)
        in_batch = draw(["a banana", "a dog", "a dog", "a banana"], [1, 3, 4, 2])
        assert same(by_count, in_batch[[0, 3, 1, 2]])
        assert same(by_count[:2], draw("a banana", [1, 2], num_images_per_prompt=2)), "prompts do not mix"
        alone = draw("a banana", [1, 9], num_images_per_prompt=2)
    assert not same(alone[0], by_count[0]), "a picture goes by the others of its prompt"


def test_agreement_opens_the_gate_where_pictures_are_alike(tmp_path: Path) -> None:
    pipe = pipe_of("sd")
    concept = stars(pipe, gate="stars", name="apart")
    loaded = Concept.from_pretrained(concept.save_pretrained(tmp_path / "it"))
    assert loaded == concept
    with steer(pipe, {loaded: 1.0}, trace=True) as steering:
        for seeds, alike in (((5, 5), True), ((5, 6), False)):
            latents(pipe, "sd", TWO, seeds)
            first = steering.trace.select("apart")[0]
            h = first.h[first.h.shape[0] // 2 :]
            assert bool((h > 0.99).all()) == alike
            assert float(h.min()) >= 0
