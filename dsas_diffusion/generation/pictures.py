"""Drawing pictures reproducibly: every prompt has a seed of its own, so a picture does not depend on its batch."""

from __future__ import annotations

import hashlib
import math
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image

from dsas_core.errors import UnsupportedError
from dsas_core.model.fingerprints import weights_digest
from dsas_core.utils.progress import heartbeat
from dsas_core.utils.versions import versions

from ..pipelines.adapter import PipelineAdapter
from .settings import Settings, guidance_argument, use_scheduler


def model_key(adapter: PipelineAdapter) -> dict[str, Any]:
    """What latents depend on beside prompts and settings, as plain data: digests of weights and scheduler, versions."""
    scheduler = adapter.pipe.scheduler
    config = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    content = repr((type(scheduler).__name__, sorted(config.items(), key=str)))
    return {
        "model": weights_digest(adapter.roots),
        "scheduler": hashlib.sha256(content.encode()).hexdigest()[:20],
        "versions": versions("dsas-diffusion", "diffusers", "transformers"),
    }


def noise_like(latents: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
    """Noise of the shape of latents [n, …], each from its own seed, drawn on the CPU.

    Example:
        >>> latents = torch.zeros(2, 4, 8, 8)
        >>> torch.equal(noise_like(latents, [1, 2])[1:], noise_like(latents[1:], [2]))
        True
    """
    shape = (1, *latents.shape[1:])
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.cat(noise).to(latents)


def seeds_for(prompts: Sequence[object], seed: int) -> list[int]:
    """One seed per prompt, from its place and the run's seed: the same place has the same noise on every side.

    Example:
        >>> seeds_for(["a banana", "a dog"], 0) == seeds_for(["a cat", "a car"], 0)
        True
    """
    return [seed_at(seed, i) for i in range(len(prompts))]


def seed_at(seed: int, place: int) -> int:
    """The seed of the noise at one place of a run, see `seeds_for`."""
    return zlib.crc32(f"{seed}/{place}".encode())


@torch.no_grad()
def latents_of(
    adapter: PipelineAdapter,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: Settings,
    batch: int = 8,
    negative: str | None = None,
) -> torch.Tensor:
    """Denoised latents [n, channels, height, width] of each prompt; of FLUX and Qwen packed, [n, patches, width]."""
    return torch.cat(list(latent_batches(adapter, prompts, seeds, settings, batch, negative)))


@torch.no_grad()
def latent_batches(
    adapter: PipelineAdapter,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: Settings,
    batch: int = 8,
    negative: str | None = None,
) -> Iterator[torch.Tensor]:
    """As `latents_of`, batch by batch.

    Args:
        adapter: of the pipeline.
        prompts: what to draw.
        seeds: of the noise, one per prompt.
        settings: how to draw.
        batch: prompts per call of the pipeline.
        negative: a negative prompt for all, or None.
    """
    for result in draw_batches(adapter.pipe, adapter, prompts, seeds, settings, batch, negative, output_type="latent"):
        yield result.images


def draw_batches(
    call: Callable[..., Any],
    adapter: PipelineAdapter,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: Settings,
    batch: int = 8,
    negative: str | None = None,
    **more: Any,
) -> Iterator[Any]:
    """What calls of a pipeline return, batch by batch.

    Args:
        call: the pipeline, or what takes its arguments and calls it, as `generate` of a steering does.
        adapter: of the pipeline.
        prompts: what to draw.
        seeds: of the noise, one per prompt.
        settings: how to draw.
        batch: prompts per call.
        negative: a negative prompt for all, or None.
        more: further arguments of every call.
    """
    scale = guidance_argument(adapter)
    options: dict[str, Any] = {scale: settings.guidance, "num_inference_steps": settings.steps, **more}
    if scale == "true_cfg_scale" and settings.guidance > 1 and negative is None:
        negative = " "  # without one it would not be guided
    if settings.sides is not None:
        width, height = settings.sides
        options.update(height=height, width=width)
        if "use_resolution_binning" in adapter.call_parameters:
            options["use_resolution_binning"] = False  # it would draw in another size, and resize
    for start in range(0, len(prompts), batch):
        heartbeat()
        texts = list(prompts[start : start + batch])
        if negative is not None:
            options["negative_prompt"] = [negative] * len(texts)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[start : start + batch]]
        with use_scheduler(adapter, settings.scheduler):
            result = call(prompt=texts, generator=generators, **options)
        yield result


def check_negative(adapter: PipelineAdapter, settings: Settings) -> None:
    """Refuse a negative prompt that a pipeline does not read, and warn where guidance does not heed it.

    Raises:
        UnsupportedError: a pipeline without negative prompts, or one that reads them with an argument of its own.
    """
    parameters, kind = adapter.call_parameters, type(adapter.pipe).__name__
    if "negative_prompt" not in parameters:
        raise UnsupportedError(f"{kind} takes no negative prompt: leave it out")
    if "true_cfg_scale" in parameters and guidance_argument(adapter) != "true_cfg_scale":
        raise UnsupportedError(f"{kind} reads a negative prompt only with its own true_cfg_scale: leave it out")
    if settings.guidance <= 1:
        warnings.warn(
            f"at guidance {settings.guidance:g} a negative prompt has no effect: raise guidance above 1", stacklevel=2
        )


def size_of(adapter: PipelineAdapter, latents: torch.Tensor, sides: tuple[int, int] | None = None) -> tuple[int, int]:
    """Height and width of the pictures that latents become, in pixels.

    Args:
        adapter: of the pipeline.
        latents: of pictures.
        sides: (width, height), which packed latents do not tell; None where they are of squares.
    """
    scale: int = adapter.pipe.vae_scale_factor
    if latents.ndim == 3:
        if sides is not None:
            return sides[1], sides[0]
        side = 2 * math.isqrt(latents.shape[1]) * scale
        return side, side
    height, width = latents.shape[-2:]
    return height * scale, width * scale


@torch.no_grad()
def decode(
    adapter: PipelineAdapter, latents: torch.Tensor, batch: int = 32, sides: tuple[int, int] | None = None
) -> list[Image.Image]:
    """Decode latents, as `latents_of` returns them, to pictures; `sides` as for `size_of`."""
    vae = adapter.pipe.vae
    if not bool(latents.isfinite().all()):
        warnings.warn(
            "pictures beyond all numbers come out black: lower the strengths, or load the model in another dtype",
            stacklevel=2,
        )
    dtype = vae.dtype
    overflows = dtype == torch.float16 and bool(vae.config.get("force_upcast"))  # as SDXL's own does in float16
    if overflows:
        vae.to(torch.float32)
    pictures: list[Image.Image] = []
    try:
        for chunk in latents.split(batch):
            pixels = vae.decode(_vae_input(adapter, chunk.to(vae.dtype), sides), return_dict=False)[0]
            pixels = pixels[:, :, 0] if pixels.ndim == 5 else pixels
            pictures += adapter.pipe.image_processor.postprocess(pixels, output_type="pil")
    finally:
        if overflows:
            vae.to(dtype)
    return pictures


def _vae_input(adapter: PipelineAdapter, latents: torch.Tensor, sides: tuple[int, int] | None = None) -> torch.Tensor:
    """Latents as the VAE takes them: unpacked, and not standardised."""
    pipe, vae, config = adapter.pipe, adapter.pipe.vae, adapter.pipe.vae.config
    if hasattr(pipe, "_unpatchify_latents"):
        if latents.ndim == 4:  # FLUX.2 [klein] has done it
            return latents
        rows = math.isqrt(latents.shape[1]) if sides is None else sides[1] // (2 * pipe.vae_scale_factor)
        mean, deviation = _patch_scale(vae)
        return pipe._unpatchify_latents(latents.transpose(1, 2).unflatten(2, (rows, -1)) * deviation + mean)
    if latents.ndim == 3:
        latents = pipe._unpack_latents(latents, *size_of(adapter, latents, sides), pipe.vae_scale_factor)
    if config.get("latents_mean") is not None and config.get("latents_std") is not None:
        shape = (-1, *(1,) * (latents.ndim - 2))
        mean, deviation = (latents.new_tensor(config[name]).view(shape) for name in ("latents_mean", "latents_std"))
        return latents * deviation / config.get("scaling_factor", 1.0) + mean
    return latents / config.scaling_factor + (config.get("shift_factor") or 0.0)


def pack_latents(adapter: PipelineAdapter, latents: torch.Tensor) -> torch.Tensor:
    """Latents as the denoiser takes them, where the pipeline returns them as the VAE does: FLUX.2 [klein]."""
    pipe = adapter.pipe
    if latents.ndim == 3 or not hasattr(pipe, "_patchify_latents"):
        return latents
    mean, deviation = _patch_scale(pipe.vae)
    return pipe._pack_latents((pipe._patchify_latents(latents) - mean) / deviation)


def _patch_scale(vae: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the patches of FLUX.2's latents."""
    variance = vae.bn.running_var + vae.config.batch_norm_eps
    return vae.bn.running_mean[:, None, None], variance.sqrt()[:, None, None]


def pictures_of(
    adapter: PipelineAdapter,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: Settings,
    batch: int = 8,
    negative: str | None = None,
) -> list[Image.Image]:
    """Draw a picture of each prompt; arguments as for `latent_batches`.

    Example:
        >>> from dsas_diffusion import load_pipeline
        >>> from dsas_diffusion.pipelines.adapter import adapt
        >>> adapter = adapt(load_pipeline("builtin:emoji", device="cpu"))
        >>> [picture.size for picture in pictures_of(adapter, ["a banana"], [7], Settings(steps=1, guidance=3.0))]
        [(64, 64)]
    """
    return decode(adapter, latents_of(adapter, prompts, seeds, settings, batch, negative), sides=settings.sides)
