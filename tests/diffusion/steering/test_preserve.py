"""`generate(preserve=…)`: what is outside of the concept stays, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from dsas_core import Concept, DSASError
from dsas_core.errors import UnsupportedError
from dsas_diffusion import DSASCallback, load_pipeline, steer
from dsas_diffusion.steering.blending import feather_width, latents_mask, read_masks
from dsas_diffusion.steering.concept_masks import MaskReader, MaskRule, rule_as_evidence
from dsas_diffusion.steering.preserve import Generation
from tests.diffusion.pipelines.test_other_pipelines import MASK, PICTURE, other, sized
from tests.diffusion.steering.conftest import Seeing
from tests.diffusion.steering.test_compile import compile_denoiser
from tests.diffusion.steering.test_identities_by_family import BANANA, DOG, ROLES, concept_of, invariant, pipe_of
from tests.fixtures import pipelines as models
from tests.fixtures.pipelines import FAMILIES, NEGATIVE, SIZE

HEARD = [family for family in FAMILIES if family != "pixart"]
STEPS = 3


def asked(family: str, prompts: Any = BANANA, seeds: tuple[int, ...] = (0,), **options: Any) -> dict[str, Any]:
    """What a tiny pipeline is asked for: pictures."""
    return models.arguments(family, prompts, seeds, **{"num_inference_steps": STEPS, "output_type": "pil", **options})


def concept_in(family: str) -> Concept:
    """A random concept in a family's denoiser, strong enough to be seen in pixels."""
    return concept_of(family, "image" if "image" in ROLES[family] else "cross").with_unit(4.0)


def with_reader(concept: Concept) -> Concept:
    """The concept with a rule for masks, and the probe of its last site to read by."""
    reader = concept.interventions[-1].as_read_only()
    rule = rule_as_evidence(MaskRule((str(reader.site),), margin=0.0))
    return replace(concept, interventions=(*concept.interventions, reader), evidence={"mask": rule})


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, np.int16)


def equal(some: list[Image.Image], others: list[Image.Image]) -> list[bool]:
    return [np.array_equal(pixels(a), pixels(b)) for a, b in zip(some, others, strict=True)]


def left(size: int = 16) -> np.ndarray:
    """A mask of the left half."""
    return np.arange(size)[None].repeat(size, 0) < size // 2


# ---- in every family ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", HEARD)
def test_pixels_outside_of_a_mask_stay(family: str) -> None:
    pipe, concept = pipe_of(family), concept_in(family)
    with steer(pipe, {concept: 0.0}) as steering:
        base = steering.generate(**asked(family)).images
        steering.strengths[concept.name] = 1.0
        plain = steering.generate(**asked(family)).images
        made, everything, nothing = (
            steering.generate(**asked(family), preserve=mask) for mask in (left(), np.ones((1, 1)), np.zeros((1, 1)))
        )
    side = base[0].width
    assert made.masks is not None
    assert np.array_equal(made.masks[0] == 1, left(side))
    assert equal(made.unsteered, base) == equal(everything.images, plain) == equal(nothing.images, base) == [True]
    changed = (pixels(made.images[0]) != pixels(base[0])).any((0, 2))
    assert changed[: side // 2].any()
    assert not (pixels(made.images[0]) != pixels(base[0])).any(-1)[made.masks[0] == 0].any()
    assert not changed[side // 2 + 2 * feather_width((side, side)) :].any()
    assert (pixels(plain[0]) != pixels(base[0])).any((0, 2))[-1]


@pytest.mark.parametrize("family", HEARD)
def test_latents_outside_of_a_mask_stay(family: str, seeing: type[Seeing]) -> None:
    base = pipe_of(family)(**asked(family, output_type="latent")).images
    with steer(pipe_of(family), {concept_in(family): 1.0}) as steering:
        made = steering.generate(**asked(family, output_type="latent"), preserve="latents")
    assert torch.equal(made.unsteered, base)
    assert made.kept_bytes == STEPS * base.nbytes
    inside = latents_mask(made.masks, made.images).expand_as(made.images) > 0
    assert torch.equal(made.images[~inside], made.unsteered[~inside])
    assert not torch.equal(made.images[inside], made.unsteered[inside])
    assert 0.4 < float(inside.float().mean()) < 0.7


@pytest.mark.parametrize("family", HEARD)
def test_a_batch_is_its_singles(family: str) -> None:
    """With strengths and masks of each; what is not steered is the unsteered picture, bit for bit."""
    invariant(family)
    pipe, concept, prompts, seeds = pipe_of(family), concept_in(family), [BANANA, DOG, DOG], (0, 3, 4)
    masks = [left(), left(), left()[:, ::-1].copy()]
    with steer(pipe, {concept: [1.0, 0.0, -0.5]}) as steering:
        batch = steering.generate(**asked(family, prompts, seeds), preserve=masks)
        singles = []
        for i, strength in enumerate((1.0, 0.0, -0.5)):
            steering.strengths[concept.name] = strength
            singles += steering.generate(**asked(family, prompts[i], seeds[i : i + 1]), preserve=masks[i]).images
    assert equal(batch.images, batch.unsteered) == [False, True, False]
    for made, single in zip(batch.images, singles, strict=True):  # up to float noise before rounding
        assert np.abs(pixels(made) - pixels(single)).max() <= 1


@pytest.mark.parametrize("off", ["strength", "gate", "mask", "schedule"])
@pytest.mark.parametrize("family", HEARD)
def test_where_nothing_is_steered_it_is_the_unsteered_picture(family: str, off: str, seeing: type[Seeing]) -> None:
    """And where that is known before, it is drawn once."""
    pipe, concept, calls = pipe_of(family), concept_in(family), []
    seeing.pictures = () if off == "mask" else None
    options = {"gate": {"gate": "off"}, "schedule": {"schedule": lambda timestep: torch.zeros(())}}.get(off, {})

    def note(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        calls.append(step)
        return tensors

    base = pipe(**asked(family)).images
    with steer(pipe, {concept: 0.0 if off == "strength" else 1.0}, **options) as steering:
        made = steering.generate(**asked(family, callback_on_step_end=note), preserve=True)
    assert equal(made.images, base) == equal(made.unsteered, base) == [True]
    assert len(calls) == STEPS * (2 if off == "gate" else 1)


# ---- samplers, other pipelines, random numbers ----------------------------------------------------------------------


def with_sampler(name: str, **config: Any) -> Any:
    pipe = pipe_of("sd")
    made = type(pipe)(
        **{**pipe.components, "scheduler": getattr(diffusers, name).from_config(pipe.scheduler.config, **config)}
    )
    made.set_progress_bar_config(disable=True)
    return made


def lcm() -> Any:
    """It decodes another tensor than the one that it goes on with."""
    pipe = pipe_of("sd")
    torch.manual_seed(0)
    config = {key: value for key, value in pipe.unet.config.items() if key[0] != "_"} | {"time_cond_proj_dim": 8}
    unet = diffusers.UNet2DConditionModel.from_config(config).eval().requires_grad_(False)
    parts = {name: part for name, part in pipe.components.items() if name not in ("unet", "scheduler")}
    scheduler = diffusers.LCMScheduler()
    made = diffusers.LatentConsistencyModelPipeline(
        **parts, unet=unet, scheduler=scheduler, requires_safety_checker=False
    )
    made.set_progress_bar_config(disable=True)
    return made


OTHERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "Heun": (lambda: with_sampler("HeunDiscreteScheduler"), {}),
    "ancestral": (lambda: with_sampler("EulerAncestralDiscreteScheduler"), {}),
    "multi-step": (lambda: with_sampler("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++"), {}),
    "LCM": (lcm, {}),
    "PAG": (lambda: other("StableDiffusionPAGPipeline", "sd"), {"pag_scale": 2.0}),
    "img2img": (lambda: other("StableDiffusionImg2ImgPipeline", "sd"), {"image": PICTURE, "strength": 0.7}),
    "inpainting": (lambda: other("StableDiffusionInpaintPipeline", "sd"), {"image": PICTURE, "mask_image": MASK}),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_samplers_and_pipelines(kind: str, seeing: type[Seeing]) -> None:
    build, options = OTHERS[kind]
    pipe, concept = build(), replace(concept_in("sd"), base={}, learned_on={})
    options = sized(type(pipe).__name__, {**options, "num_inference_steps": 4, "num_images_per_prompt": 2})
    if kind != "LCM":
        options["negative_prompt"] = NEGATIVE

    def draw(steering: Any = None, seed: int = 0, **more: Any) -> Any:
        generator = torch.Generator().manual_seed(seed)
        made = (pipe if steering is None else steering.generate)(BANANA, generator=generator, **options, **more)
        return made, generator.get_state()

    base, state = draw(output_type="latent")
    with steer(pipe, {concept: 1.0}) as steering:
        made, state_after = draw(steering, preserve="latents", output_type="latent")
        again, _ = draw(steering, preserve="latents", output_type="latent")
    assert torch.equal(made.unsteered, base.images)
    assert torch.equal(state, state_after)
    assert torch.equal(made.images, again.images)
    inside = latents_mask(made.masks, made.images).expand_as(made.images) > 0
    assert torch.equal(made.images[~inside], made.unsteered[~inside])
    assert not torch.equal(made.images[inside], made.unsteered[inside])


def test_random_numbers_of_torch_itself() -> None:
    """Where there is no generator: afterwards they stand where one pass leaves them."""
    pipe, concept = with_sampler("EulerAncestralDiscreteScheduler"), concept_in("sd")
    with steer(pipe, {concept: 1.0}) as steering:
        torch.manual_seed(5)
        base = steering.generate(**asked("sd", generator=None)).images
        state = torch.get_rng_state()
        torch.manual_seed(5)
        made = steering.generate(**asked("sd", generator=None), preserve=np.ones((1, 1)))
    assert torch.equal(torch.get_rng_state(), state)
    assert equal(made.images, base) == [True]


# ---- several pictures, several concepts, the trace ------------------------------------------------------------------


def test_only_concepts_that_steer_a_picture_are_kept_in_it(seeing: type[Seeing]) -> None:
    """By prompt, with two pictures of each."""
    pipe, first = pipe_of("sd"), concept_in("sd")
    second = replace(first, name="second")
    with steer(pipe, {first: [1.0, 0.0], second: [0.0, 0.0]}) as steering:
        options = asked("sd", [BANANA, DOG], (0, 1, 2, 3), num_images_per_prompt=2)
        made = steering.generate(**options, preserve=True)
    assert [bool(mask.any()) for mask in made.masks or []] == [True, True, False, False]
    assert equal(made.images, made.unsteered) == [False, False, True, True]
    assert all(made.images[i] is made.unsteered[i] for i in (2, 3))  # whatever a VAE makes of equal latents


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_the_trace_is_of_the_last_pass(strength: float, seeing: type[Seeing]) -> None:
    pipe, concept = pipe_of("sd"), concept_in("sd")
    with steer(pipe, {concept: strength}, trace=True) as steering:
        steering.generate(**asked("sd"), preserve=True)
        traced = list(steering.trace.records)
    assert len(traced) == STEPS * len(concept.interventions)
    assert any(float(record.change.max()) > 0 for record in traced) is (strength > 0)


def test_without_preserve_it_is_the_pipeline() -> None:
    pipe, concept = pipe_of("sd"), concept_in("sd")
    with steer(pipe, {concept: 1.0}) as steering:
        expected = pipe(**asked("sd", output_type="np")).images
        made = steering.generate(**asked("sd", output_type="np"))
        positional = steering.generate(
            BANANA, **{k: v for k, v in asked("sd").items() if k != "prompt"}, return_dict=False
        )
        preserved = steering.generate(
            BANANA,
            **{k: v for k, v in asked("sd").items() if k != "prompt"},
            return_dict=False,
            preserve=np.ones((1, 1)),
        )
    assert isinstance(made, Generation)
    assert np.array_equal(made.images, expected)
    assert (made.unsteered, made.masks) == (None, None)
    assert equal(positional.images, preserved.images) == [True]


@pytest.mark.parametrize("moved", [False, True], ids=["given", "moved by a callback"])
def test_what_has_no_place_in_the_picture_is_named(moved: bool, seeing: type[Seeing]) -> None:
    """And the picture is that without preserve; where nothing steers, nobody is told."""
    pipe, concept, options = pipe_of("sd"), concept_in("sd"), {}
    seeing.localises = False
    with steer(pipe, {concept: 0.0 if moved else 1.0}) as steering:
        if moved:
            callback = DSASCallback(steering, {concept.name: {0: 0.0, 1: 1.0}})
            options = {"callback_on_step_end": callback}
        expected = steering.generate(**asked("sd", **options)).images
        with pytest.warns(UserWarning, match=rf"{concept.name}: no probes that see it at some place.*preserve=mask"):
            made = steering.generate(**asked("sd", **options), preserve=True)
        steering.strengths[concept.name] = 0.0
        unsteered = steering.generate(**asked("sd"), preserve=True)
    assert equal(made.images, expected) == [True]
    assert made.masks is None
    assert equal(unsteered.images, unsteered.unsteered) == [True]


def test_a_concept_of_texts_alone_has_no_place() -> None:
    pipe, concept = pipe_of("sd"), concept_of("sd", "text")
    with steer(pipe, {concept: 1.0}) as steering, pytest.warns(UserWarning, match="none were learned"):
        steering.generate(**asked("sd"), preserve=True)


def test_a_reader_leaves_the_texts_to_the_steering() -> None:
    """Also where prompts and negative prompts are the same, and are told apart by which comes first."""
    pipe, texts = pipe_of("sd"), concept_of("sd", "text")
    seen = [item.as_read_only() for item in concept_of("sd", "cross").interventions]
    concept = with_reader(replace(texts, interventions=(*texts.interventions, *seen), edges=(), base={}))
    with steer(pipe, {concept: 1.0}) as steering, steering.muted() as wanted:
        with MaskReader(steering._layout, concept) as reader:
            steering.generate(**asked("sd", negative_prompt=BANANA))
        assert reader.localises
    assert wanted == {concept.name: {0}}


# ---- what is refused ------------------------------------------------------------------------------------------------

BAD: list[tuple[Any, str]] = [
    ("pixels", "expected False, True, 'latents', or a mask.*found 'pixels'"),
    (None, "found None"),
    (np.zeros((4, 4, 3)), r"found \[4, 4, 3\] of float64"),
    (np.zeros((4, 4), int), r"found \[4, 4\] of int64"),
    (np.zeros((0, 4)), r"found \[0, 4\]"),
    (np.full((4, 4), np.nan), "from 0 to 1, and this one from nan to nan"),
    (np.full((4, 4), 2.0), "this one from 2 to 2"),
    (torch.full((4, 4), -1.0), "this one from -1 to -1"),
    (np.ones((4, 4), np.uint8), r"from 0 to 255, and this one from 0 to 1: mask.astype\(bool\)"),
    (Image.new("RGBA", (4, 4)), r"transparency \(mode RGBA\): expected a grey picture"),
    (Image.new("RGB", (4, 4), "red"), r"in colour or with transparency \(mode RGB\)"),
    (np.ones((4, 8)), r"a mask of 8 × 4 for pictures of .*same aspect"),
    (np.ones((1, 2)), r"a mask of 2 × 1 for pictures of .*same aspect"),
    (np.ones((30, 31)), r"a mask of 31 × 30 for pictures of .*same aspect"),
    ([np.ones((4, 4))] * 2, "2 masks for 1 pictures"),
    ([], "0 masks for 1 pictures"),
]


@pytest.mark.parametrize(("mask", "message"), BAD)
def test_bad_masks_are_refused_in_one_line(mask: Any, message: str) -> None:
    with steer(pipe_of("sd"), {concept_in("sd"): 1.0}) as steering, pytest.raises(DSASError, match=message) as caught:
        steering.generate(**asked("sd"), preserve=mask)
    assert "\n" not in str(caught.value)


def test_masks_come_in_many_forms() -> None:
    half = left()
    forms = [half, half.astype(np.float16), half.astype(np.uint8) * 255, torch.from_numpy(half), Image.fromarray(half)]
    forms += [Image.fromarray(half.astype(np.uint8) * 255), Image.fromarray(half.astype(np.uint8) * 255).convert("RGB")]
    for form in forms:
        assert np.array_equal(read_masks(form), half.astype(np.float32))


def test_pipelines_that_call_nobody_are_refused_by_name() -> None:
    concept = concept_in("pixart")
    with (
        steer(pipe_of("pixart"), {concept: 1.0}) as steering,
        pytest.raises(UnsupportedError, match=r"PixArtSigmaPipeline .*generate without preserve"),
    ):
        steering.generate(**asked("pixart"), preserve=left())


@pytest.mark.parametrize("output", ["np", "pt", "latent"])
def test_other_outputs_are_refused(output: str) -> None:
    with (
        steer(pipe_of("sd"), {concept_in("sd"): 1.0}) as steering,
        pytest.raises(UnsupportedError, match=f"output_type '{output}' with preserve: expected 'pil'"),
    ):
        steering.generate(**asked("sd", output_type=output), preserve=left())


def test_more_steps_in_the_second_pass_are_refused() -> None:
    stopped = []

    def stop_once(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if not stopped:
            stopped.append(step)
            pipeline._interrupt = True
        return tensors

    with (
        steer(pipe_of("sd"), {concept_in("sd"): 1.0}) as steering,
        pytest.raises(UnsupportedError, match="more steps than the unsteered one"),
    ):
        steering.generate(**asked("sd", callback_on_step_end=stop_once), preserve=left())


def test_embeddings_that_were_steered_have_no_unsteered_picture() -> None:
    pipe = pipe_of("sd")
    with steer(pipe, {concept_of("sd", "text"): 1.0}) as steering:
        embeds, _ = pipe.encode_prompt(BANANA, "cpu", 1, False)
        with pytest.raises(DSASError, match=r"prompt_embeds were made inside the steer\(\) block.*pass prompt="):
            steering.generate(
                prompt_embeds=embeds,
                num_inference_steps=1,
                guidance_scale=1.0,
                height=SIZE,
                width=SIZE,
                preserve=left(),
            )


def test_ended_and_muted_steering() -> None:
    with steer(pipe_of("sd"), {concept_in("sd"): 1.0}) as steering:
        with steering.muted(), pytest.raises(DSASError, match="muted already"):
            steering.generate(**asked("sd"), preserve=left())
        made = steering.generate(**asked("sd"), preserve=left())
    assert equal(made.images, made.unsteered) == [False]
    with pytest.raises(DSASError, match="this steering has ended"):
        steering.generate(**asked("sd"))


def test_what_is_disabled_is_kept_whole(seeing: type[Seeing]) -> None:
    with steer(pipe_of("sd"), {concept_in("sd"): 1.0}) as steering:
        made = steering.generate(**asked("sd"), preserve=True)
        steering.disable()
        still = steering.generate(**asked("sd"), preserve=True, unsteered=made)
    assert made.is_steered
    assert not still.is_steered
    assert not still.masks[0].any()


@pytest.mark.usefixtures("fresh_graphs")
def test_a_compiled_denoiser_takes_a_mask(tmp_path: Any) -> None:
    pipe, concept = models.build("sd", tmp_path), with_reader(concept_in("sd"))
    with steer(pipe, {concept: 1.0}) as steering:
        eager = steering.generate(**asked("sd"), preserve=left())
        compile_denoiser(pipe)
        compiled = steering.generate(**asked("sd"), preserve=left())
        torch._dynamo.config.skip_nnmodule_hook_guards = True  # as it is before anybody has steered
        with pytest.raises(UnsupportedError, match=r"cannot be attached now; give a mask, preserve=mask"):
            steering.generate(**asked("sd"), preserve=True)
    for made, expected in ((compiled.images, eager.images), (compiled.unsteered, eager.unsteered)):
        assert np.abs(pixels(made[0]) - pixels(expected[0])).max() <= 1


def test_other_pictures_and_latents_are_another_call() -> None:
    """Also by the same name, size and seed; equal ones are the same, and defaults may be given or not."""
    pipe, concept = other("StableDiffusionImg2ImgPipeline", "sd"), replace(concept_in("sd"), base={}, learned_on={})
    options = sized(type(pipe).__name__, {"image": PICTURE, "strength": 0.7, "num_inference_steps": 4})

    def draw(steering: Any, **more: Any) -> Generation:
        generator = torch.Generator().manual_seed(0)
        made: Generation = steering.generate(BANANA, generator=generator, **{**options, **more}, preserve=left())
        return made

    with steer(pipe, {concept: 1.0}) as steering:
        first = draw(steering)
        again = draw(steering, image=PICTURE.copy(), eta=0.0, unsteered=first)
        assert equal(again.images, first.images) == [True]
        array = np.asarray(PICTURE, np.float32)[None] / 255
        for image in (PICTURE.point(lambda value: 255 - value), array, torch.from_numpy(array).permute(0, 3, 1, 2)):
            with pytest.raises(DSASError, match="that call had another image: give the same"):
                draw(steering, image=image, unsteered=first)
    with steer(pipe_of("sd"), {concept_in("sd"): 1.0}) as steering:
        shape = (1, pipe_of("sd").unet.config.in_channels, 8, 8)
        size = {"height": 8 * pipe_of("sd").vae_scale_factor, "width": 8 * pipe_of("sd").vae_scale_factor}
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16().float()
        made = steering.generate(**asked("sd", latents=noise, **size), preserve=left())
        steering.generate(**asked("sd", latents=noise.clone(), **size), preserve=left(), unsteered=made)
        for latents in (-noise, noise.bfloat16()):
            with pytest.raises(DSASError, match="another latents"):
                steering.generate(**asked("sd", latents=latents, **size), preserve=left(), unsteered=made)


def test_another_pipeline_or_scheduler_is_another_call() -> None:
    concept = concept_in("sd")
    pipes = [with_sampler("DDIMScheduler"), with_sampler("DDIMScheduler")]
    with steer(pipes[0], {concept: 1.0}) as steering:
        first = steering.generate(**asked("sd"), preserve=left())
        own = pipes[0].scheduler
        for scheduler in (
            diffusers.EulerDiscreteScheduler.from_config(own.config),
            diffusers.DDIMScheduler.from_config(own.config, beta_end=0.5),
        ):
            pipes[0].scheduler = scheduler
            with pytest.raises(DSASError, match="another scheduler"):
                steering.generate(**asked("sd"), preserve=left(), unsteered=first)
    with (
        steer(pipes[1], {concept: 1.0}) as steering,
        pytest.raises(DSASError, match="another pipeline"),
    ):
        steering.generate(**asked("sd"), preserve=left(), unsteered=first)


# ---- the concept that ships ------------------------------------------------------------------------------------------


@cache
def builtin() -> Any:
    pipe = load_pipeline("builtin:emoji", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_concept_that_ships_leaves_the_rest_alone() -> None:
    prompts = ["a banana and a dog on the grass", "a dog"]

    def options(*which: int) -> dict[str, Any]:
        generators = [torch.Generator().manual_seed(10 + i) for i in which]
        return {"generator": generators, "num_inference_steps": 12, "guidance_scale": 3.0}

    base = builtin()(prompts, **options(0, 1)).images
    with steer(builtin(), {"builtin:banana-blur": 1.0}) as steering:
        plain = steering.generate(prompts, **options(0, 1)).images
        made = steering.generate(prompts, **options(0, 1), preserve=True)
        single = steering.generate(prompts[0], **options(0), preserve=True)
    assert equal(made.unsteered, base) == [True, True]
    assert equal(made.images, base) == [False, True]
    outside = made.masks[0] == 0
    before, after = (np.abs(pixels(one[0]) - pixels(base[0]))[outside].mean() for one in (plain, made.images))
    assert after < before / 4
    assert np.abs(pixels(made.images[0]) - pixels(base[0]))[~outside].mean() > 5
    assert np.abs(pixels(single.images[0]) - pixels(made.images[0])).max() <= 1
