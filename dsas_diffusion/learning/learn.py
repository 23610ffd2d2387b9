"""`learn(pipe, prompts)`: a concept from a few dozen prompts.

Every prompt is generated once while its activations are captured; maps and gates are fitted; then the unit of strength
is chosen on other prompts of the same file, by the model's own features (`held_out_trial`). A `Lesson` fits several
concepts on one capture.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dsas_core.concept.concept import Concept
from dsas_core.concept.data import check_below
from dsas_core.concept.intervention import Intervention
from dsas_core.errors import DSASError, UnsupportedError
from dsas_core.learning.capture import Capture, LabelPositions
from dsas_core.learning.capture_store import Captured
from dsas_core.learning.prompts.prompt_file import load_prompts
from dsas_core.learning.prompts.prompt_set import CONTROLS, COUNT, PromptSet
from dsas_core.learning.recipe import TEXT_FORMS, Recipe, recipe_of
from dsas_core.model.sites import Site
from dsas_core.utils.meter import Meter
from dsas_core.utils.numbers import number, optional
from dsas_core.utils.progress import progress_bar

from ..generation.pictures import decode, latent_batches, seeds_for
from ..generation.settings import settings_of
from ..pipelines.adapter import adapt
from ..pipelines.batch_layout import BatchLayout
from ..pipelines.sites import has_patches
from ..steering.concept_masks import LATE, LateMeans, localises, rule_as_evidence
from ..vision.segmentation import Masks
from .capturing import MASK_SIDES, PictureCapturing
from .mask_fit import Unnamed, fit_mask, pool_patches
from .supervision import find_marked, masks_for, patch_labels
from .trial.held_out_pictures import HeldOutPictures, HeldOutPrompts
from .trial.held_out_trial import PictureTrial
from .trial.kept import Kept, describe_changes

#: timesteps below which the embeddings of the prompt may be steered, if not in all steps: things find their places
#: in the first quarter of them, and their shapes until the middle
WINDOWS = (500.0, 750.0)
#: an effect that is enough for leaving earlier steps alone
EARLIER = 0.85
#: how often more held-out pictures are drawn, at most, to know what stays, and what that is called
MORE_TURNS, KEPT = 2, "measuring what stays"
#: of gates of words: h that nearly all of the concept's words keep
WORD_H = 0.98


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
    drift: float = 0.1,
    batch: int = 8,
    masks: Masks | None = None,
    store: str | Path | None = None,
    recipe: Mapping[str, Any] | None = None,
    keep_prompts: str | None = None,
    checkpoint: str | Path | None = None,
    show_progress: bool = False,
) -> Concept:
    """Learn a concept from prompts.

    Args:
        pipe: a diffusers text-to-image pipeline of a known family.
        prompts: a prompt file (format: `dsas_core.prompts`), or its content.
        method: a map method of `dsas_core.methods`.
        gate: a gate of `dsas_core.methods`, also combined, "product(dsas, gaps)"; None for the method's own, or `dsas`.
        sites: where to steer, see `dsas_diffusion.find_sites`; None for the family's default.
        steps: denoising steps of each picture; None for what suits the model.
        seed: of noise, prompt choice and cross-validation.
        count: source prompts, and as many target prompts; controls are twice as many. A quarter is held out for
            choosing the unit.
        edges: ascending timesteps (0 to 1000) that separate bins with their own probe and map, or, where the embeddings
            of the prompt are steered, below which this may begin; None for what suits the sites, () for one bin.
        positions: which tokens are read and steered in text encoders: "words", those of the prompt up to the first end
            token, or "all" but the first, see `dsas_diffusion.pipelines.batch_layout`. Embeddings are read in all.
        guidance: classifier-free guidance scale; None for what suits the model.
        size: side of a picture in pixels; None for what suits the model.
        drift: share of pictures that may change where they must stay, of those without the concept and of those with
            something beside it, while the unit is chosen.
        batch: prompts per generation.
        masks: pictures -> where each shows the concept, bool [height, width] or None
            (`dsas_diffusion.vision.segmentation`), for the probes that see where it is, also in pictures of the file's
            `source_unnamed`; where gates read patches, these are supervised by positions, too, also in causal learning.
            None for finding out (`mask_fit`), or, if the recipe asks for this supervision, for the segmentation model
            of the prompt file.
        store: a folder for the captured activations, a file for each batch of prompts, where memory would not hold
            them: of every site, about 32 positions of each picture and step. An interrupted run continues from there,
            and processes that `accelerate launch` started share the batches. It holds hashes of the prompts where the
            concept keeps these only. None keeps activations in memory.
        recipe: further fields of `dsas_core.Recipe` (form, rank, site_weight, ...).
        keep_prompts: what the concept keeps of its prompts: "all", or "hash" for no text, only what tells which were
            used (`dsas_core.learning.prompts.kept`); None for "hash" where the prompt file is marked as private, as
            those of data sets are, and "all" elsewhere.
        checkpoint: a folder where joint training is kept, so that an interrupted one goes on; None for nowhere.
        show_progress: whether to show progress bars.

    Returns:
        The concept with its unit and evidence; not saved yet.

    Raises:
        DSASError: bad prompts, names or sites; a bin that no step reaches; no site tells source from control; masks
            that are missing, or empty.

    Example:
        >>> import dsas_diffusion as dsas
        >>> pipe = dsas.load_pipeline("builtin:emoji")
        >>> # concept = learn(pipe, "prompts/banana-blur.yaml", method="mean-act", steps=4)  # minutes
        >>> learn(pipe, "prompts/banana-blur.yaml", count=4)
        Traceback (most recent call last):
        dsas_core.errors.PromptError: prompt file 'banana-blur': source has 7 prompts outside the evaluation, ...
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
        keep_prompts=keep_prompts,
        checkpoint=checkpoint,
        show_progress=show_progress,
    )
    return lesson.learn(method, gate, drift=drift, recipe=recipe)


class PictureLearner(PictureCapturing):
    """The prompts of a concept, drawn and captured once; any number of concepts are fitted on what was captured.

    Nothing is generated before the first concept is learned.

    Args:
        pipe: a diffusers text-to-image pipeline of a known family.
        prompts: a prompt file (format: `dsas_core.prompts`), or its content.
        sites: where to steer; this and the settings below are explained at `dsas_diffusion.learn`.
        steps: denoising steps of each picture.
        seed: of noise, prompt choice and cross-validation.
        count: source prompts, and as many target prompts.
        edges: ascending timesteps that separate bins.
        positions: which text tokens are read and steered.
        guidance: classifier-free guidance scale.
        size: side of a picture in pixels.
        batch: prompts per generation.
        masks: where pictures of source prompts show the concept.
        store: a folder for the captured activations.
        keep_prompts: what concepts keep of their prompts.
        checkpoint: where joint training is kept.
        show_progress: whether to show progress bars.

    Example:
        >>> import dsas_diffusion as dsas
        >>> lesson = Lesson(dsas.load_pipeline("builtin:emoji"), "prompts/banana-blur.yaml", steps=4, count=16)
        >>> # concepts = [lesson.learn(method) for method in ("caa", "mean-act", "linear-act")]  # minutes
        >>> len(lesson.fitting["source"]), len(lesson.held_out["source"])
        (12, 4)
    """

    LIBRARIES = ("diffusers", "transformers")
    DRIFT = 0.1

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
        keep_prompts: str | None = None,
        checkpoint: str | Path | None = None,
        show_progress: bool = False,
    ) -> None:
        self.adapter = adapt(pipe)
        self.adapter.check_loaded()
        family, content = self.adapter.family, load_prompts(prompts)
        steered = self.adapter.find_sites(sites)
        #: sites whose positions are words of the prompt
        self.text_sites = [site for site in steered if not has_patches(site, family.denoiser)]
        #: candidates for the probes that see where a picture shows the concept
        self.mask_sites = self.adapter.find_mask_sites()
        self.settings = settings_of(self.adapter, steps, guidance, optional("size", size))
        self.positions, self.batch, self.masks, self.store = positions, number("batch", batch), masks, store
        self.checkpoint = checkpoint
        if positions == "words" and any(site.argument for site in steered):
            raise UnsupportedError(
                "positions='words' is of layers of text encoders; at the embeddings gates find the words that show the "
                "concept: leave positions out, or learn with sites='text'"
            )
        super().__init__(
            content,
            content.draw(count, seed),
            steered,
            model_name=self.adapter.name,
            settings={"settings": asdict(self.settings), "positions": positions},
            edges=edges if edges is not None else WINDOWS if all(site.argument for site in steered) else family.edges,
            count=count,
            seed=seed,
            keep_prompts=keep_prompts,
            show_progress=show_progress,
        )

    def _recipe(self, given: Mapping[str, Any] | None, **fields: Any) -> Recipe:
        defaults: dict[str, Any] = {}
        if self.masks is not None and not self.text_sites:
            defaults = {"supervision": "positions"}
        recipe = recipe_of(given, **defaults, **fields)
        gate = recipe.resolved_gate
        if isinstance(recipe.below, float | int):
            check_below(recipe.below, self.edges, self.content.name)
        marked = "supervision" not in (given or {}) or recipe.supervised
        if marked and self._at_embeddings and gate.reads_positions("token") and self._words.words is not None:
            of_words = {"supervision": "positions", "form": "token", "source_h": WORD_H}
            with suppress(DSASError):  # a part of a combined gate that marked positions cannot tell anything
                recipe = recipe_of({**of_words, **(given or {})}, **fields)
        for name, choice in (("gate form", recipe.form), ("pooling", recipe.pooling)):
            if choice in (*TEXT_FORMS, "leading"):
                raise UnsupportedError(f"{name} {choice!r} is of texts that are written: choose another for pictures")
        return recipe

    def captured(self, recipe: Recipe) -> Captured:
        return self._unsteered.captured

    def _recapture(self, site: Site, learned: Concept, recipe: Recipe) -> Capture:
        return self._capture([site], f"capturing at {site}", learned, recipe)[0]

    def _position_labels(self, recipe: Recipe) -> Mapping[str, LabelPositions]:
        if self._at_embeddings:
            return self._words.labels()  # raises where it is not known which words show the concept
        masks_for(self.masks, self.content, self.text_sites)  # raises where gates read words
        return {"source": patch_labels(self._source_masks)}

    @cached_property
    def _find_masks(self) -> Masks:
        return masks_for(self.masks, self.content)

    @cached_property
    def _source_masks(self) -> list[np.ndarray | None]:
        """Where the pictures of source prompts show the concept."""
        return find_marked(self._find_masks, decode(self.adapter, self._unsteered.latents["source"]))

    def _choose_unit(self, concept: Concept, recipe: Recipe, drift: float, done: Callable[[], object]) -> Concept:
        """The concept with its unit, and with the steps that it steers in."""
        if not self._at_embeddings or recipe.below != "auto":
            below = None if isinstance(recipe.below, str) else recipe.below
            return super()._choose_unit(concept.steering_below(below), recipe, drift, done)

        def effect_of(one: Concept) -> float:
            tried = one.evidence["unit"]["trials"]
            return next(float(trial["effect"]) for trial in tried if trial["unit"] == one.unit)

        tried: list[Concept] = []
        for below in (*self.edges, None):
            late = concept.steering_below(below)
            if below is not None and not self._trial.is_promising(late, concept.steering_below(None)):
                continue
            tried.append(super()._choose_unit(late, recipe, drift, done))
            if effect_of(tried[-1]) >= EARLIER:
                break
        return max(tried, key=lambda one: min(effect_of(one), EARLIER))

    def _fit_readers(self, recipe: Recipe) -> tuple[list[Intervention], dict[str, Any]]:
        extra = self._unsteered.extra
        source, control = ({site: extra[side][str(site)] for site in self.mask_sites} for side in MASK_SIDES)
        patches = recipe.supervised and not self.text_sites
        masks = self._source_masks if patches or self.masks is not None else None
        unnamed = self._unnamed if masks is not None and self.content.source_unnamed else None
        weights = tuple(float(start < LATE) for start in (0.0, *self.edges))
        fitted = fit_mask(source, control, weights, masks, unnamed)
        return fitted.interventions, {"mask": rule_as_evidence(fitted.rule)}

    def _finish(self, concept: Concept, meter: Meter) -> Concept:
        with meter.phase(KEPT), progress_bar(1 + MORE_TURNS, KEPT, self.show_progress) as bar:
            concept = self._trial.measure_reach(concept) if localises(concept) else concept
            kept = self._count_kept(concept, bar.update).as_evidence()
        for line in describe_changes(kept):
            warnings.warn(f"concept {concept.name!r}: {line}", stacklevel=4)
        return replace(concept, evidence={**concept.evidence, "kept": kept})

    def _count_kept(self, concept: Concept, done: Callable[[], object]) -> Kept:
        """What of held-out pictures stays at a strength of 1; of more of them where few leave it open."""
        kept = self._trial.pictures.count_kept(concept, concept.unit)
        done()
        drawn = [*self.fitting["source"], *self.held_out["source"]]
        for turn in range(MORE_TURNS):
            if kept.beside.is_known or not kept.beside.pictures:
                break
            more = self.content.draw_held_out("source", len(self.held_out["source"]), self.seed + turn, drawn)
            if not more:
                break
            prompts, seed = HeldOutPrompts.of({"source": more, "control": ()}, self.content), self.seed + 4 + turn
            pictures = HeldOutPictures(self.adapter, prompts, self.settings, seed, self.batch)
            kept += pictures.count_kept(concept, concept.unit)
            drawn += more
            done()
        return kept

    @cached_property
    def _unnamed(self) -> Unnamed:
        """Pictures of prompts that do not name the thing, and where they show it."""
        prompts = self.content.draw_unnamed(CONTROLS * self.count, self.seed)
        seeds = seeds_for(prompts, self.seed + 3)
        grids: list[dict[Site, torch.Tensor]] = []
        masks: list[np.ndarray | None] = []
        with (
            BatchLayout(self.adapter, positions=self.positions) as layout,
            LateMeans(layout, self.mask_sites, lambda site, x: pool_patches(x)) as means,
        ):
            for latents in latent_batches(self.adapter, prompts, seeds, self.settings, self.batch):
                grids.append(means.take())
                masks += self._find_masks(decode(self.adapter, latents))
        return Unnamed({site: torch.cat([part[site] for part in grids]) for site in self.mask_sites}, masks)

    @cached_property
    def _trial(self) -> PictureTrial:
        latents, settings = self._unsteered.latents, self.settings
        with progress_bar(PictureTrial.PARTS, "drawing held-out pictures", self.show_progress) as bar:
            return PictureTrial(
                *(self.adapter, latents, self.held_out, self.content, settings, self.seed, self.batch), bar.update
            )


#: the public name
Lesson = PictureLearner
