"""What a strength does, told on held-out prompts by the model's own eyes; no judge takes part.

The denoiser, unsteered, looks at the finished picture with a little noise on it, and a logistic probe fitted on source
and target pictures tells them apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from dsas_core import methods
from dsas_core.calibration import Trial
from dsas_core.concept import Concept
from dsas_core.evidence import TRUSTED_EYES
from dsas_core.hooks import Call, visit
from dsas_core.probes import LinearProbe
from dsas_core.sites import Site
from dsas_core.strangeness import Usual

from .families import bounds_of, denoiser_of, family_of, roots_of
from .generation import UNCHANGED, Settings, change, decode, latents_of, noise_like, packed, seeds_for
from .rows import SAMPLE, TIMESTEP, Rows
from .sites import find_sites
from .steer import steer

EYES_TIMESTEP = 250.0


class HeldOut:
    """Tries strengths on held-out prompts.

    Each held-out source picture goes some share of the way, by the eyes' logit, that asking in words moves the mean;
    shares are cut to [0, 1], so that a picture which goes too far does not stand in for one that stays behind. The
    effect of a strength is their mean, over the same mean when asked in words; its drift the share of control pictures
    that change; its reach how far the source pictures move in what the eyes see, standardised, over how far asking in
    words moves them; its strangeness how far they are from those that the eyes are fitted on, over how far unsteered
    ones are (`strangeness.Usual`).

    Args:
        latents: of the "source" and "target" pictures that the eyes are fitted on. held_out: prompts of each side.
        seed: the run's; these pictures get others from it.
    """

    def __init__(
        self,
        pipe: Any,
        latents: Mapping[str, torch.Tensor],
        held_out: Mapping[str, Sequence[str]],
        settings: Settings,
        seed: int,
        batch: int,
    ) -> None:
        self.pipe, self.settings, self.batch = pipe, settings, batch
        self.eyes = Eyes(pipe, latents["source"], latents["target"], settings)
        base, seeds = {}, {}
        for i, (side, texts) in enumerate(held_out.items()):
            seeds[side] = seeds_for(texts, seed + 1 + (i == 2))
            base[side] = latents_of(pipe, texts, seeds[side], settings, batch)
        self.texts = [*held_out["source"], *held_out["control"]]
        self.seeds = [*seeds["source"], *seeds["control"]]
        self.cut = len(held_out["source"])
        self.untouched = decode(pipe, base["control"])
        self.seen = {side: self.eyes.features(base[side]) for side in ("source", "target")}
        start, end = (self.eyes.read(self.seen[side]).mean() for side in ("source", "target"))
        self.start, self.span = start, max(float(end - start), 1e-6)
        self.asked = max(self._way(self.seen["target"]), 1e-6)
        self.spread = torch.cat(list(self.seen.values())).std(0).clamp_min(1e-6)
        self.far = max(self._moved(self.seen["target"]), 1e-6)
        self.usual = Usual(self.eyes.known, torch.cat(list(self.seen.values())))

    def __call__(self, concept: Concept, strength: float) -> Trial:
        """What a concept does at a map strength of either sign."""
        with steer(self.pipe, {concept.with_unit(1.0): strength}):
            made = latents_of(self.pipe, self.texts, self.seeds, self.settings, self.batch)
        changed = change(self.untouched, decode(self.pipe, made[self.cut :])) > UNCHANGED
        seen = self.eyes.features(made[: self.cut])
        reach, strangeness = self._moved(seen) / self.far, self.usual.strangeness(seen)
        return Trial(self._way(seen) / self.asked, float(changed.mean()), reach, strangeness)

    def judged(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """What `unit.choose` tells of its trials, and how far the eyes are to be trusted in it."""
        accuracy = self.eyes.accuracy
        reached = summary["reached"] and accuracy >= TRUSTED_EYES
        return {**summary, "asked_in_words": self.span, "eyes_accuracy": accuracy, "reached": reached}

    def _way(self, seen: torch.Tensor) -> float:
        return float(((self.eyes.read(seen) - self.start) / self.span).clamp(0, 1).mean())

    def _moved(self, seen: torch.Tensor) -> float:
        """Median distance from the source pictures; asked in words, from each to its pair, where it has one."""
        count = min(len(seen), self.cut)
        return float(((seen[:count] - self.seen["source"][:count]) / self.spread).norm(dim=1).median())


class Eyes:
    """Tells target pictures from source pictures by what the unsteered denoiser sees in them.

    Each picture's latents are noised to a timestep of about 250, shown to the denoiser with an empty prompt, and the
    means and deviations of its block outputs are classified by cross-validated logistic regression.

    Args:
        source, target: latents. settings: of the pictures; the denoiser is to see them at their size.
    """

    def __init__(self, pipe: Any, source: torch.Tensor, target: torch.Tensor, settings: Settings) -> None:
        self.pipe, self.settings = pipe, settings
        self.family = family_of(pipe)
        self.sites = find_sites(pipe, self.family.eyes)
        self._asked: dict[int, _Asked] = {}
        gate = methods.get("dsas", "gate")
        wanted, before = self.features(target), self.features(source)
        self.known = torch.cat([wanted, before])
        fitted = gate.cross_fit(wanted, before, rank=16, scaler="std")
        self.probe: LinearProbe = fitted.probe
        self.accuracy: float = fitted.evidence.balanced_accuracy

    def read(self, features: torch.Tensor) -> torch.Tensor:
        """How much each picture, by its features, looks like the target rather than the source, float64 [n]."""
        return self.probe.logit(features)[:, 0]

    @torch.no_grad()
    def features(self, latents: torch.Tensor, batch: int = 32) -> torch.Tensor:
        """What is seen in each picture, float64 [n, features]."""
        rows = []
        for start in range(0, len(latents), batch):
            clean = packed(self.pipe, latents[start : start + batch])
            asked = self._asking(len(clean))
            mixed, timestep = noised(self.pipe.scheduler, clean, noise_like(clean, range(start, start + len(clean))))
            seen = _Seen()
            with visit(roots_of(self.pipe), self.sites, seen, {self.family.denoiser: asked.describe}):
                asked.again(mixed, timestep)
            rows.append(torch.cat(seen.features, 1).float().cpu())
        return torch.cat(rows).double()

    def _asking(self, count: int) -> _Asked:
        """How the pipeline asks its denoiser about so many pictures of no prompt, without guidance."""
        if count not in self._asked:
            asked = _Asked(self.pipe)
            with asked.watching():
                latents_of(self.pipe, [""] * count, [0] * count, replace(self.settings, steps=1, guidance=0.0), count)
            self._asked[count] = asked
        return self._asked[count]


def noised(scheduler: Any, clean: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Latents with as much noise on them as at a timestep of about 250, as the denoiser takes them, and that timestep.

    Flow matching mixes them on a straight line; other schedulers know how they do it, at timesteps of their own.
    """
    if hasattr(scheduler, "scale_noise"):
        share = EYES_TIMESTEP / scheduler.config.num_train_timesteps
        return (1 - share) * clean + share * noise, EYES_TIMESTEP
    scheduler.set_timesteps(50)
    timestep = min(scheduler.timesteps, key=lambda t: abs(float(t) - EYES_TIMESTEP))
    mixed = scheduler.add_noise(clean, noise, timestep.expand(len(clean)).to(clean.device))
    return scheduler.scale_model_input(mixed, timestep), float(timestep)


class _Asked:
    """One call of a pipeline's denoiser, kept to be made again with other latents and at another timestep."""

    def __init__(self, pipe: Any) -> None:
        self.pipe, self.family = pipe, family_of(pipe)
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self._rows = Rows(pipe)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep the denoiser's first call."""

        def keep(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
            if not self.args and not self.kwargs:
                self.args, self.kwargs = args, kwargs
            return self._rows.of_prompts(args, kwargs)

        denoiser = {self.family.denoiser: keep}
        with self._rows, visit(roots_of(self.pipe), [], _Seen(), denoiser):
            yield

    def describe(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        return self._rows.of_prompts(args, kwargs)

    def again(self, latents: torch.Tensor, timestep: float) -> None:
        """Have the denoiser look at other latents, at a timestep of 0 (clean) to 1000 (noise)."""
        args: Any = list(self.args)
        kwargs: Any = dict(self.kwargs)
        noisy, clean = bounds_of(self.pipe)
        shown = torch.tensor(clean + timestep / 1000 * (noisy - clean))
        for place, names, value in ((0, SAMPLE, latents), (1, TIMESTEP, shown)):
            held, key = next(((kwargs, name) for name in names if name in kwargs), (args, place))
            if isinstance(held[key], list):
                held[key] = [one.to(there).view_as(there) for one, there in zip(value, held[key], strict=True)]
            else:
                there = torch.as_tensor(held[key])
                if value.ndim:  # PAG asks twice of each picture
                    held[key] = value.to(there).repeat(len(there) // len(value), *[1] * (value.ndim - 1))
                else:
                    held[key] = value.to(there).expand(there.shape)
        denoiser_of(self.pipe)(*args, **kwargs)


class _Seen:
    """A visitor that keeps mean and deviation over positions, of rows that have a prompt."""

    def __init__(self) -> None:
        self.features: list[torch.Tensor] = []
        self._rows = torch.zeros(0)

    def begin(self, root: str, call: Call) -> None:
        self._rows = call.steered > 0

    def visit(self, site: Site, x: torch.Tensor) -> None:
        own = x[self._rows.to(x.device)]
        self.features += [own.mean(1), own.std(1)]
