"""Learning a concept, whatever a model makes: the road that pictures and texts share.

Prompts are split into those to fit on and a held-out quarter; the first run through the model once, and what is
captured is kept for every concept that is fitted on it; maps and gates are fitted (`learn.fit_sites`); the unit of
strength is chosen on the held-out quarter (`held_out_trial`). A domain says how prompts run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, Generic

from ..concept.concept import Concept
from ..concept.evidence import SiteEvidence
from ..model.sites import Roots, Site
from ..utils.progress import progress_bar
from ..utils.versions import versions
from .calibration.unit import TRIALS, units_of
from .capture import Captured, Shown
from .fit import as_concept, fit_sites
from .held_out_trial import HeldOutTrial
from .prompts.prompt_set import PromptSet, Text, split_held_out
from .recipe import Recipe


class Learner(ABC, Generic[Text]):
    """The prompts of a concept, run through a model once; any number of concepts are fitted on what was captured.

    Args:
        content: the prompt file.
        prompts: those that were drawn from it, by side, as the domain runs them.
        sites: where to fit.
        model_name: what the provenance calls the model.
        settings: settings of the domain's own that the provenance keeps, as plain data.
        heatmap_sites: sites that are only read, for the trace.
        edges: ascending timesteps that separate bins.
        count, seed: as the prompts were drawn.
        show_progress: whether to show bars.
    """

    #: packages whose versions the provenance tells
    LIBRARIES: ClassVar[tuple[str, ...]]
    #: whether outputs tell what a strength does; where they don't, the unit is 1
    tries_units = True

    def __init__(
        self,
        content: PromptSet,
        prompts: Mapping[str, Sequence[Text]],
        sites: list[Site],
        *,
        model_name: str,
        settings: Mapping[str, Any],
        heatmap_sites: Sequence[Site] = (),
        edges: Sequence[float] = (),
        count: int,
        seed: int,
        show_progress: bool,
    ) -> None:
        self.content, self.sites, self.heatmap_sites, self.edges = content, sites, list(heatmap_sites), tuple(edges)
        self.model_name, self.own_settings = model_name, settings
        self.count, self.seed, self.show_progress = count, seed, show_progress
        self.fitting, self.held_out = split_held_out(prompts)

    def fit(self, recipe: Recipe, drift: float) -> Concept:
        """A concept by a recipe, its unit chosen so that control prompts drift by no more than the limit."""
        labels = self._position_labels(recipe) if recipe.supervised else None

        def labelled(capture: Captured) -> Captured:
            if labels is not None:
                capture.mark("source", labels)
            return capture

        def recapture(site: Site, learned: Concept) -> Captured:
            return labelled(self._recapture(site, learned, recipe))

        capture = labelled(self.captured(recipe))
        with progress_bar(len(self.sites) + len(self.heatmap_sites), "fitting", self.show_progress) as bar:
            interventions, evidence = fit_sites(capture, recipe, bar.update, self.heatmap_sites, recapture)
        more_evidence = self._more_evidence(recipe, evidence)
        concept = as_concept(
            interventions,
            evidence,
            recipe,
            self.content,
            self._roots,
            self.edges,
            model=self.model_name,
            count=self.count,
            prompts_used={side: len(prompts) for side, prompts in self.fitting.items()},
            **self.own_settings,
            seed=self.seed,
            versions=versions(*self.LIBRARIES),
        )
        concept = replace(concept, evidence={**concept.evidence, **more_evidence})
        if not self.tries_units:
            return concept
        with progress_bar(min(TRIALS, len(units_of(concept.method))), "choosing the unit", self.show_progress) as bar:
            unit, unit_evidence = self._trial.choose_unit(concept, drift, bar.update)
        return replace(concept, unit=unit, evidence={**concept.evidence, "unit": unit_evidence})

    @abstractmethod
    def captured(self, recipe: Recipe) -> Captured:
        """What sites show of the unsteered model, for a recipe to be fitted on; captured when it is first asked for."""

    @abstractmethod
    def _recapture(self, site: Site, learned: Concept, recipe: Recipe) -> Captured:
        """What a site shows while a concept steers the kinds of prompts that the recipe has it steer."""

    @abstractmethod
    def _position_labels(self, recipe: Recipe) -> Shown:
        """Which positions of source prompts show the concept."""

    @cached_property
    @abstractmethod
    def _trial(self) -> HeldOutTrial:
        """What tries strengths on the held-out prompts."""

    def _more_evidence(self, recipe: Recipe, evidence: Sequence[SiteEvidence]) -> dict[str, Any]:
        """Evidence of the domain's own, beside that of the sites."""
        return {}

    @property
    @abstractmethod
    def _roots(self) -> Roots:
        """The modules that can be steered, by name."""
