"""Running the prompts of a picture lesson: activations, latents, and what probes of masks read, kept or stored."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch

from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError
from dsas_core.learning.capture import Capture, LabelPositions, is_timeless
from dsas_core.learning.capture_store import Captured, CaptureStore
from dsas_core.learning.joint.fit import trained_recipe
from dsas_core.learning.joint.runs import HELD_OUT
from dsas_core.learning.joint.settings import training_settings
from dsas_core.learning.learner import Learner
from dsas_core.learning.prompts.kept import hash_prompt
from dsas_core.learning.prompts.prompt_set import SIDES
from dsas_core.learning.recipe import Recipe
from dsas_core.model.hooks import visit
from dsas_core.model.sites import Roots, Site
from dsas_core.steering.steering import Steering
from dsas_core.utils.processes import process_share
from dsas_core.utils.progress import progress_bar

from ..generation.pictures import latents_of, model_key, seeds_for
from ..generation.settings import Settings
from ..pipelines.adapter import PipelineAdapter
from ..pipelines.batch_layout import BatchLayout
from ..steering.concept_masks import LateMeans
from .joint_runs import CallKeeper, PictureRuns, batches_of_two_sizes
from .mask_fit import compact, pool_patches
from .prompt_words import PromptWords, doubtful_words

#: name of the final latents among what is kept of a side beside activations at the steered sites
LATENTS = "latents"
#: sides whose pictures probes of masks are fitted on; what these read is kept by the names of the candidate sites
MASK_SIDES = ("source", "control")
#: kind of the control prompts of which nothing but the embeddings is read
MORE = "context"
#: control prompts for gates of words, for each source prompt: beside those that are drawn, which cost much more
MORE_CONTROLS = 4
#: side -> name -> a row for each prompt
Extra = dict[str, dict[str, torch.Tensor]]


class _Unsteered(NamedTuple):
    """What the unsteered model does on the prompts to fit on: activations at the steered sites, and the rest."""

    captured: Captured
    extra: Extra

    @property
    def latents(self) -> dict[str, torch.Tensor]:
        """The final latents of each side."""
        return {side: tensors[LATENTS] for side, tensors in self.extra.items()}


class PictureCapturing(Learner[str]):
    """What a lesson of pictures runs on the model: the part of it that knows prompts, sites and settings, and no fit.

    Attributes:
        adapter: of the pipeline.
        text_sites: sites whose positions are words of the prompt.
        mask_sites: candidates for the probes that see where a picture shows the concept.
        settings: of the pictures.
        positions: which text tokens are read and steered.
        batch: prompts per generation.
        store: a folder for the captured activations, or None.
    """

    adapter: PipelineAdapter
    text_sites: list[Site]
    mask_sites: list[Site]
    settings: Settings
    positions: str
    batch: int
    store: str | Path | None

    @property
    def _roots(self) -> Roots:
        return self.adapter.roots

    @property
    def _at_embeddings(self) -> bool:
        """Whether all that is steered are embeddings of the prompt."""
        return all(site.argument for site in self.sites)

    @cached_property
    def _words(self) -> PromptWords:
        spans = self.content.expanded("spans")
        found = PromptWords(self.adapter, self._texts, spans)
        taken = [] if found.words is None or spans else found.words["source"]
        if taken and (doubtful := doubtful_words(self._texts, taken)):
            warnings.warn(
                f"concept {self.content.name!r}: no control prompt has {', '.join(doubtful)}; what shows the concept "
                f"is taken to be {', '.join(taken)}: add controls that have the others, or list what shows it as spans "
                "in the prompt file",
                stacklevel=4,
            )
        return found

    @cached_property
    def _texts(self) -> dict[str, Sequence[str]]:
        """What the model runs on, by kind: the prompts that are fitted on, and more controls for gates of words."""
        if not self._at_embeddings:
            return self.fitting
        avoid = [text for texts in (*self.fitting.values(), *self.held_out.values()) for text in texts]
        more = self.content.draw_more("control", MORE_CONTROLS * self.count, self.seed, avoid)
        return {**self.fitting, **({MORE: more} if more else {})}

    @cached_property
    def _unsteered(self) -> _Unsteered:
        """What the unsteered model does on the prompts that are fitted on."""
        if self.store is None:
            return _Unsteered(*self._capture(self.sites, "capturing", masks=True))
        device = self.adapter.pipe.device
        share = process_share(on_cpu=device.type == "cpu")
        about = {**model_key(self.adapter), "prompts": self._stored_prompts(), **self.own_settings}
        about |= {"seed": self.seed, "batch": self.batch, "mask sites": list(map(str, self.mask_sites))}
        store = CaptureStore(self.store, about, self.sites, self.edges)
        own_batches = self._batches()[share.process :: share.processes]
        with progress_bar(len(own_batches), "capturing batches", self.show_progress) as bar:
            for side, start in own_batches:
                if not store.has(side, start):
                    capture, extra = self._capture(self.sites, "", batches=[(side, start)], masks=True)
                    store.write(side, start, capture, extra.get(side, {}))
                bar.update()
        share.wait()
        store.read(list(self._texts))
        names = {side: [LATENTS, *(map(str, self.mask_sites) if side in MASK_SIDES else ())] for side in self.fitting}
        extra = {side: {name: store.read_extra(side, name) for name in names[side]} for side in names}
        for tensors in extra.values():
            tensors[LATENTS] = tensors[LATENTS].to(device)
        return _Unsteered(store, extra)

    def _joint_runs(self, recipe: Recipe) -> PictureRuns:
        """The calls of the root that is steered, kept while pictures of all prompts are drawn unsteered."""
        root, settings = self.sites[0].root, self.settings
        moments = training_settings(recipe.training).moments
        if all(is_timeless(site, self._timeless) for site in self.sites):  # the same in every step
            settings, moments = replace(settings, steps=1), 1
        keeper = CallKeeper(root, moments)
        sides = SIDES if recipe.resolved_gate.traits.trained or trained_recipe(recipe) != recipe else SIDES[:2]
        texts = {kind: list(self.fitting[kind]) for kind in sides}
        texts |= {HELD_OUT + kind: list(self.held_out[kind]) for kind in sides}
        batches = batches_of_two_sizes({kind: len(found) for kind, found in texts.items()}, self.batch)
        with (
            BatchLayout(self.adapter, positions=self.positions) as layout,
            visit(self._roots, (), Capture(), keeper.describe(layout.describe())),
            progress_bar(len(batches), "keeping calls", self.show_progress) as bar,
        ):
            for kind, start, end in batches:
                keeper.start(kind, start)
                seeds = seeds_for(texts[kind], self.seed)[start:end]
                latents_of(self.adapter, texts[kind][start:end], seeds, settings, end - start)
                bar.update()
            keeper.finish()
        counts = {kind: len(found) for kind, found in texts.items()}
        layout_of = layout.joint_of if root == self.adapter.family.denoiser else lambda args, kwargs: None
        return PictureRuns(self._roots, keeper, counts, self._joint_labels(recipe, texts), layout_of)

    def _joint_labels(self, recipe: Recipe, texts: Mapping[str, Sequence[str]]) -> Mapping[str, LabelPositions]:
        """Which embeddings show the concept, of source and target prompts; none where means are over all positions."""
        if not (self._at_embeddings and recipe.supervised and recipe.pooling == "gated"):
            return {}
        words = self._words.of(texts)
        return {kind: words.labels_of(kind) for kind in texts if not kind.endswith("control")}

    @property
    def _timeless(self) -> set[str]:
        """Roots that run without timesteps."""
        return set(self._roots) - {self.adapter.family.denoiser}

    def _stored_prompts(self) -> Mapping[str, Sequence[str]]:
        """The prompts, or their hashes, by which a folder of activations is known again."""
        if self.keep_prompts == "all":
            return self._texts
        return {side: list(map(hash_prompt, texts)) for side, texts in self._texts.items()}

    def _batches(self) -> list[tuple[str, int]]:
        """Every batch of prompts, as its side and the index of its first prompt."""
        return [(side, start) for side, texts in self._texts.items() for start in range(0, len(texts), self.batch)]

    def _check_bins(self, capture: Capture, sites: Sequence[Site]) -> None:
        """Raise where a bin has no step: the first batch shows it already, and the others may take hours."""
        timed = [site for site in sites if site not in self.text_sites]
        empty = set(range(len(self.edges) + 1)) - {bin_ for site, bin_, _ in capture.rows if site in timed}
        if timed and empty:
            ends = (0.0, *self.edges, 1000.0)
            ranges = ", ".join(f"{ends[bin_]:g} to {ends[bin_ + 1]:g}" for bin_ in sorted(empty))
            raise DSASError(
                f"none of {self.settings.steps} steps comes to timesteps {ranges}, a bin with a probe and map of its "
                "own: use more steps, or fewer bins (edges=(), --edges none)"
            )

    def _capture(
        self,
        sites: Sequence[Site],
        label: str,
        learned: Concept | None = None,
        recipe: Recipe | None = None,
        batches: Sequence[tuple[str, int]] | None = None,
        masks: bool = False,
    ) -> tuple[Capture, Extra]:
        """The activations at some sites; of each side the final latents, and what probes of masks are fitted on.

        The concept learned so far steers the sides that the recipe steers. Where all sites are in text encoders and a
        concept steers, one step is enough: these pictures are not used.
        """
        adapter, roots = self.adapter, self._roots
        text_only = learned is not None and all(site in self.text_sites for site in sites)
        settings = replace(self.settings, steps=1) if text_only else self.settings
        find_words = self._words.find if any(site.argument for site in sites) else None
        capture = Capture(self.edges, seed=self.seed, find_words=find_words)
        parts: dict[str, dict[str, list[torch.Tensor]]] = {}
        batches = self._batches() if batches is None else batches
        steps = {batch: 1 if batch[0] == MORE else settings.steps for batch in batches}
        with (
            BatchLayout(adapter, positions=self.positions) as layout,
            visit(roots, sites, capture, layout.describe()),
            LateMeans(layout, self.mask_sites if masks else (), lambda site, x: pool_patches(x)) as means,
            progress_bar(sum(steps.values()), label, self.show_progress and bool(label)) as bar,
        ):
            for side, start in batches:
                if side != capture.kind:
                    capture.start(side)
                capture.at(start)
                part = slice(start, start + self.batch)
                texts, seeds = self._texts[side][part], seeds_for(self._texts[side], self.seed)[part]
                steering = learned if recipe is not None and recipe.steers(side) else None
                drawn = replace(settings, steps=steps[side, start])
                with nullcontext() if steering is None else Steering({steering: 1.0}).attach(roots, layout.describe()):
                    latents = latents_of(adapter, texts, seeds, drawn, self.batch)
                grids = {str(site): compact(mean) for site, mean in means.take().items() if side in MASK_SIDES}
                if side != MORE:  # of which the embeddings are wanted, and no pictures
                    for name, tensor in {LATENTS: latents, **grids}.items():
                        parts.setdefault(side, {}).setdefault(name, []).append(tensor)
                    self._check_bins(capture, sites)
                bar.update(steps[side, start])
        return capture, {side: {name: torch.cat(own) for name, own in named.items()} for side, named in parts.items()}
