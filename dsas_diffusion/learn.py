"""`learn(pipe, prompts)`: a concept from a few dozen prompts.

Every prompt is generated once while its activations are captured; maps and gates are fitted; then the unit of strength
is chosen on other prompts of the same file. No judge takes part: whether a picture shows the target is read by the
model's own eyes. The denoiser, unsteered, looks at the finished picture with a little noise on it, and a logistic probe
fitted on source and target pictures tells them apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dsas_core import methods
from dsas_core.calibration import Trial
from dsas_core.capture import Capture
from dsas_core.cloud import clouded
from dsas_core.concept import Concept, fingerprint
from dsas_core.errors import DSASError
from dsas_core.gating import WRITTEN
from dsas_core.hooks import Call, visit
from dsas_core.learn import Recipe, fit_sites, recipe_of
from dsas_core.probes import LinearProbe
from dsas_core.progress import progress_bar
from dsas_core.prompts import PromptSet, read
from dsas_core.provenance import versions
from dsas_core.sites import Site
from dsas_core.steering import Steering
from dsas_core.unit import TRIALS, choose, held_back, units_of

from .families import family_of, find_sites, roots_of
from .generation import (
    UNCHANGED,
    Settings,
    change,
    decode,
    latent_batches,
    latents_of,
    noise_for,
    seeds_for,
    settings_of,
)
from .masks import Masks
from .rows import Rows
from .steer import steer
from .supervision import Shown, masks_for, shown_by

#: source and target prompts to draw
COUNT = 48
EYES_TIMESTEP = 250.0
#: cross-validated balanced accuracy from which the eyes' word on effects is taken
TRUSTED_EYES = 0.7


def learn(
    pipe: Any,
    prompts: str | Path | Mapping[str, Any] | PromptSet,
    *,
    method: str = "caa",
    gate: str | None = None,
    sites: str | Sequence[str] | None = None,
    steps: int | None = None,
    seed: int = 0,
    count: int = COUNT,
    edges: Sequence[float] | None = None,
    positions: str = "all",
    guidance: float | None = None,
    drift: float = 0.05,
    batch: int = 8,
    masks: Masks | None = None,
    recipe: Mapping[str, Any] | None = None,
    show_progress: bool = False,
) -> Concept:
    """Learn a concept.

    Args:
        pipe: a diffusers text-to-image pipeline of a known family.
        prompts: a prompt file (dsas_core/prompts.py), or its content.
        method, gate: names in `dsas_core.methods`. Without a gate it is the method's own, or `dsas`.
        sites: see `dsas_diffusion.families.find_sites`; None for the family's default.
        steps, guidance: of the generations; None for what suits the model.
        seed: of noise, prompt choice and cross-validation.
        count: source and target prompts; controls are twice as many. A quarter is kept for choosing the unit.
        edges: ascending timesteps that separate bins with their own probe and map; None for the family's, () for one.
        positions: text tokens that are read and steered, see `dsas_diffusion.rows.Rows`.
        drift: share of control prompts whose picture may change while the unit is chosen.
        batch: prompts per generation.
        masks: for supervision by positions, which they ask for: pictures of source prompts -> where each shows the
            thing (`dsas_diffusion.masks`); None for the segmentation model of the prompt file.
        recipe: further fields of `dsas_core.learn.Recipe` (form, rank, site_weight, …).

    Returns:
        The concept, its unit chosen and its evidence in it; not saved yet.

    Raises:
        DSASError: bad prompts, names or sites; no site tells source from control; masks that are missing, or empty.
    """
    family = family_of(pipe)
    content = read(prompts)
    told = {"supervision": "positions"} if masks is not None else {}
    chosen = recipe_of(recipe, **told, method=method, gate=gate, seed=seed)
    if chosen.form in WRITTEN:
        raise DSASError(f"gate form {chosen.form!r} is of texts that are written: choose another for pictures")
    wanted = find_sites(pipe, sites)
    text_only = all(site.root != family.denoiser for site in wanted)
    if chosen.supervised:
        masks = masks_for(masks, content, [site for site in wanted if site.root != family.denoiser])
    watched = find_sites(pipe, family.watched) if text_only else []
    edges = family.edges if edges is None else edges
    settings = settings_of(pipe, steps, guidance)
    drawn = content.draw(count, seed)
    fitting, held_out = held_back(drawn)

    walk = _Walk(pipe, fitting, settings, positions, tuple(edges), chosen, seed, batch, show_progress)
    capture, latents = walk.drawn([*wanted, *watched], "capturing")
    shown = shown_by(masks(decode(pipe, latents["source"]))) if chosen.supervised and masks is not None else None

    def behind(site: Site, learned: Concept) -> Capture:
        return _marked(walk.drawn([site], f"capturing at {site}", learned)[0], shown)

    with progress_bar(len(wanted) + len(watched), "fitting", show_progress) as bar:
        interventions, evidence = fit_sites(_marked(capture, shown), chosen, bar.update, watched, behind)
    if chosen.cloud:
        interventions = clouded(interventions, capture, chosen.cloud)
    roots = roots_of(pipe)
    concept = Concept(
        name=content.name,
        description=content.description,
        interventions=tuple(interventions),
        edges=tuple(edges),
        method=chosen.method,
        gate=str(chosen.gate),
        base={root: fingerprint(roots[root]) for root in sorted({item.site.root for item in interventions})},
        evidence={"sites": [asdict(found) for found in evidence]},
        provenance={
            "model": str(getattr(pipe, "name_or_path", "") or type(pipe).__name__),
            "prompts": content.to_dict(),
            "count": count,
            "prompts_used": {side: len(texts) for side, texts in fitting.items()},
            "recipe": asdict(chosen),
            "settings": asdict(settings),
            "positions": positions,
            "seed": seed,
            "versions": versions("diffusers", "transformers"),
        },
    )
    unit, trials = choose_unit(pipe, concept, latents, held_out, settings, seed, drift, batch, show_progress)
    return replace(concept, unit=unit, evidence={**concept.evidence, "unit": trials})


@dataclass(frozen=True)
class _Walk:
    """Every prompt through the pipeline, its activations kept; `prompts` are source, target and control."""

    pipe: Any
    prompts: Mapping[str, Sequence[str]]
    settings: Settings
    positions: str
    edges: tuple[float, ...]
    recipe: Recipe
    seed: int
    batch: int
    show_progress: bool

    def drawn(
        self, sites: Sequence[Site], label: str, learned: Concept | None = None
    ) -> tuple[Capture, dict[str, torch.Tensor]]:
        """The activations at some sites, and the finished latents of each side.

        A concept that is learned so far steers the sides that the recipe has it steer. Where all sites are in text
        encoders and a concept steers, nothing is drawn: nobody asks for these pictures.
        """
        pipe, roots = self.pipe, roots_of(self.pipe)
        words = learned is not None and all(site.root != family_of(pipe).denoiser for site in sites)
        capture = Capture(self.edges, seed=self.seed)
        latents: dict[str, list[torch.Tensor]] = {}
        with (
            Rows(pipe, positions=self.positions) as rows,
            visit(roots, sites, capture, rows.describe()),
            progress_bar(sum(map(len, self.prompts.values())), label, self.show_progress) as bar,
        ):
            for side, texts in self.prompts.items():
                capture.start(side)
                steering = Steering({learned: 1.0}) if learned is not None and self.recipe.steers(side) else None
                with nullcontext() if steering is None else steering.attach(roots, rows.describe()):
                    for made in self._read(texts) if words else self._draw(texts):
                        latents.setdefault(side, []).append(made)
                        capture.offset += len(made)
                        bar.update(len(made))
        return capture, {side: torch.cat(parts) for side, parts in latents.items()}

    def _draw(self, texts: Sequence[str]) -> Iterator[torch.Tensor]:
        seeds = seeds_for(texts, self.seed)
        return latent_batches(self.pipe, texts, seeds, self.settings, self.batch)

    @torch.no_grad()
    def _read(self, texts: Sequence[str]) -> Iterator[torch.Tensor]:
        """Only what the text encoders make of the prompts."""
        denoiser = getattr(self.pipe, family_of(self.pipe).denoiser)
        for start in range(0, len(texts), self.batch):
            piece = list(texts[start : start + self.batch])
            yield self.pipe.encode_prompt(piece, denoiser.device, 1, False)[0]


def _marked(capture: Capture, shown: Shown | None) -> Capture:
    if shown is not None:
        capture.mark("source", shown)
    return capture


def choose_unit(
    pipe: Any,
    concept: Concept,
    latents: Mapping[str, torch.Tensor],
    held_out: Mapping[str, Sequence[str]],
    settings: Settings,
    seed: int,
    drift: float,
    batch: int,
    show_progress: bool,
) -> tuple[float, dict[str, Any]]:
    """The smallest unit that does what asking in words does, within the drift limit; and what was tried.

    `HeldOut` tells effect and drift of a strength, `dsas_core.unit` chooses by these.
    """
    trial = HeldOut(pipe, latents, held_out, settings, seed, batch)
    units = units_of(concept.method)
    with progress_bar(min(TRIALS, len(units)), "choosing the unit", show_progress) as bar:
        unit, summary = choose(lambda unit: trial(concept, unit)[:2], drift, bar.update, units)
    return unit, trial.judged(summary)


class HeldOut:
    """Tries strengths on held-out prompts.

    Each held-out source picture goes some share of the way, by the eyes' logit, that asking in words moves the mean;
    shares are cut to [0, 1], so that a picture which goes too far does not stand in for one that stays behind. The
    effect of a strength is their mean, over the same mean when asked in words; its drift the share of control pictures
    that change; its reach how far the source pictures move in what the eyes see, standardised, over how far asking in
    words moves them.

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
        self.eyes = Eyes(pipe, latents["source"], latents["target"])
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

    def __call__(self, concept: Concept, strength: float) -> Trial:
        """What a concept does at a map strength of either sign."""
        with steer(self.pipe, {concept.with_unit(1.0): strength}):
            made = latents_of(self.pipe, self.texts, self.seeds, self.settings, self.batch)
        changed = change(self.untouched, decode(self.pipe, made[self.cut :])) > UNCHANGED
        seen = self.eyes.features(made[: self.cut])
        return Trial(self._way(seen) / self.asked, float(changed.mean()), self._moved(seen) / self.far)

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
    """

    def __init__(self, pipe: Any, source: torch.Tensor, target: torch.Tensor) -> None:
        self.pipe = pipe
        self.family = family_of(pipe)
        self.sites = find_sites(pipe, "block")
        gate = methods.get("dsas", "gate")
        fitted = gate.cross_fit(self.features(target), self.features(source), rank=16, scaler="std")
        self.probe: LinearProbe = fitted.probe
        self.accuracy: float = fitted.evidence.balanced_accuracy

    def read(self, features: torch.Tensor) -> torch.Tensor:
        """How much each picture, by its features, looks like the target rather than the source, float64 [n]."""
        return self.probe.logit(features)[:, 0]

    @torch.no_grad()
    def features(self, latents: torch.Tensor, batch: int = 32) -> torch.Tensor:
        """What is seen in each picture, float64 [n, features]."""
        pipe, scheduler = self.pipe, self.pipe.scheduler
        scheduler.set_timesteps(50)
        timestep = min(scheduler.timesteps.tolist(), key=lambda t: abs(t - EYES_TIMESTEP))
        denoiser = getattr(pipe, self.family.denoiser)
        denoiser = getattr(denoiser, "_orig_mod", denoiser)
        empty = pipe.encode_prompt("", denoiser.device, 1, False)[0]
        rows = []
        for start in range(0, len(latents), batch):
            clean = latents[start : start + batch]
            noise = noise_for(pipe, range(start, start + len(clean))).to(clean)
            times = torch.full((len(clean),), timestep, device=clean.device)
            times = times.to(scheduler.timesteps.dtype)
            mixed = scheduler.add_noise(clean, noise, times)
            seen = _Seen()
            with visit({self.family.denoiser: denoiser}, self.sites, seen):
                denoiser(mixed, times, encoder_hidden_states=empty.expand(len(clean), -1, -1))
            rows.append(torch.cat(seen.features, 1).float().cpu())
        return torch.cat(rows).double()


class _Seen:
    """A visitor that keeps mean and deviation over positions."""

    def __init__(self) -> None:
        self.features: list[torch.Tensor] = []

    def begin(self, root: str, call: Call) -> None:
        """Every row counts."""

    def visit(self, site: Site, x: torch.Tensor) -> None:
        self.features += [x.mean(1), x.std(1)]
