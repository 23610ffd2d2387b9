"""Whose rows a call holds, told for every way of asking for pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dsas_core import Call, DSASError, visit
from dsas_diffusion.pipelines.adapter import adapt
from dsas_diffusion.pipelines.batch_layout import BatchLayout
from tests.fixtures.models import STEPS, build_flow_pipe, latents
from tests.fixtures.visitors import Recorder

BANANA, DOG = "a banana", "a dog at night"


def calls_of(pipe: Any, *prompts: Any, settings: dict[str, Any] | None = None, **options: Any) -> dict[str, list[Call]]:
    """Every call of the text encoder and of the denoiser while the pipeline makes pictures."""
    recorder = Recorder()
    with (
        BatchLayout(adapt(pipe), **settings or {}) as layout,
        visit(adapt(pipe).roots, [], recorder, layout.describe()),
    ):
        latents(pipe, *prompts, **options)
    return {root: [call for name, call in recorder.calls if name == root] for root in ("text_encoder", "unet")}


@pytest.mark.parametrize(
    ("prompts", "options", "text", "denoiser", "owners"),
    [
        (BANANA, {}, [[1], [0]], [0, 1], [0, 0]),
        ([BANANA], {}, [[1], [0]], [0, 1], [0, 0]),
        ([BANANA, DOG], {"seeds": (1, 2)}, [[1, 1], [0, 0]], [0, 0, 1, 1], [0, 1, 0, 1]),
        (BANANA, {"guidance_scale": 1.0}, [[1]], [1], [0]),
        ("", {"guidance_scale": 1.0}, [[1]], [1], [0]),
        ([BANANA, DOG], {"guidance_scale": 0.0, "seeds": (1, 2)}, [[1, 1]], [1, 1], [0, 1]),
        (BANANA, {"num_images_per_prompt": 2, "seeds": (1, 2)}, [[1], [0]], [0, 0, 1, 1], [0, 0, 0, 0]),
        (
            [BANANA, DOG],
            {"num_images_per_prompt": 2, "seeds": (1, 2, 3, 4)},
            [[1, 1], [0, 0]],
            [0, 0, 0, 0, 1, 1, 1, 1],
            [0, 0, 1, 1, 0, 0, 1, 1],
        ),
        (BANANA, {"negative_prompt": DOG}, [[1], [0]], [0, 1], [0, 0]),
        (
            [BANANA, DOG],
            {"negative_prompt": ["a cat", "a pig"], "seeds": (1, 2)},
            [[1, 1], [0, 0]],
            [0, 0, 1, 1],
            [0, 1, 0, 1],
        ),
        (
            [BANANA, DOG],
            {"negative_prompt": [DOG, BANANA], "seeds": (1, 2)},
            [[1, 1], [0, 0]],
            [0, 0, 1, 1],
            [0, 1] * 2,
        ),
        ([BANANA, DOG], {"negative_prompt": [DOG, DOG], "seeds": (1, 2)}, [[1, 1], [0, 0]], [0, 0, 1, 1], [0, 1] * 2),
        (
            [BANANA, DOG],
            {"negative_prompt": [BANANA, DOG], "seeds": (1, 2)},
            [[1, 1], [0, 0]],
            [0, 0, 1, 1],
            [0, 1] * 2,
        ),
        ("", {}, [[1], [0]], [0, 1], [0, 0]),
        (BANANA, {"settings": {"branch": "both"}}, [[1], [1]], [1, 1], [0, 0]),
        ([BANANA, DOG], {"settings": {"branch": "both"}, "seeds": (1, 2)}, [[1, 1], [1, 1]], [1] * 4, [0, 1, 0, 1]),
    ],
)
def test_rows_and_their_prompts(
    tiny_pipe: Any, prompts: Any, options: dict[str, Any], text: Any, denoiser: list[int], owners: list[int]
) -> None:
    calls = calls_of(tiny_pipe, prompts, **options)
    assert [call.steered.tolist() for call in calls["text_encoder"]] == text
    assert [call.prompts.tolist() for call in calls["text_encoder"]] == [list(range(len(rows))) for rows in text]
    assert [call.steered.tolist() for call in calls["unet"]] == [denoiser] * STEPS
    assert [call.prompts.tolist() for call in calls["unet"]] == [owners] * STEPS
    assert all(call.mask is None for call in calls["unet"])


@pytest.mark.parametrize("which", ["flow", "ddim"])
def test_the_clock_shows_the_timestep(which: str, tiny_pipe: Any, ddim_pipe: Any) -> None:
    pipe = tiny_pipe if which == "flow" else ddim_pipe
    calls = calls_of(pipe, BANANA)
    shown = [float(call.timestep) for call in calls["unet"] if call.timestep is not None]
    assert shown == [float(t) for t in pipe.scheduler.timesteps]
    assert 0 <= shown[-1] < shown[0] <= 1000
    assert all(call.timestep is None for call in calls["text_encoder"])


@pytest.mark.parametrize(
    ("positions", "counted"), [("all", [0] + [1] * 23), ("words", [0, 1, 1, 1] + [0] * 20)], ids=["all", "words"]
)
def test_positions_of_a_text(tiny_pipe: Any, positions: str, counted: list[int]) -> None:
    first, second = calls_of(tiny_pipe, BANANA, settings={"positions": positions})["text_encoder"]
    assert first.mask is not None
    assert second.mask is not None
    assert first.mask.tolist() == [counted]  # start, a, banana, end, and padding
    assert second.mask.tolist() == [[0, 1] + [int(positions == "all")] * 22]


def test_a_negative_prompt_of_learned_tokens_is_recognised(tmp_path: Path) -> None:
    pipe = build_flow_pipe(tmp_path)
    pipe.load_textual_inversion({"<bad>": torch.randn(3, 32)}, token="<bad>")
    calls = calls_of(pipe, BANANA, negative_prompt="<bad> dog")
    assert [call.steered.tolist() for call in calls["text_encoder"]] == [[1], [0]]


def test_ready_made_embeddings_tell_their_number(tiny_pipe: Any) -> None:
    positive, negative = tiny_pipe.encode_prompt([BANANA, DOG], "cpu", 1, True)
    calls = calls_of(tiny_pipe, None, seeds=(1, 2), prompt_embeds=positive, negative_prompt_embeds=negative)
    assert calls["text_encoder"] == []
    assert [call.steered.tolist() for call in calls["unet"]] == [[0, 0, 1, 1]] * STEPS


def test_where_embeddings_come_from_is_known(tiny_pipe: Any) -> None:
    before, _ = tiny_pipe.encode_prompt(BANANA, "cpu", 1, False)
    with BatchLayout(adapt(tiny_pipe)) as layout:
        seen = []
        first, _ = tiny_pipe.encode_prompt(BANANA, "cpu", 1, False)
        second, _ = tiny_pipe.encode_prompt(DOG, "cpu", 1, False)
        seen.append(layout.request.embeddings)
        for given in (before, first, second, first.clone()):
            tiny_pipe.encode_prompt(None, "cpu", 1, False, prompt_embeds=given)
            seen.append(layout.request.embeddings)
    assert seen == ["", "given", "encoded here", "encoded here", "given"]


def test_a_new_generation_is_announced_with_its_prompts(tiny_pipe: Any) -> None:
    told: list[Any] = []
    with BatchLayout(adapt(tiny_pipe), on_generation=told.append):
        latents(tiny_pipe, BANANA)
        latents(tiny_pipe, [BANANA, DOG], seeds=(1, 2))
    latents(tiny_pipe, BANANA)
    assert [request.prompts for request in told] == [1, 2]


def test_it_is_undone_on_exit_also_after_an_error(tiny_pipe: Any) -> None:
    original = tiny_pipe.encode_prompt
    layout = BatchLayout(adapt(tiny_pipe))
    with pytest.raises(KeyboardInterrupt), layout:
        raise KeyboardInterrupt
    with layout:
        assert tiny_pipe.encode_prompt != original
    assert "encode_prompt" not in vars(tiny_pipe)
    assert tiny_pipe.encode_prompt == original


def test_two_at_once_are_refused(tiny_pipe: Any) -> None:
    first, second = BatchLayout(adapt(tiny_pipe)), BatchLayout(adapt(tiny_pipe))
    with first, pytest.raises(DSASError, match="is being steered"), second:
        pass
    assert "encode_prompt" not in vars(tiny_pipe)


@pytest.mark.parametrize("settings", [{"branch": "some"}, {"positions": "most"}])
def test_bad_settings(tiny_pipe: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(DSASError, match="expected"):
        BatchLayout(adapt(tiny_pipe), **settings)


@pytest.mark.parametrize(
    ("batch", "encoded", "message"),
    [
        (2, False, "the denoiser ran outside the pipeline"),
        (3, True, "1 pictures were asked for, but the denoiser of StableDiffusionPipeline got 3 rows: expected 1 or 2"),
    ],
)
def test_rows_that_fit_no_rule_raise(tiny_pipe: Any, batch: int, encoded: bool, message: str) -> None:
    with BatchLayout(adapt(tiny_pipe)) as layout, visit(adapt(tiny_pipe).roots, [], Recorder(), layout.describe()):
        if encoded:
            tiny_pipe.encode_prompt(BANANA, "cpu", 1, True)
        with pytest.raises(DSASError, match=message):
            tiny_pipe.unet(torch.randn(batch, 4, 8, 8), torch.tensor(500), torch.randn(batch, 24, 32))
