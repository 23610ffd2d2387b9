"""Features of generated pictures, from the hidden states of the unsteered denoiser, for classifying outcomes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from dsas_core.model.hooks import Call, visit
from dsas_core.model.sites import Site

from ...generation.pictures import latents_of, noise_like, pack_latents
from ...generation.settings import Settings
from ...pipelines.adapter import PipelineAdapter
from ...pipelines.batch_layout import SAMPLE, TIMESTEP, BatchLayout

#: timestep, of 1000, that pictures are noised to
CLASSIFIER_TIMESTEP = 250.0


class DenoiserFeatures:
    """Means and standard deviations of the denoiser's block outputs, of noised pictures with an empty prompt.

    Each picture's latents are noised to a timestep of about 250.

    Args:
        adapter: of the pipeline.
        settings: of the pictures, whose size the denoiser expects.

    Example:
        >>> from dsas_diffusion import load_pipeline
        >>> from dsas_diffusion.generation.settings import settings_of
        >>> from dsas_diffusion.pipelines.adapter import adapt
        >>> adapter = adapt(load_pipeline("builtin:emoji"))
        >>> settings = settings_of(adapter, 2)
        >>> latents = latents_of(adapter, ["a banana"], [0], settings, 1)
        >>> DenoiserFeatures(adapter, settings)(latents).shape[0]
        1
    """

    def __init__(self, adapter: PipelineAdapter, settings: Settings) -> None:
        self.adapter, self.settings = adapter, settings
        self.sites = adapter.find_sites(adapter.family.classifier_sites)
        self._calls: dict[int, RecordedCall] = {}

    @torch.no_grad()
    def __call__(self, latents: torch.Tensor, batch: int = 32) -> torch.Tensor:
        """Features of each picture, float64 [n, features]."""
        features = []
        for start in range(0, len(latents), batch):
            clean = pack_latents(self.adapter, latents[start : start + batch])
            call = self._call(len(clean))
            noise = noise_like(clean, range(start, start + len(clean)))
            mixed, timestep = noised(self.adapter.pipe.scheduler, clean, noise)
            recorder = _MeanStdRecorder()
            with visit(self.adapter.roots, self.sites, recorder, {self.adapter.family.denoiser: call.describe}):
                call.replay(mixed, timestep)
            features.append(torch.cat(recorder.features, 1).float().cpu())
        return torch.cat(features).double()

    def _call(self, count: int) -> RecordedCall:
        """How the pipeline calls its denoiser for so many pictures of an empty prompt, without guidance."""
        if count not in self._calls:
            call, settings = RecordedCall(self.adapter), replace(self.settings, steps=1, guidance=0.0)
            with call.recording():
                latents_of(self.adapter, [""] * count, [0] * count, settings, count)
            self._calls[count] = call
        return self._calls[count]


def noised(scheduler: Any, clean: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Noise latents to a timestep of about 250, scaled as the denoiser expects them.

    Flow matching interpolates linearly; other schedulers add noise themselves, at timesteps of their own.

    Args:
        scheduler: of the pipeline.
        clean: latents.
        noise: noise of the same shape.

    Returns:
        The noisy latents, and their timestep.

    Example:
        >>> from diffusers import FlowMatchEulerDiscreteScheduler
        >>> noised(FlowMatchEulerDiscreteScheduler(), torch.zeros(1), torch.ones(1))
        (tensor([0.2500]), 250.0)
    """
    if hasattr(scheduler, "scale_noise"):
        share = CLASSIFIER_TIMESTEP / scheduler.config.num_train_timesteps
        return (1 - share) * clean + share * noise, CLASSIFIER_TIMESTEP
    scheduler.set_timesteps(50)
    timestep = min(scheduler.timesteps, key=lambda t: abs(float(t) - CLASSIFIER_TIMESTEP))
    mixed = scheduler.add_noise(clean, noise, timestep.expand(len(clean)).to(clean.device))
    return scheduler.scale_model_input(mixed, timestep), float(timestep)


class RecordedCall:
    """A call of a pipeline's denoiser, recorded to be repeated with other latents and at another timestep.

    Args:
        adapter: of the pipeline.
    """

    def __init__(self, adapter: PipelineAdapter) -> None:
        self.adapter = adapter
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self._layout = BatchLayout(adapter)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the denoiser's first call in the block."""

        def record(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
            if not self.args and not self.kwargs:
                self.args, self.kwargs = args, kwargs
            return self.describe(args, kwargs)

        with self._layout, visit(self.adapter.roots, [], _MeanStdRecorder(), {self.adapter.family.denoiser: record}):
            yield

    def describe(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        return self._layout.prompt_call(args, kwargs)

    def replay(self, latents: torch.Tensor, timestep: float) -> None:
        """Run the denoiser on other latents, at a timestep of 0 (clean) to 1000 (noise)."""
        args: Any = list(self.args)
        kwargs: Any = dict(self.kwargs)
        noisy, clean = self.adapter.timestep_range
        own_timestep = torch.tensor(clean + timestep / 1000 * (noisy - clean))
        for place, names, value in ((0, SAMPLE, latents), (1, TIMESTEP, own_timestep)):
            arguments, key = next(((kwargs, name) for name in names if name in kwargs), (args, place))
            old = arguments[key]
            if isinstance(old, list):
                arguments[key] = [new.to(item).view_as(item) for new, item in zip(value, old, strict=True)]
            else:
                old = torch.as_tensor(old)
                new = value.to(old)
                if new.ndim:  # PAG runs each picture twice
                    arguments[key] = new.repeat(len(old) // len(new), *[1] * (new.ndim - 1))
                else:
                    arguments[key] = new.expand(old.shape)
        self.adapter.denoiser(*args, **kwargs)


class _MeanStdRecorder:
    """A visitor that keeps mean and standard deviation over positions, of rows with a prompt."""

    def __init__(self) -> None:
        self.features: list[torch.Tensor] = []
        self._steered = torch.zeros(0)

    def begin(self, root: str, call: Call) -> None:
        self._steered = call.steered > 0

    def visit(self, site: Site, x: torch.Tensor) -> None:
        own = x[self._steered.to(x.device)]
        self.features += [own.mean(1), own.std(1)]
