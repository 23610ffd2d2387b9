"""`learn(pipe, prompts)`: a concept from a few dozen prompts.

Every prompt is generated once while its activations are captured; maps and gates are fitted; then the unit of strength
is chosen on other prompts of the same file, by the model's own features (`held_out`). A `Lesson` fits several concepts
on one reading of the prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError, UnsupportedError
from dsas_core.learning.capture import Capture, Captured, Shown
from dsas_core.learning.capture_store import CaptureStore
from dsas_core.learning.learner import Learner
from dsas_core.learning.prompts.prompt_set import COUNT, PromptSet, load_prompts
from dsas_core.learning.recipe import WRITTEN, Recipe, recipe_of
from dsas_core.model.hooks import visit
from dsas_core.model.sites import Roots, Site
from dsas_core.steering.steering import Steering
from dsas_core.utils.processes import process_share
from dsas_core.utils.progress import progress_bar

from ..generation.pictures import decode, latent_batches, model_key, seeds_for
from ..generation.settings import settings_of
from ..pipelines.adapter import adapt
from ..pipelines.batch_layout import BatchLayout
from ..vision.segmentation import Masks
from .held_out_trial import PictureTrial
from .supervision import masks_for, patch_labels


def learn(
    pipe: Any,
    prompts: str | Path | Mapping[str, Any] | PromptSet,
    *,
    method: str = "caa",
    gate: str | None = None,
    drift: float = 0.05,
    recipe: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Concept:
    """Learn a concept.

    Args:
        pipe: a diffusers text-to-image pipeline of a known family.
        prompts: a prompt file (dsas_core/learning/prompts/prompt_set.py), or its content.
        method, gate: names in `dsas_core.methods`. Without a gate it is the method's own, or `dsas`.
        drift: share of control prompts whose picture may change while the unit is chosen.
        recipe: further fields of `dsas_core.learning.recipe.Recipe` (form, rank, site_weight, …).
        settings: further arguments of `Lesson`: sites, steps, guidance, size, seed, count, edges, positions, batch,
            masks, store, show_progress.

    Returns:
        The concept, its unit chosen and its evidence in it; not saved yet.

    Raises:
        DSASError: bad prompts, names or sites; a bin that no step comes to; no site tells source from control; masks
            that are missing, or empty.
    """
    return Lesson(pipe, prompts, **settings).learn(method, gate, drift=drift, recipe=recipe)


class PictureLearner(Learner[str]):
    """The prompts of a concept, drawn and read once; any number of concepts are fitted on what was captured.

    Nothing is drawn before the first concept is asked for.

    Args:
        pipe: a diffusers text-to-image pipeline of a known family.
        prompts: a prompt file (dsas_core/learning/prompts/prompt_set.py), or its content.
        sites: see `dsas_diffusion.find_sites`; None for the family's default.
        steps, guidance, size: of the generations, size in pixels of a side; None for what suits the model.
        seed: of noise, prompt choice and cross-validation.
        count: source and target prompts; controls are twice as many. A quarter is kept for choosing the unit.
        edges: ascending timesteps that separate bins with their own probe and map; None for the family's, () for one.
        positions: text tokens that are read and steered, see `dsas_diffusion.rows.Rows`.
        batch: prompts per generation.
        masks: for supervision by positions, which they ask for: pictures of source prompts -> where each shows the
            thing (`dsas_diffusion.vision.segmentation`); None for the segmentation model of the prompt file. Causal
            learning goes by the masks of the unsteered pictures, too.
        store: a folder for what is read of the model, a file for each batch of prompts, where memory would not hold it:
            of every site, some 32 positions of each picture and step. Learning that was interrupted goes on from
            there, and processes that `accelerate launch` has started share the batches. None keeps it in memory.
        show_progress: whether to show bars.

    Example:
        >>> lesson = Lesson(pipe, "prompts/banana-blur.yaml")
        >>> concepts = [lesson.learn(method) for method in ("caa", "mean-act", "linear-act")]
    """

    LIBRARIES = ("diffusers", "transformers")

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
        self.adapter = adapt(pipe)
        self.adapter.check_loaded()
        family, content = self.adapter.family, load_prompts(prompts)
        steered = self.adapter.find_sites(sites)
        self.text_sites = [site for site in steered if site.root != family.denoiser]
        #: where only text encoders steer, the denoiser is read for the heat-map
        heatmap_sites = self.adapter.find_sites(family.heatmap_sites) if self.text_sites == steered else []
        self.settings = settings_of(self.adapter, steps, guidance, size)
        self.positions, self.batch, self.masks, self.store = positions, batch, masks, store
        super().__init__(
            content,
            content.draw(count, seed),
            steered,
            model_name=self.adapter.name,
            settings={"settings": asdict(self.settings), "positions": positions},
            heatmap_sites=heatmap_sites,
            edges=family.edges if edges is None else edges,
            count=count,
            seed=seed,
            show_progress=show_progress,
        )

    def learn(
        self,
        method: str = "caa",
        gate: str | None = None,
        *,
        drift: float = 0.05,
        recipe: Mapping[str, Any] | None = None,
    ) -> Concept:
        """Fit a concept, see `learn`."""
        supervision = {"supervision": "positions"} if self.masks is not None else {}
        chosen = recipe_of(recipe, **supervision, method=method, gate=gate, seed=self.seed)
        if chosen.form in WRITTEN:
            raise UnsupportedError(
                f"gate form {chosen.form!r} is of texts that are written: choose another for pictures"
            )
        return self.fit(chosen, drift)

    def captured(self, recipe: Recipe) -> Captured:
        return self._unsteered[0]

    def _recapture(self, site: Site, learned: Concept, recipe: Recipe) -> Capture:
        return self._walk([site], f"capturing at {site}", learned, recipe)[0]

    def _position_labels(self, recipe: Recipe) -> Shown:
        masks = masks_for(self.masks, self.content, self.text_sites)
        return patch_labels(masks(decode(self.adapter, self._unsteered[1]["source"])))

    @cached_property
    def _trial(self) -> PictureTrial:
        return PictureTrial(self.adapter, self._unsteered[1], self.held_out, self.settings, self.seed, self.batch)

    @property
    def _roots(self) -> Roots:
        return self.adapter.roots

    @cached_property
    def _unsteered(self) -> tuple[Captured, dict[str, torch.Tensor]]:
        """What every site shows of the unsteered model, and the finished latents of each side."""
        sites = [*self.sites, *self.heatmap_sites]
        if self.store is None:
            return self._walk(sites, "capturing")
        share = process_share(on_cpu=self.adapter.pipe.device.type == "cpu")
        shards = CaptureStore(self.store, self._about(), sites, self.edges)
        ours = self._batches()[share.process :: share.processes]
        with progress_bar(len(ours), "capturing batches", self.show_progress) as bar:
            for side, start in ours:
                if not shards.has(side, start):
                    capture, latents = self._walk(sites, "", batches=[(side, start)])
                    shards.write(side, start, capture, latents)
                bar.update()
        share.wait()
        shards.read(list(self.fitting))
        return shards, {side: shards.more(side, side).to(self.adapter.pipe.device) for side in self.fitting}

    def _about(self) -> dict[str, Any]:
        """What the walk depends on."""
        return {
            **model_key(self.adapter),
            "prompts": self.fitting,
            **self.own_settings,
            "seed": self.seed,
            "batch": self.batch,
        }

    def _batches(self) -> list[tuple[str, int]]:
        """Every batch of prompts by its side and its first prompt."""
        return [(side, start) for side, texts in self.fitting.items() for start in range(0, len(texts), self.batch)]

    def _check_bins(self, capture: Capture, sites: Sequence[Site]) -> None:
        """Every bin must have been come to: it is as in the first batch in all that follow, which may take hours."""
        timed = [site for site in sites if site.root == self.adapter.family.denoiser]
        empty = set(range(len(self.edges) + 1)) - {bin_ for site, bin_, _ in capture.rows if site in timed}
        if timed and empty:
            ends = (0.0, *self.edges, 1000.0)
            ranges = ", ".join(f"{ends[bin_]:g} to {ends[bin_ + 1]:g}" for bin_ in sorted(empty))
            raise DSASError(
                f"none of {self.settings.steps} steps comes to timesteps {ranges}, a bin with a probe and map of its "
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
        adapter, roots = self.adapter, self._roots
        text_only = learned is not None and all(site in self.text_sites for site in sites)
        settings = replace(self.settings, steps=1) if text_only else self.settings
        capture = Capture(self.edges, seed=self.seed)
        latents: dict[str, list[torch.Tensor]] = {}
        batches = self._batches() if batches is None else batches
        with (
            BatchLayout(adapter, positions=self.positions) as rows,
            visit(roots, sites, capture, rows.describe()),
            progress_bar(len(batches), label, self.show_progress and bool(label)) as bar,
        ):
            for side, start in batches:
                if side != capture.kind:
                    capture.start(side)
                capture.at(start)
                part = slice(start, start + self.batch)
                texts, seeds = self.fitting[side][part], seeds_for(self.fitting[side], self.seed)[part]
                steering = learned if recipe is not None and recipe.steers(side) else None
                with nullcontext() if steering is None else Steering({steering: 1.0}).attach(roots, rows.describe()):
                    latents.setdefault(side, []).extend(latent_batches(adapter, texts, seeds, settings, self.batch))
                self._check_bins(capture, sites)
                bar.update()
        return capture, {side: torch.cat(parts) for side, parts in latents.items()}


#: the name by which users know it
Lesson = PictureLearner
