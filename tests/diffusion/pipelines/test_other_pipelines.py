"""Rows and clock beyond plain text to image: guidance of other kinds, a picture to begin with, a picture to follow."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from PIL import Image

from dsas_core import Call, DSASError, visit
from dsas_diffusion import Lesson, find_sites, steer
from dsas_diffusion.generation.settings import Settings
from dsas_diffusion.learning.trial.denoiser_features import DenoiserFeatures
from dsas_diffusion.pipelines.adapter import adapt
from dsas_diffusion.pipelines.batch_layout import BatchLayout
from dsas_diffusion.steering.trace import PictureRecord
from tests.diffusion.learning.test_learn import PROMPTS
from tests.diffusion.steering.test_identities_by_family import BANANA, DOG, concept_of, pipe_of
from tests.fixtures.concepts import random_concept
from tests.fixtures.models import bases
from tests.fixtures.pipelines import SIZE, STEPS, WIDTH, latents
from tests.fixtures.visitors import Recorder

PICTURE = Image.new("RGB", (SIZE, SIZE), (200, 40, 90))
MASK = Image.new("L", (SIZE, SIZE), 255)


@cache
def other(kind: str, family: str) -> Any:
    """Another pipeline of the same parts."""
    import diffusers

    pipe, added = pipe_of(family), {}
    if "ControlNet" in kind:
        torch.manual_seed(0)
        added["controlnet"] = (
            diffusers.ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 16))
            .eval()
            .requires_grad_(False)
        )
    if "Pix2Pix" in kind:  # its UNet reads latents and picture side by side
        torch.manual_seed(0)
        config = {key: value for key, value in pipe.unet.config.items() if key[0] != "_"} | {"in_channels": 8}
        added["unet"] = diffusers.UNet2DConditionModel.from_config(config).eval().requires_grad_(False)
    made = getattr(diffusers, kind).from_pipe(pipe, **added)
    made.set_progress_bar_config(disable=True)
    return made


def run(pipe: Any, prompts: Any, **options: Any) -> Any:
    settings = {"num_inference_steps": STEPS, "output_type": "latent", "negative_prompt": "a cat", **options}
    if isinstance(prompts, list):
        settings["negative_prompt"] = [settings["negative_prompt"]] * len(prompts)
    return pipe(prompts, generator=torch.Generator().manual_seed(0), **settings).images


def calls_of(pipe: Any, prompts: Any, rows: str = "conditional", **options: Any) -> list[Call]:
    recorder = Recorder()
    with BatchLayout(adapt(pipe), rows) as layout, visit(adapt(pipe).roots, [], recorder, layout.describe()):
        run(pipe, prompts, **options)
    return [call for root, call in recorder.calls if root == adapt(pipe).family.denoiser]


#: pipeline, family, what it is asked for, and the rows of each call of the denoiser with one prompt
KINDS = [
    ("StableDiffusionPAGPipeline", "sd", {"pag_scale": 2.0}, [[0, 1, 1]] * STEPS),
    ("StableDiffusionPAGPipeline", "sd", {"pag_scale": 2.0, "guidance_scale": 0.0}, [[1, 1]] * STEPS),
    ("StableDiffusionPAGPipeline", "sd", {"pag_scale": 0.0}, [[0, 1]] * STEPS),
    ("StableDiffusionXLPAGPipeline", "sdxl", {"pag_scale": 2.0}, [[0, 1, 1]] * STEPS),
    ("StableDiffusionImg2ImgPipeline", "sd", {"image": PICTURE, "strength": 0.5}, [[0, 1]]),
    ("StableDiffusionXLImg2ImgPipeline", "sdxl", {"image": PICTURE, "strength": 0.5}, [[0, 1]]),
    ("StableDiffusion3Img2ImgPipeline", "sd3", {"image": PICTURE, "strength": 0.5}, [[0, 1]]),
    ("FluxImg2ImgPipeline", "flux", {"image": PICTURE, "strength": 0.5, "max_sequence_length": 12}, [[1]]),
    (
        "StableDiffusionInpaintPipeline",
        "sd",
        {"image": PICTURE, "mask_image": MASK, "strength": 1.0},
        [[0, 1]] * STEPS,
    ),
    ("StableDiffusionInstructPix2PixPipeline", "sd", {"image": PICTURE}, [[1, 0, 0]] * STEPS),
    ("StableDiffusionInstructPix2PixPipeline", "sd", {"image": PICTURE, "guidance_scale": 1.0}, [[1]] * STEPS),
    ("StableDiffusionXLInstructPix2PixPipeline", "sdxl", {"image": PICTURE}, [[1, 0, 0]] * STEPS),
    ("StableDiffusionControlNetPipeline", "sd", {"image": PICTURE}, [[0, 1]] * STEPS),
    ("StableDiffusionXLControlNetPipeline", "sdxl", {"image": PICTURE}, [[0, 1]] * STEPS),
]


def sized(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """Pipelines that are given no picture, or one that does not tell, are told how large theirs is to be."""
    told = ("Img2Img" in kind or "nInstruct" in kind) and "Flux" not in kind and "3" not in kind
    return options if told else {"height": SIZE, "width": SIZE, **options}


@pytest.mark.parametrize(("kind", "family", "options", "rows"), KINDS)
def test_rows(kind: str, family: str, options: dict[str, Any], rows: list[list[int]]) -> None:
    options = sized(kind, options)
    if kind.startswith("Flux"):
        options = {**options, "negative_prompt": None}
    calls = calls_of(other(kind, family), BANANA, **options)
    assert [call.steered.tolist() for call in calls] == rows
    assert all(set(call.prompts.tolist()) == {0} for call in calls)


@cache
def without(family: str, encoder: str) -> Any:
    """A pipeline of the same parts, but for one text encoder and its tokenizer."""
    from diffusers import UNet2DConditionModel

    pipe = pipe_of(family)
    parts = {**pipe.components, encoder: None, encoder.replace("text_encoder", "tokenizer"): None}
    if family == "sdxl":  # its UNet reads what the encoders give side by side
        torch.manual_seed(0)
        config = {**pipe.unet.config, "cross_attention_dim": WIDTH}
        parts["unet"] = UNet2DConditionModel.from_config(config).eval().requires_grad_(False)
    made = type(pipe)(**parts)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize(
    ("family", "encoder", "roots", "options"),
    [
        ("sd3", "text_encoder_3", {"text_encoder", "text_encoder_2"}, {"max_sequence_length": 12}),
        ("sdxl", "text_encoder", {"text_encoder_2"}, {}),
    ],
)
def test_pipelines_without_one_of_their_text_encoders(
    family: str, encoder: str, roots: set[str], options: dict[str, Any]
) -> None:
    """SD3 without its T5, SDXL as its refiner is: roles, rows of texts and of the denoiser."""
    pipe = without(family, encoder)
    sites = find_sites(pipe, "text")
    assert {site.root for site in sites} == roots
    recorder = Recorder()
    with BatchLayout(adapt(pipe)) as layout, visit(adapt(pipe).roots, sites, recorder, layout.describe()):
        run(pipe, [BANANA, DOG], height=SIZE, width=SIZE, **options)
    for root in roots:
        assert [call.steered.tolist() for name, call in recorder.calls if name == root] == [[1, 1], [0, 0]]
    denoiser = [call.steered.tolist() for name, call in recorder.calls if name == adapt(pipe).family.denoiser]
    assert denoiser == [[0, 0, 1, 1]] * STEPS
    concept = random_concept({site: seen[0] for site, seen in recorder.seen.items()}, base=bases(pipe), kind="additive")
    base = run(pipe, BANANA, height=SIZE, width=SIZE, **options)
    with steer(pipe, {concept: 1.0}) as steering:
        steered = run(pipe, BANANA, height=SIZE, width=SIZE, **options)
        assert set(steering.fired) == {str(site) for site in sites}
    assert not torch.equal(base, steered)


def test_attention_of_the_picture_to_itself_has_a_role_of_its_own() -> None:
    """SD3.5 medium has it in some blocks, beside the joint one: of patches alone."""
    pipe = pipe_of("sd3")
    (site,) = find_sites(pipe, "self")
    assert (site.path, site.stream, site.index) == ("transformer.transformer_blocks.0.attn2", "", 0)
    assert site not in find_sites(pipe, "denoiser")
    recorder = Recorder()
    with BatchLayout(adapt(pipe)) as layout, visit(adapt(pipe).roots, [site], recorder, layout.describe()):
        run(pipe, BANANA, height=SIZE, width=SIZE, max_sequence_length=12)
    joint = next(call.joint for root, call in recorder.calls if root == site.root)
    assert joint is not None
    assert recorder.seen[site][0].shape == (2, joint.image, WIDTH)


@pytest.mark.parametrize("kind", ["StableDiffusionImg2ImgPipeline", "StableDiffusion3Img2ImgPipeline"])
def test_a_late_start_shows_on_the_clock(kind: str) -> None:
    """The list of timesteps begins where a whole generation would; the first call does not."""
    pipe = other(kind, "sd3" if "3" in kind else "sd")
    options = sized(kind, {"image": PICTURE, "strength": 0.5, "num_inference_steps": 4})
    shown = [float(call.timestep) for call in calls_of(pipe, BANANA, **options) if call.timestep is not None]
    listed = [float(t) for t in pipe.scheduler.timesteps]
    assert shown == pytest.approx(listed[-2:], abs=1e-3)
    assert shown[0] < 0.8 * listed[0]


@pytest.mark.parametrize("scheduler", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "PNDMScheduler"])
def test_timesteps_that_come_twice_are_what_they_are(scheduler: str) -> None:
    import diffusers

    pipe = pipe_of("sd")
    own = pipe.scheduler
    pipe.scheduler = getattr(diffusers, scheduler).from_config(own.config)
    try:
        calls = calls_of(pipe, BANANA, num_inference_steps=5, height=SIZE, width=SIZE)
        expected = [float(t) for t in pipe.scheduler.timesteps]
    finally:
        pipe.scheduler = own
    assert len(expected) > 5
    assert [float(call.timestep) for call in calls if call.timestep is not None] == pytest.approx(expected)


def test_guidance_that_ends_midway_leaves_the_prompts() -> None:
    from diffusers.callbacks import SDCFGCutoffCallback

    cut = SDCFGCutoffCallback(cutoff_step_ratio=0.5)
    options = {"callback_on_step_end": cut, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    calls = calls_of(pipe_of("sd"), BANANA, num_inference_steps=4, height=SIZE, width=SIZE, **options)
    rows = [call.steered.tolist() for call in calls]
    assert rows[0] == [0, 1]
    assert rows[-1] == [1]
    assert {len(line) for line in rows} == {1, 2}


def test_skipped_layers_are_asked_for_in_a_call_of_their_own() -> None:
    pipe, concept = pipe_of("sd3"), concept_of("sd3", "image")
    skipping = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
    options = {"height": SIZE, "width": SIZE, "max_sequence_length": 12, "num_inference_steps": 3, **skipping}
    rows = [call.steered.tolist() for call in calls_of(pipe, BANANA, **options)]
    assert rows.count([1]) >= 1
    assert [row for row in rows if row != [1]] == [[0, 1]] * 3
    base = run(pipe, BANANA, **options)
    with steer(pipe, {concept: 1.0}) as steering:
        steered = run(pipe, BANANA, **options)
        assert set(steering.fired) == {str(site) for site in find_sites(pipe, "image")}
    assert not torch.equal(base, steered)


def test_two_prompts_of_two_pictures_with_perturbed_attention() -> None:
    pipe = other("StableDiffusionPAGPipeline", "sd")
    options = {"pag_scale": 2.0, "num_images_per_prompt": 2, "height": SIZE, "width": SIZE}
    first, *_ = calls_of(pipe, [BANANA, DOG], **options)
    assert first.steered.tolist() == [0] * 4 + [1] * 8
    assert first.prompts.tolist() == [0, 0, 1, 1] * 3


#: pipeline, which rows are steered, and which of these blocks a heat-map shows
SHOWN = [
    ("StableDiffusionPAGPipeline", "conditional", 0),
    ("StableDiffusionPAGPipeline", "unconditional", 0),
    ("StableDiffusionPAGPipeline", "both", 1),
    ("StableDiffusionInstructPix2PixPipeline", "both", 0),
    ("StableDiffusionControlNetPipeline", "both", 1),
]


@pytest.mark.parametrize(("kind", "branch", "block"), SHOWN)
def test_heat_is_of_the_rows_that_have_the_prompts(kind: str, branch: str, block: int) -> None:
    pipe, concept = other(kind, "sd"), concept_of("sd", "cross")
    options = sized(kind, {"pag_scale": 2.0} if "PAG" in kind else {"image": PICTURE})
    with steer(pipe, {concept: 1.0}, branch=branch, trace=True, force=True) as steering:
        run(pipe, [BANANA, DOG], **options)
        assert steering.trace is not None
        records = [record for record in steering.trace.records if isinstance(record, PictureRecord)]
    assert records
    for record in records:
        assert record.pictures is not None
        assert torch.equal(record.pictures, record.h[2 * block : 2 * block + 2])


@pytest.mark.parametrize("family", ["flux2", "klein"])
def test_heat_is_of_the_picture_not_of_those_to_go_by(family: str) -> None:
    pipe, concept = pipe_of(family), concept_of(family, "image")
    with steer(pipe, {concept: 1.0}, trace=True) as steering:
        latents(pipe, family, BANANA, num_inference_steps=1, image=PICTURE.resize((64, 64)))
        assert steering.trace is not None
        first = steering.trace.records[0]
        heat = steering.trace.heat(concept.name, (8, 8), site=str(first.site))
    assert first.h.shape[1] > 64
    assert heat.flatten() == pytest.approx(first.h[0, :64].numpy(), abs=1e-6)


def test_words_of_a_pipeline_without_its_first_text_encoder() -> None:
    pipe = without("sdxl", "text_encoder")
    sites = dict.fromkeys(find_sites(pipe, r"unet\.mid_block.*\.attn2"), pipe.unet.config.block_out_channels[-1])
    concept, size = random_concept(sites, base=bases(pipe)), {"height": SIZE, "width": SIZE}
    base = run(pipe, BANANA, **size)
    for word, found in (("banana", True), ("dog", False)):
        with steer(pipe, {concept: 1.0}, words={concept.name: word}):
            assert torch.equal(run(pipe, BANANA, **size), base) != found


@pytest.mark.parametrize(
    "kind",
    ["StableDiffusionImg2ImgPipeline", "StableDiffusionControlNetPipeline", "StableDiffusionInstructPix2PixPipeline"],
)
def test_pipelines_that_draw_from_pictures_are_told_where_to_learn(kind: str) -> None:
    with pytest.raises(DSASError, match=rf"{kind} draws from pictures, too.*AutoPipelineForText2Image\.from_pipe"):
        Lesson(other(kind, "sd"), PROMPTS)


def test_the_denoiser_sees_what_has_a_prompt_where_attention_is_perturbed() -> None:
    """The same as of the pipeline without: its rows beside them are left out."""
    pipes = [pipe_of("sd"), other("StableDiffusionPAGPipeline", "sd")]
    made = torch.randn(10, 4, SIZE // 2, SIZE // 2)
    seen = [DenoiserFeatures(adapt(pipe), Settings(1, 0.0, size=SIZE))(made) for pipe in pipes]
    assert torch.allclose(*seen, atol=1e-5)


def test_a_pipeline_that_encodes_no_prompts_is_refused() -> None:
    from diffusers import MarigoldDepthPipeline

    parts = {name: pipe_of("sd").components[name] for name in ("unet", "vae", "scheduler", "text_encoder", "tokenizer")}
    with pytest.raises(DSASError, match="MarigoldDepthPipeline has no encode_prompt"):
        steer(MarigoldDepthPipeline(**parts), {concept_of("sd", "cross"): 1.0})


def test_from_pipe_shares_what_is_steered() -> None:
    """It has the same modules; rows are told by the pipeline that was steered, so that one is to be called."""
    pipe, concept = pipe_of("sd"), concept_of("sd", "cross")
    with (
        steer(pipe, {concept: 1.0}),
        pytest.raises(DSASError, match="the denoiser ran outside the pipeline"),
    ):
        run(other("StableDiffusionPAGPipeline", "sd"), BANANA, pag_scale=0.0, height=SIZE, width=SIZE)


def test_a_batch_that_fits_no_rule_is_refused() -> None:
    pipe = other("StableDiffusionPAGPipeline", "sd")
    with BatchLayout(adapt(pipe)) as layout, visit(adapt(pipe).roots, [], Recorder(), layout.describe()):
        pipe.encode_prompt(BANANA, "cpu", 1, True)
        with pytest.raises(DSASError, match="StableDiffusionPAGPipeline got 5 rows: expected"):
            pipe.unet(torch.randn(5, 4, 8, 8), torch.tensor(500), torch.randn(5, 24, 32))
