"""Learning a concept: what pictures and texts share.

Prompts are split into those to fit on and a held-out quarter. The former run through the model once, and the captured
activations are kept for every concept that is fitted on them; maps and gates are fitted (`fit.fit_sites`); the unit of
strength is chosen on the held-out quarter (`held_out_trial`). A domain defines how prompts run.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic

import torch

from ..concept.concept import Concept
from ..concept.evidence import SiteEvidence
from ..concept.intervention import Intervention
from ..concept.schema import check_name
from ..errors import PromptError
from ..model.fingerprints import describe_module, fingerprint, weights_digest
from ..model.sites import Roots, Site
from ..utils.meter import Meter
from ..utils.numbers import number
from ..utils.processes import Share
from ..utils.progress import progress_bar
from ..utils.versions import versions
from .calibration.unit import TRIALS, units_of
from .capture import LabelPositions, check_edges
from .capture_store import Captured
from .fit import fit_sites
from .held_out_trial import HeldOutTrial
from .joint.checkpoint import check_trains
from .joint.fit import fit_jointly
from .joint.runs import JointRuns
from .prompts.held_out import split_held_out
from .prompts.kept import record_prompts, what_to_keep
from .prompts.prompt_set import PromptSet, Text
from .recipe import Recipe


class Learner(ABC, Generic[Text]):
    """The prompts of a concept, run through a model once; any number of concepts are fitted on what was captured.

    Args:
        content: the prompt file.
        prompts: the prompts drawn from it, by side, as the domain runs them.
        sites: where to fit.
        model_name: the model's name in the provenance.
        settings: settings of the domain to record in the provenance, as plain data.
        edges: ascending timesteps that separate bins.
        count: number of source prompts that were drawn.
        seed: seed with which they were drawn, and of cross-validation.
        keep_prompts: what concepts keep of the prompts, see `prompts.kept.what_to_keep`.
        show_progress: whether to show progress bars.
    """

    #: packages whose versions the provenance records
    LIBRARIES: ClassVar[tuple[str, ...]]
    #: drift that the unit may cost where the user gives no limit, in the domain's measure
    DRIFT: ClassVar[float]
    #: a folder where joint training is kept, so that an interrupted one goes on; None for nowhere
    checkpoint: str | Path | None = None
    #: of this process among those that train together: `utils.processes.process_share` where several do
    share = Share()
    #: whether outputs show what a strength does; where they don't, the unit is 1
    tries_units = True

    def __init__(
        self,
        content: PromptSet,
        prompts: Mapping[str, Sequence[Text]],
        sites: list[Site],
        *,
        model_name: str,
        settings: Mapping[str, Any],
        edges: Sequence[float] = (),
        count: int,
        seed: int,
        keep_prompts: str | None = None,
        show_progress: bool,
    ) -> None:
        try:
            check_name(content.name)  # before the long work, not when it is saved
        except ValueError as error:
            raise PromptError(f"prompt file: {error}") from None
        self.content, self.sites, self.edges = content, sites, check_edges(edges)
        self.model_name, self.own_settings = model_name, settings
        self.count, self.seed, self.show_progress = count, seed, show_progress
        self.keep_prompts = what_to_keep(keep_prompts, content)
        self.fitting, self.held_out = split_held_out(prompts)

    def learn(
        self,
        method: str = "caa",
        gate: str | None = None,
        *,
        drift: float | None = None,
        recipe: Mapping[str, Any] | None = None,
    ) -> Concept:
        """Fit a concept.

        Args:
            method: a map method of `dsas_core.methods`.
            gate: a gate of `dsas_core.methods`; None for the method's own, or `dsas`.
            drift: limit on the drift of control prompts while the unit is chosen; None for the default of `learn`.
            recipe: further fields of `dsas_core.Recipe`.

        Returns:
            The concept with its unit and evidence; not saved yet.

        Raises:
            DSASError: bad names or fields; no site tells source from control.
        """
        chosen = self._recipe(recipe, method=method, gate=gate, seed=self.seed)
        return self.fit(chosen, number("drift", self.DRIFT if drift is None else drift))

    @torch.inference_mode(False)  # whatever it is called in: fits and trainings change tensors, and take gradients
    def fit(self, recipe: Recipe, drift: float) -> Concept:
        """Fit a concept by a recipe, its unit chosen so that control prompts drift by at most the limit."""
        check_trains(self.checkpoint, recipe)
        meter = self._meter()
        labels = self._position_labels(recipe) if recipe.supervised else {}

        def recapture(site: Site, learned: Concept) -> Captured:
            with meter.phase("reading"):
                return _marked(self._recapture(site, learned, recipe), labels)

        with meter.phase("reading"):
            capture = _marked(self.captured(recipe), labels)
        reads = self._read_sites(recipe)
        sites = len(self.sites) + len(reads)
        trained: dict[str, Any] = {}
        with meter.phase("fitting"), progress_bar(sites, "fitting", self.show_progress) as bar:
            if recipe.mode == "joint":
                with meter.phase("training"):
                    interventions, evidence, training = self._train(capture, recipe, bar.update, reads)
                trained = {"training": training}
            else:
                interventions, evidence = fit_sites(capture, recipe, bar.update, recapture, reads)
            readers, reading = self._fit_readers(recipe)
        more_evidence = {**self._more_evidence(recipe, evidence), **reading, **trained}
        all_evidence = {"sites": [asdict(item) for item in evidence], **more_evidence}
        concept = _new_concept(self, [*interventions, *readers], recipe, all_evidence)
        if self.tries_units:
            trials, label = min(TRIALS, len(units_of(concept.method))), "choosing the unit"
            with meter.phase(label):
                _ = self._trial  # which draws, or writes, what is steered next
            with meter.phase(label), progress_bar(trials, label, self.show_progress) as bar:
                concept = self._choose_unit(concept, recipe, drift, bar.update)
        concept = self._finish(concept, meter)
        return replace(concept, evidence={**concept.evidence, "cost": meter.summary()})

    @torch.inference_mode(False)
    def join(self, method: str = "caa", gate: str | None = None, *, recipe: Mapping[str, Any] | None = None) -> None:
        """The part of `learn` that processes share, capturing and training; for all but the first, which learns."""
        chosen = self._recipe(recipe, method=method, gate=gate, seed=self.seed)
        capture = self.captured(chosen)
        if chosen.mode == "joint":
            labels = self._position_labels(chosen) if chosen.supervised else {}
            self._train(_marked(capture, labels), chosen, lambda: None, self._read_sites(chosen))

    def _train(
        self, capture: Captured, recipe: Recipe, done: Callable[[], object], read_sites: Sequence[Site]
    ) -> tuple[list[Intervention], list[SiteEvidence], dict[str, Any]]:
        """Train all sites together, see `joint.fit.fit_jointly`."""
        used = json.dumps(record_prompts(self.content, self.count, self.seed, "hash"), sort_keys=True)
        prompts = hashlib.sha256(used.encode()).hexdigest()
        about = {"model": self.model_name, "prompts": prompts, **self.own_settings}
        if self.checkpoint is not None:
            about["weights"] = weights_digest({site.root: self._roots[site.root] for site in self.sites})
        return fit_jointly(
            capture,
            recipe,
            self._joint_runs(recipe),
            folder=self.checkpoint,
            about=about,
            share=self.share,
            done=done,
            read_sites=read_sites,
            show_progress=self.show_progress,
        )

    @abstractmethod
    def captured(self, recipe: Recipe) -> Captured:
        """Activations of the unsteered model for a recipe to be fitted on; captured when first asked for."""

    @abstractmethod
    def _recipe(self, given: Mapping[str, Any] | None, **fields: Any) -> Recipe:
        """The recipe of the user's fields over these and the domain's defaults, checked for the domain."""

    @abstractmethod
    def _joint_runs(self, recipe: Recipe) -> JointRuns:
        """Runs prompts through the model for joint training."""

    @abstractmethod
    def _recapture(self, site: Site, learned: Concept, recipe: Recipe) -> Captured:
        """Activations of a site while a concept steers the kinds of prompts that the recipe steers."""

    @abstractmethod
    def _position_labels(self, recipe: Recipe) -> Mapping[str, LabelPositions]:
        """Which positions of source prompts show the concept, and perhaps which of target prompts replace them."""

    @cached_property
    @abstractmethod
    def _trial(self) -> HeldOutTrial:
        """Tries strengths on the held-out prompts."""

    def _read_sites(self, recipe: Recipe) -> Sequence[Site]:
        """Sites that are read for one gate of all sites, and not steered; none where each site has its own."""
        return ()

    def _fit_readers(self, recipe: Recipe) -> tuple[Sequence[Intervention], Mapping[str, Any]]:
        """Interventions that only read, for masks and heat-maps, and their evidence; none where there are no places."""
        return (), {}

    def _choose_unit(self, concept: Concept, recipe: Recipe, drift: float, done: Callable[[], object]) -> Concept:
        """The concept with its unit, and the evidence of it."""
        unit, evidence = self._trial.choose_unit(concept, drift, done)
        return replace(concept, unit=unit, evidence={**concept.evidence, "unit": evidence})

    def _finish(self, concept: Concept, meter: Meter) -> Concept:
        """The concept with what the domain measures once its unit is chosen."""
        return concept

    def _meter(self) -> Meter:
        """Measures what a concept costs from now on."""
        device = next((x.device for root in self._roots.values() for x in root.parameters()), None)
        return Meter(device)

    def _more_evidence(self, recipe: Recipe, evidence: Sequence[SiteEvidence]) -> dict[str, Any]:
        """Evidence of the domain, beside that of the sites."""
        return {}

    @property
    @abstractmethod
    def _roots(self) -> Roots:
        """The modules that can be steered, by name."""


def _marked(capture: Captured, labels: Mapping[str, LabelPositions]) -> Captured:
    """What was captured, with the positions marked that show the concept."""
    for side, positions in labels.items():
        capture.mark(side, positions)
    return capture


def _new_concept(
    lesson: Learner[Any], interventions: Sequence[Intervention], recipe: Recipe, evidence: Mapping[str, Any]
) -> Concept:
    """The concept of fitted interventions, before its unit is chosen."""
    touched = {site.root for item in interventions for site in (item.site, item.probe_site) if site is not None}
    steered = {root: lesson._roots[root] for root in sorted(touched)}
    content = lesson.content
    return Concept(
        name=content.name,
        description=content.description,
        interventions=tuple(interventions),
        edges=lesson.edges,
        method=recipe.method,
        gate=str(recipe.gate),
        base={root: fingerprint(module) for root, module in steered.items()},
        learned_on={root: describe_module(module) for root, module in steered.items()},
        evidence=evidence,
        provenance={
            **record_prompts(content, lesson.count, lesson.seed, lesson.keep_prompts),
            "recipe": asdict(recipe),
            "model": lesson.model_name,
            "count": lesson.count,
            "prompts_used": {side: len(prompts) for side, prompts in lesson.fitting.items()},
            **lesson.own_settings,
            "seed": lesson.seed,
            "versions": versions(*lesson.LIBRARIES),
        },
    )
