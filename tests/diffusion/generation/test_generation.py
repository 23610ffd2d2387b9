"""Making pictures: each from its own seed, whatever its batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dsas_core import DSASError
from dsas_diffusion.generation.pictures import decode, latents_of, noise_like, pictures_of, seeds_for
from dsas_diffusion.generation.settings import Settings, other_schedulers, settings_of
from dsas_diffusion.pipelines.adapter import adapt
from dsas_diffusion.pipelines.load import BUILTIN
from tests.fixtures.checks import differ, same

PROMPTS = ["a banana", "a dog at night", "a cat", "a star on a table", "nothing"]


def test_a_picture_does_not_depend_on_its_batch(tiny_pipe: Any) -> None:
    seeds, settings = seeds_for(PROMPTS, 0), Settings(2, 3.0)
    together = latents_of(adapt(tiny_pipe), PROMPTS, seeds, settings, batch=4)
    alone = latents_of(adapt(tiny_pipe), PROMPTS, seeds, settings, batch=1)
    assert together.shape == (5, 4, 8, 8)
    assert same(together, alone)
    assert differ(together, latents_of(adapt(tiny_pipe), PROMPTS, seeds_for(PROMPTS, 1), settings))


def test_a_place_has_its_seed_and_a_seed_its_noise(tiny_pipe: Any) -> None:
    assert seeds_for(["a", "b"], 0) == seeds_for(["c", "d", "e"], 0)[:2]
    assert len({*seeds_for(PROMPTS, 0), *seeds_for(PROMPTS, 1)}) == 10
    latents = torch.zeros(7, 4, 8, 8)
    assert torch.equal(noise_like(latents, [3, 5])[1], noise_like(latents, [5])[0])
    assert noise_like(latents, [3, 5]).shape == (2, 4, 8, 8)


def test_latents_become_pictures(tiny_pipe: Any) -> None:
    pictures = pictures_of(adapt(tiny_pipe), PROMPTS[:2], [1, 2], Settings(2, 3.0))
    assert [picture.size for picture in pictures] == [(32, 32)] * 2
    made = latents_of(adapt(tiny_pipe), PROMPTS[:2], [1, 2], Settings(2, 3.0))
    assert [p.tobytes() for p in decode(adapt(tiny_pipe), made, batch=1)] == [p.tobytes() for p in pictures]


@pytest.mark.parametrize(
    ("name", "asked", "expected"),
    [
        ("somebody/model", {}, Settings(30, 7.5)),
        (str(BUILTIN["builtin:emoji"]), {}, Settings(12, 3.0)),
        (str(BUILTIN["builtin:emoji"]), {"steps": 5, "guidance": 0.0}, Settings(5, 0.0)),
        ("somebody/model", {"guidance": 1.0, "size": 512}, Settings(30, 1.0, size=512)),
    ],
)
def test_settings_suit_the_model_unless_asked_otherwise(
    name: str, asked: dict[str, Any], expected: Settings, tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(tiny_pipe), "name_or_path", name)
    assert settings_of(tiny_pipe, **asked) == expected
    assert Path(BUILTIN["builtin:emoji"]).name == "model"


def test_other_schedulers_are_those_that_can_do_it(tiny_pipe: Any, ddim_pipe: Any) -> None:
    assert other_schedulers(adapt(tiny_pipe)) == ["UniPCMultistepScheduler", "DEISMultistepScheduler"], (
        "they know flows"
    )
    assert other_schedulers(adapt(ddim_pipe)) == ["UniPCMultistepScheduler", "EulerDiscreteScheduler"]
    for pipe in (tiny_pipe, ddim_pipe):
        own, made = pipe.scheduler, latents_of(adapt(pipe), PROMPTS[:1], [0], Settings(4, 3.0))
        for name in other_schedulers(adapt(pipe)):
            other = latents_of(adapt(pipe), PROMPTS[:1], [0], Settings(4, 3.0, name))
            assert pipe.scheduler is own
            assert bool(other.isfinite().all())
            assert differ(other, made)
        with pytest.raises(DSASError, match=r"scheduler 'Fast' does not go with .*: try "):
            latents_of(adapt(pipe), PROMPTS[:1], [0], Settings(4, 3.0, "Fast"))
        assert same(latents_of(adapt(pipe), PROMPTS[:1], [0], Settings(4, 3.0)), made)
