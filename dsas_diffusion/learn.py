"""`learn(pipe, prompts)`: a concept from a few dozen prompts.

Every prompt is generated once while its activations are captured; maps and gates are fitted; then the unit of strength
is chosen on other prompts of the same file, by the model's own eyes (`held_out`). A `Lesson` fits several concepts on
one reading of the prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from dsas_core.capture import Capture, Captured
from dsas_core.concept import Concept
from dsas_core.errors import DSASError
from dsas_core.hooks import visit
from dsas_core.learn import as_concept, fit_sites
from dsas_core.pretrained import name_of
from dsas_core.processes import shared
from dsas_core.progress import progress_bar
from dsas_core.prompts import COUNT, PromptSet, read
from dsas_core.provenance import versions
from dsas_core.recipe import WRITTEN, Recipe, recipe_of
from dsas_core.shards import Shards
from dsas_core.sites import Site
from dsas_core.steering import Steering
from dsas_core.unit import TRIALS, choose, held_back, units_of

from .families import check_loaded, family_of, roots_of
from .generation import decode, latent_batches, made_by, seeds_for, settings_of
from .held_out import HeldOut
from .load import BUILTIN
from .masks import Masks
from .rows import Rows
from .sites import find_sites
from .supervision import masks_for, shown_by


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
    size: int | None = None,
    drift: float = 0.05,
    batch: int = 8,
    masks: Masks | None = None,
    store: str | Path | None = None,
    recipe: Mapping[str, Any] | None = None,
    show_progress: bool = False,
) -> Concept:
    """Learn a concept.

    Args:
        pipe: a diffusers text-to-image pipeline of a known family.
        prompts: a prompt file (dsas_core/prompts.py), or its content.
        method, gate: names in `dsas_core.methods`. Without a gate it is the method's own, or `dsas`.
        sites: see `dsas_diffusion.find_sites`; None for the family's default.
        steps, guidance, size: of the generations, size in pixels of a side; None for what suits the model.
        seed: of noise, prompt choice and cross-validation.
        count: source and target prompts; controls are twice as many. A quarter is kept for choosing the unit.
        edges: ascending timesteps that separate bins with their own probe and map; None for the family's, () for one.
        positions: text tokens that are read and steered, see `dsas_diffusion.rows.Rows`.
        drift: share of control prompts whose picture may change while the unit is chosen.
        batch: prompts per generation.
        masks: for supervision by positions, which they ask for: pictures of source prompts -> where each shows the
            thing (`dsas_diffusion.masks`); None for the segmentation model of the prompt file. Causal learning goes by
            the masks of the unsteered pictures, too.
        store: a folder for what is read of the model, a file for each batch of prompts, where memory would not hold it:
            of every site, some 32 positions of each picture and step. Learning that was interrupted goes on from
            there, and processes that `accelerate launch` has started share the batches. None keeps it in memory.
        recipe: further fields of `dsas_core.recipe.Recipe` (form, rank, site_weight, …).

    Returns:
        The concept, its unit chosen and its evidence in it; not saved yet.

    Raises:
        DSASError: bad prompts, names or sites; a bin that no step comes to; no site tells source from control; masks
            that are missing, or empty.
    """
    lesson = Lesson(
        pipe,
        prompts,
        sites=sites,
        steps=steps,
        seed=seed,
        count=count,
        edges=edges,
        positions=positions,
        guidance=guidance,
        size=size,
        batch=batch,
        masks=masks,
        store=store,
        show_progress=show_progress,
    )
    return lesson.learn(method, gate, drift=drift, recipe=recipe)


class Lesson:
    """The prompts of a concept, drawn and read once; any number of concepts are fitted on what was read.

    Args:
        pipe, prompts, and all others: as of `learn`. Nothing is drawn before the first concept is asked for.

    Example:
        >>> lesson = Lesson(pipe, "prompts/banana-blur.yaml")
        >>> concepts = [lesson.learn(method) for method in ("caa", "mean-act", "linear-act")]
    """

    def __init__(
        self,
        pipe: Any,
        prompts: str | Path | Mapping[str, Any] | PromptSet,
        *,
        sites: str | Sequence[str] | None = None,
        steps: int | None = None,
        seed: int = 0,
        count: int = COUNT,
        edges: Sequence[float] | None = None,
        positions: str = "all",
        guidance: float | None = None,
        size: int | None = None,
        batch: int = 8,
        masks: Masks | None = None,
        store: str | Path | None = None,
        show_progress: bool = False,
    ) -> None:
        check_loaded(pipe)
        family = family_of(pipe)
        self.pipe, self.content, self.masks, self.store = pipe, read(prompts), masks, store
        self.sites = find_sites(pipe, sites)
        #: sites in text encoders; where there are no others, the denoiser is watched for the heat-map
        self.words = [site for site in self.sites if site.root != family.denoiser]
        self.watched = find_sites(pipe, family.watched) if self.words == self.sites else []
        self.edges = tuple(family.edges if edges is None else edges)
        self.settings = settings_of(pipe, steps, guidance, size)
        self.count, self.seed, self.positions = count, seed, positions
        self.batch, self.show_progress = batch, show_progress
        self.fitting, self.held_out = held_back(self.content.draw(count, seed))

    def learn(
        self,
        method: str = "caa",
        gate: str | None = None,
        *,
        drift: float = 0.05,
        recipe: Mapping[str, Any] | None = None,
    ) -> Concept:
        """Fit a concept, see `learn`."""
        told = {"supervision": "positions"} if self.masks is not None else {}
        chosen = recipe_of(recipe, **told, method=method, gate=gate, seed=self.seed)
        if chosen.form in WRITTEN:
            raise DSASError(f"gate form {chosen.form!r} is of texts that are written: choose another for pictures")
        masks = masks_for(self.masks, self.content, self.words) if chosen.supervised else None
        capture, latents = self._read
        shown = None if masks is None else shown_by(masks(decode(self.pipe, latents["source"])))

        def behind(site: Site, learned: Concept) -> Capture:
            return self._walk([site], f"capturing at {site}", learned, chosen)[0]

        with progress_bar(len(self.sites) + len(self.watched), "fitting", self.show_progress) as bar:
            found = fit_sites(capture, chosen, bar.update, self.watched, behind, shown)
        concept = as_concept(
            *found,
            chosen,
            self.content,
            roots_of(self.pipe),
            self.edges,
            model=name_of(self.pipe, BUILTIN),
            count=self.count,
            prompts_used={side: len(texts) for side, texts in self.fitting.items()},
            settings=asdict(self.settings),
            positions=self.positions,
            seed=self.seed,
            versions=versions("diffusers", "transformers"),
        )
        units = units_of(chosen.method)
        with progress_bar(min(TRIALS, len(units)), "choosing the unit", self.show_progress) as bar:
            unit, summary = choose(lambda unit: self._trial(concept, unit)[:2], drift, bar.update, units)
        return replace(concept, unit=unit, evidence={**concept.evidence, "unit": self._trial.judged(summary)})

    def captured(self, recipe: Recipe) -> Captured:
        """What sites show of the unsteered model, whatever the recipe; read when it is first asked for."""
        return self._read[0]

    @cached_property
    def _read(self) -> tuple[Captured, dict[str, torch.Tensor]]:
        """What every site shows of the unsteered model, and the finished latents of each side."""
        sites = [*self.sites, *self.watched]
        if self.store is None:
            return self._walk(sites, "capturing")
        share = shared(on_cpu=self.pipe.device.type == "cpu")
        shards = Shards(self.store, self._about(), sites, self.edges)
        ours = self._batches()[share.process :: share.processes]
        with progress_bar(len(ours), "capturing batches", self.show_progress) as bar:
            for side, start in ours:
                if not shards.has(side, start):
                    capture, latents = self._walk(sites, "", batches=[(side, start)])
                    shards.write(side, start, capture, latents)
                bar.update()
        share.wait()
        shards.read(list(self.fitting))
        return shards, {side: shards.more(side, side).to(self.pipe.device) for side in self.fitting}

    @cached_property
    def _trial(self) -> HeldOut:
        """Who tells what a strength does."""
        return HeldOut(self.pipe, self._read[1], self.held_out, self.settings, self.seed, self.batch)

    def _about(self) -> dict[str, Any]:
        """What the walk depends on."""
        return {
            **made_by(self.pipe),
            "prompts": self.fitting,
            "settings": asdict(self.settings),
            "positions": self.positions,
            "seed": self.seed,
            "batch": self.batch,
        }

    def _batches(self) -> list[tuple[str, int]]:
        """Every batch of prompts by its side and its first prompt."""
        return [(side, start) for side, texts in self.fitting.items() for start in range(0, len(texts), self.batch)]

    def _check_bins(self, capture: Capture, sites: Sequence[Site]) -> None:
        """Every bin must have been come to: it is as in the first batch in all that follow, which may take hours."""
        timed = [site for site in sites if site.root == family_of(self.pipe).denoiser]
        empty = set(range(len(self.edges) + 1)) - {bin_ for site, bin_, _ in capture.rows if site in timed}
        if timed and empty:
            ends = (0.0, *self.edges, 1000.0)
            told = ", ".join(f"{ends[bin_]:g} to {ends[bin_ + 1]:g}" for bin_ in sorted(empty))
            raise DSASError(
                f"none of {self.settings.steps} steps comes to timesteps {told}, a bin with a probe and map of its "
                "own: use more steps, or fewer bins (edges=(), --edges none)"
            )

    def _walk(
        self,
        sites: Sequence[Site],
        label: str,
        learned: Concept | None = None,
        recipe: Recipe | None = None,
        batches: Sequence[tuple[str, int]] | None = None,
    ) -> tuple[Capture, dict[str, torch.Tensor]]:
        """The activations at some sites, and the finished latents of each side; of all batches, or some.

        A concept that is learned so far steers the sides that the recipe has it steer. Where all sites are in text
        encoders and a concept steers, one step is enough: nobody asks for these pictures.
        """
        pipe, roots = self.pipe, roots_of(self.pipe)
        words = learned is not None and all(site in self.words for site in sites)
        settings = replace(self.settings, steps=1) if words else self.settings
        capture = Capture(self.edges, seed=self.seed)
        latents: dict[str, list[torch.Tensor]] = {}
        batches = self._batches() if batches is None else batches
        with (
            Rows(pipe, positions=self.positions) as rows,
            visit(roots, sites, capture, rows.describe()),
            progress_bar(len(batches), label, self.show_progress and bool(label)) as bar,
        ):
            for side, start in batches:
                if side != capture.kind:
                    capture.start(side)
                capture.at(start)
                part = slice(start, start + self.batch)
                texts, seeds = self.fitting[side][part], seeds_for(self.fitting[side], self.seed)[part]
                steers = learned is not None and recipe is not None and recipe.steers(side)
                steering = Steering({learned: 1.0}) if learned is not None and steers else None
                with nullcontext() if steering is None else steering.attach(roots, rows.describe()):
                    latents.setdefault(side, []).extend(latent_batches(pipe, texts, seeds, settings, self.batch))
                self._check_bins(capture, sites)
                bar.update()
        return capture, {side: torch.cat(parts) for side, parts in latents.items()}
