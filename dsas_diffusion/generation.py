"""Making pictures reproducibly: every prompt has a seed of its own, so a picture does not depend on its batch."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from dsas_core.errors import DSASError

from .families import family_of
from .load import BUILTIN

#: a picture is unchanged up to this mean absolute difference, of 255
UNCHANGED = 2.0
#: schedulers to try a concept under that was learned under another
_SCHEDULERS = ("UniPCMultistepScheduler", "EulerDiscreteScheduler", "DDIMScheduler", "DEISMultistepScheduler")


@dataclass(frozen=True)
class Settings:
    """Denoising steps, guidance scale, and a scheduler of diffusers by class name; None is the pipeline's own."""

    steps: int
    guidance: float
    scheduler: str | None = None


def settings_of(pipe: Any, steps: int | None = None, guidance: float | None = None) -> Settings:
    """What the user asked for, else what suits the model: 12 steps at guidance 3 for the built-in one, 30 at 7.5."""
    builtin = str(getattr(pipe, "name_or_path", "")) in {str(path) for path in BUILTIN.values()}
    usual = Settings(12, 3.0) if builtin else Settings(30, 7.5)
    return Settings(steps or usual.steps, usual.guidance if guidance is None else guidance)


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


def noise_for(pipe: Any, seeds: Sequence[int]) -> torch.Tensor:
    """Starting latents [n, channels, height, width], each from its own seed, drawn on the CPU."""
    unet = getattr(pipe, family_of(pipe).denoiser)
    config = getattr(unet, "_orig_mod", unet).config
    size = config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    shape = (1, config.in_channels, height, width)
    return torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def seeds_for(prompts: Sequence[str], seed: int) -> list[int]:
    """One seed per prompt, from its place and the run's seed: the same place gives the same noise on every side."""
    return [zlib.crc32(f"{seed}/{i}".encode()) for i in range(len(prompts))]


@torch.no_grad()
def latents_of(
    pipe: Any, prompts: Sequence[str], seeds: Sequence[int], settings: Settings, batch: int = 8
) -> torch.Tensor:
    """Denoised latents [n, channels, height, width] of each prompt."""
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
    denoiser = getattr(pipe, family_of(pipe).denoiser)
    for start in range(0, len(prompts), batch):
        noise = noise_for(pipe, seeds[start : start + batch]).to(denoiser.device, denoiser.dtype)
        texts = list(prompts[start : start + batch])
        with _scheduled(pipe, settings.scheduler):
            made = pipe(
                texts,
                negative_prompt=None if negative is None else [negative] * len(texts),
                latents=noise,
                num_inference_steps=settings.steps,
                guidance_scale=settings.guidance,
                output_type="latent",
            )
        yield made.images


@torch.no_grad()
def decode(pipe: Any, latents: torch.Tensor, batch: int = 32) -> list[Image.Image]:
    """Latents to PIL images."""
    pictures: list[Image.Image] = []
    for chunk in latents.split(batch):
        decoded = pipe.vae.decode(chunk.to(pipe.vae.dtype) / pipe.vae.config.scaling_factor, return_dict=False)[0]
        pictures += pipe.image_processor.postprocess(decoded, output_type="pil")
    return pictures


def pictures_of(
    pipe: Any, prompts: Sequence[str], seeds: Sequence[int], settings: Settings, batch: int = 8
) -> list[Image.Image]:
    """A picture of each prompt."""
    return decode(pipe, latents_of(pipe, prompts, seeds, settings, batch))


def change(base: Sequence[Image.Image], made: Sequence[Image.Image]) -> np.ndarray:
    """Mean absolute pixel difference of each pair of pictures, of 255, float [n]."""
    pairs = zip(base, made, strict=True)
    return np.array([np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)).mean() for a, b in pairs])
