"""What the unsteered denoiser sees in finished pictures: features by which outcomes are told apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from dsas_core.model.hooks import Call, visit
from dsas_core.model.sites import Site

from ..generation.pictures import latents_of, noise_like, pack_latents
from ..generation.settings import Settings
from ..pipelines.adapter import PipelineAdapter
from ..pipelines.batch_layout import SAMPLE, TIMESTEP, BatchLayout

CLASSIFIER_TIMESTEP = 250.0


class DenoiserFeatures:
    """Means and deviations of the denoiser's block outputs, of pictures that it is shown with an empty prompt.

    Each picture's latents are noised to a timestep of about 250 for that.

    Args:
        settings: of the pictures; the denoiser is to see them at their size.
    """

    def __init__(self, adapter: PipelineAdapter, settings: Settings) -> None:
        self.adapter, self.settings = adapter, settings
        self.sites = adapter.find_sites(adapter.family.classifier_sites)
        self._calls: dict[int, RecordedCall] = {}

    @torch.no_grad()
    def __call__(self, latents: torch.Tensor, batch: int = 32) -> torch.Tensor:
        """Features of each picture, float64 [n, features]."""
        rows = []
        for start in range(0, len(latents), batch):
            clean = pack_latents(self.adapter, latents[start : start + batch])
            call = self._call(len(clean))
            noise = noise_like(clean, range(start, start + len(clean)))
            mixed, timestep = noised(self.adapter.pipe.scheduler, clean, noise)
            recorder = _MeanStdRecorder()
            with visit(self.adapter.roots, self.sites, recorder, {self.adapter.family.denoiser: call.describe}):
                call.replay(mixed, timestep)
            rows.append(torch.cat(recorder.features, 1).float().cpu())
        return torch.cat(rows).double()

    def _call(self, count: int) -> RecordedCall:
        """How the pipeline calls its denoiser for so many pictures of no prompt, without guidance."""
        if count not in self._calls:
            call, settings = RecordedCall(self.adapter), replace(self.settings, steps=1, guidance=0.0)
            with call.recording():
                latents_of(self.adapter, [""] * count, [0] * count, settings, count)
            self._calls[count] = call
        return self._calls[count]


def noised(scheduler: Any, clean: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Latents with as much noise on them as at a timestep of about 250, as the denoiser takes them, and that timestep.

    Flow matching mixes them on a straight line; other schedulers know how they do it, at timesteps of their own.
    """
    if hasattr(scheduler, "scale_noise"):
        share = CLASSIFIER_TIMESTEP / scheduler.config.num_train_timesteps
        return (1 - share) * clean + share * noise, CLASSIFIER_TIMESTEP
    scheduler.set_timesteps(50)
    timestep = min(scheduler.timesteps, key=lambda t: abs(float(t) - CLASSIFIER_TIMESTEP))
    mixed = scheduler.add_noise(clean, noise, timestep.expand(len(clean)).to(clean.device))
    return scheduler.scale_model_input(mixed, timestep), float(timestep)


class RecordedCall:
    """One call of a pipeline's denoiser, kept to be made again with other latents and at another timestep."""

    def __init__(self, adapter: PipelineAdapter) -> None:
        self.adapter = adapter
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self._rows = BatchLayout(adapter)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keep the denoiser's first call."""

        def keep(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
            if not self.args and not self.kwargs:
                self.args, self.kwargs = args, kwargs
            return self.describe(args, kwargs)

        with self._rows, visit(self.adapter.roots, [], _MeanStdRecorder(), {self.adapter.family.denoiser: keep}):
            yield

    def describe(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        return self._rows.prompt_call(args, kwargs)

    def replay(self, latents: torch.Tensor, timestep: float) -> None:
        """Have the denoiser look at other latents, at a timestep of 0 (clean) to 1000 (noise)."""
        args: Any = list(self.args)
        kwargs: Any = dict(self.kwargs)
        noisy, clean = self.adapter.timestep_range
        own_timestep = torch.tensor(clean + timestep / 1000 * (noisy - clean))
        for place, names, value in ((0, SAMPLE, latents), (1, TIMESTEP, own_timestep)):
            held, key = next(((kwargs, name) for name in names if name in kwargs), (args, place))
            if isinstance(held[key], list):
                held[key] = [item.to(there).view_as(there) for item, there in zip(value, held[key], strict=True)]
            else:
                there = torch.as_tensor(held[key])
                if value.ndim:  # PAG asks twice of each picture
                    held[key] = value.to(there).repeat(len(there) // len(value), *[1] * (value.ndim - 1))
                else:
                    held[key] = value.to(there).expand(there.shape)
        self.adapter.denoiser(*args, **kwargs)


class _MeanStdRecorder:
    """A visitor that keeps mean and deviation over positions, of rows that have a prompt."""

    def __init__(self) -> None:
        self.features: list[torch.Tensor] = []
        self._rows = torch.zeros(0)

    def begin(self, root: str, call: Call) -> None:
        self._rows = call.steered > 0

    def visit(self, site: Site, x: torch.Tensor) -> None:
        own = x[self._rows.to(x.device)]
        self.features += [own.mean(1), own.std(1)]
