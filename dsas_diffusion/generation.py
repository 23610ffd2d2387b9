"""Making pictures reproducibly: every prompt has a seed of its own, so a picture does not depend on its batch."""

from __future__ import annotations

import hashlib
import inspect
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from dsas_core.errors import DSASError
from dsas_core.fingerprints import weights_digest
from dsas_core.progress import pulse
from dsas_core.provenance import versions

from .families import roots_of
from .load import is_builtin

#: of denoising, where a model's own number is larger
MOST_STEPS = 30
#: a picture is unchanged up to this mean absolute difference, of 255
UNCHANGED = 2.0
#: what only those pipelines are told that draw from a picture, or follow one
_PICTURED = ("strength", "mask_image", "control_image", "controlnet_conditioning_scale", "image_guidance_scale")
#: schedulers to try a concept under that was learned under another
_SCHEDULERS = ("UniPCMultistepScheduler", "EulerDiscreteScheduler", "DDIMScheduler", "DEISMultistepScheduler")


@dataclass(frozen=True)
class Settings:
    """How pictures are made.

    Args:
        steps: of denoising. guidance: its scale, which pipelines call `guidance_scale`, Qwen-Image's
            `true_cfg_scale`.
        scheduler: of diffusers, by class name; None is the pipeline's own.
        size: pixels of a side; None is the pipeline's own.
    """

    steps: int
    guidance: float
    scheduler: str | None = None
    size: int | None = None


def settings_of(
    pipe: Any, steps: int | None = None, guidance: float | None = None, size: int | None = None
) -> Settings:
    """What the user asked for, else what suits the model: 12 steps at guidance 3 for the built-in one.

    Of others it is what the pipeline does when nobody says otherwise, though in 30 steps at most.

    Raises:
        DSASError: a pipeline that draws from more than a text.
    """
    if pictured := [name for name in _PICTURED if name in inspect.signature(type(pipe).__call__).parameters]:
        raise DSASError(
            f"{type(pipe).__name__} draws from pictures, too (it takes {pictured[0]}), and here are only texts: take "
            "diffusers' AutoPipelineForText2Image.from_pipe(pipe), which has the same parts"
        )
    if is_builtin(pipe):
        usual = Settings(12, 3.0)
    else:
        own = inspect.signature(type(pipe).__call__).parameters
        usual = Settings(min(MOST_STEPS, own["num_inference_steps"].default), own[_scale(pipe)].default)
    return Settings(steps or usual.steps, usual.guidance if guidance is None else guidance, size=size)


def _scale(pipe: Any) -> str:
    """The argument that says how much guidance there is: the true one, where the pipeline's own number asks for it."""
    own = inspect.signature(type(pipe).__call__).parameters
    true = own.get("true_cfg_scale")
    return "guidance_scale" if true is None or true.default <= 1 else "true_cfg_scale"


def other_schedulers(pipe: Any) -> list[str]:
    """Schedulers that the pipeline can take in place of its own, of those that people use; at most two."""
    own = pipe.scheduler
    flows = bool(getattr(own.config, "use_flow_sigmas", False))
    found = [
        kind.__name__
        for kind in own.compatibles
        if type(own) is not kind
        and kind.__name__ in _SCHEDULERS
        and (not flows or "use_flow_sigmas" in inspect.signature(kind.__init__).parameters)
    ]
    return sorted(found, key=_SCHEDULERS.index)[:2]


@contextmanager
def _scheduled(pipe: Any, name: str | None) -> Iterator[None]:
    """The pipeline with another scheduler, set up as its own is."""
    own = pipe.scheduler
    if name is not None:
        kinds = {kind.__name__: kind for kind in own.compatibles}
        if name not in kinds:
            raise DSASError(f"scheduler {name!r} does not go with {type(own).__name__}: try {', '.join(sorted(kinds))}")
        pipe.scheduler = kinds[name].from_config(own.config)
    try:
        yield
    finally:
        pipe.scheduler = own


def made_by(pipe: Any) -> dict[str, Any]:
    """What latents depend on beside prompts and settings, as plain data."""
    scheduler = {key: value for key, value in pipe.scheduler.config.items() if not key.startswith("_")}
    told = repr((type(pipe.scheduler).__name__, sorted(scheduler.items(), key=str)))
    return {
        "model": weights_digest(roots_of(pipe)),
        "scheduler": hashlib.sha256(told.encode()).hexdigest()[:20],
        "versions": versions("dsas-diffusion", "diffusers", "transformers"),
    }


def noise_like(latents: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
    """Noise of the shape of latents [n, …], each from its own seed, drawn on the CPU."""
    shape = (1, *latents.shape[1:])
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.cat(noise).to(latents)


def seeds_for(prompts: Sequence[str], seed: int) -> list[int]:
    """One seed per prompt, from its place and the run's seed: the same place gives the same noise on every side."""
    return [zlib.crc32(f"{seed}/{i}".encode()) for i in range(len(prompts))]


@torch.no_grad()
def latents_of(
    pipe: Any, prompts: Sequence[str], seeds: Sequence[int], settings: Settings, batch: int = 8
) -> torch.Tensor:
    """Denoised latents [n, channels, height, width] of each prompt; of FLUX and Qwen packed, [n, patches, width]."""
    return torch.cat(list(latent_batches(pipe, prompts, seeds, settings, batch)))


@torch.no_grad()
def latent_batches(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: Settings,
    batch: int = 8,
    negative: str | None = None,
) -> Iterator[torch.Tensor]:
    """As `latents_of`, batch by batch; with a negative prompt where one is given."""
    scale = _scale(pipe)
    more: dict[str, Any] = {scale: settings.guidance}
    if settings.size is not None:
        more.update(height=settings.size, width=settings.size)
    if scale == "true_cfg_scale" and settings.guidance > 1 and negative is None:
        negative = " "  # without one it would not be guided
    if settings.size is not None and "use_resolution_binning" in inspect.signature(pipe.__call__).parameters:
        more["use_resolution_binning"] = False  # it would draw at another size, and make that of it afterwards
    for start in range(0, len(prompts), batch):
        pulse()
        texts = list(prompts[start : start + batch])
        if negative is not None:
            more["negative_prompt"] = [negative] * len(texts)
        with _scheduled(pipe, settings.scheduler):
            made = pipe(
                prompt=texts,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds[start : start + batch]],
                num_inference_steps=settings.steps,
                output_type="latent",
                **more,
            )
        yield made.images


def size_of(pipe: Any, latents: torch.Tensor) -> tuple[int, int]:
    """Height and width of the pictures that latents become; packed ones are of squares."""
    if latents.ndim == 3:
        side = 2 * math.isqrt(latents.shape[1]) * pipe.vae_scale_factor
        return side, side
    height, width = latents.shape[-2:]
    return height * pipe.vae_scale_factor, width * pipe.vae_scale_factor


@torch.no_grad()
def decode(pipe: Any, latents: torch.Tensor, batch: int = 32) -> list[Image.Image]:
    """Latents to PIL images."""
    vae = pipe.vae
    own = vae.dtype
    overflows = own == torch.float16 and bool(vae.config.get("force_upcast"))  # as SDXL's own does in float16
    if overflows:
        vae.to(torch.float32)
    pictures: list[Image.Image] = []
    try:
        for chunk in latents.split(batch):
            made = vae.decode(_codes(pipe, chunk.to(vae.dtype)), return_dict=False)[0]
            made = made[:, :, 0] if made.ndim == 5 else made
            pictures += pipe.image_processor.postprocess(made, output_type="pil")
    finally:
        if overflows:
            vae.to(own)
    return pictures


def _codes(pipe: Any, latents: torch.Tensor) -> torch.Tensor:
    """Latents as the VAE takes them: unpacked, and not standardised."""
    vae, config = pipe.vae, pipe.vae.config
    if hasattr(pipe, "_unpatchify_latents"):
        if latents.ndim == 4:  # FLUX.2 [klein] has done it
            return latents
        side = math.isqrt(latents.shape[1])
        mean, deviation = _patch_scale(vae)
        return pipe._unpatchify_latents(latents.transpose(1, 2).unflatten(2, (side, side)) * deviation + mean)
    if latents.ndim == 3:
        latents = pipe._unpack_latents(latents, *size_of(pipe, latents), pipe.vae_scale_factor)
    if config.get("latents_mean") is not None and config.get("latents_std") is not None:
        shape = (-1, *(1,) * (latents.ndim - 2))
        mean, deviation = (latents.new_tensor(config[name]).view(shape) for name in ("latents_mean", "latents_std"))
        return latents * deviation / config.get("scaling_factor", 1.0) + mean
    return latents / config.scaling_factor + (config.get("shift_factor") or 0.0)


def packed(pipe: Any, latents: torch.Tensor) -> torch.Tensor:
    """Latents as the denoiser takes them, where the pipeline gives them as the VAE does: FLUX.2 [klein]."""
    if latents.ndim == 3 or not hasattr(pipe, "_patchify_latents"):
        return latents
    mean, deviation = _patch_scale(pipe.vae)
    return pipe._pack_latents((pipe._patchify_latents(latents) - mean) / deviation)


def _patch_scale(vae: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of the patches of FLUX.2's latents."""
    variance = vae.bn.running_var + vae.config.batch_norm_eps
    return vae.bn.running_mean[:, None, None], variance.sqrt()[:, None, None]


def pictures_of(
    pipe: Any, prompts: Sequence[str], seeds: Sequence[int], settings: Settings, batch: int = 8
) -> list[Image.Image]:
    """A picture of each prompt."""
    return decode(pipe, latents_of(pipe, prompts, seeds, settings, batch))


def change(base: Sequence[Image.Image], made: Sequence[Image.Image]) -> np.ndarray:
    """Mean absolute pixel difference of each pair of pictures, of 255, float [n]."""
    pairs = zip(base, made, strict=True)
    return np.array([np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)).mean() for a, b in pairs])
