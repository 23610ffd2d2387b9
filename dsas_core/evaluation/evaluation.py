"""The evaluation of a concept, common to pictures and texts: run the arms, judge their outputs, summarise, report.

A subclass defines how prompts run in an arm and how outputs are judged.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from ..concept.concept import Concept
from ..learning.prompts.kept import are_private, hash_prompt
from ..learning.prompts.prompt_set import PromptSet
from ..steering.requirements import obstacle_to_auto
from ..steering.strengths import Auto
from . import cost
from .arms import doses
from .plan import Plan
from .run_store import Cell, RunStore
from .summary import Point, summarise

#: sample prompts of each side in a report
SAMPLES = 4
#: items of the keys of cells that hold prompts
PROMPT_ITEMS = ("prompts", "prompt", "negative", "tokens")


@dataclass(eq=False)
class Evaluation(ABC):
    """The evaluation of one concept.

    Args:
        concept: the concept to measure.
        prompt_set: the prompt file; see `PromptSet.fresh` for which prompts are drawn from it.
        judge: scores outputs. Of several judges, figures are the first one's, and the others' mean scores are
            reported beside them.
        store: caches results.
        plan: how much to measure.

    Raises:
        DSASError: no prompts for an arm.
    """

    concept: Concept
    prompt_set: PromptSet
    judge: Any
    store: RunStore
    plan: Plan
    #: the kind of outputs, as reports call it
    outputs: ClassVar[str]
    #: sides of which reports show samples
    sides: ClassVar[tuple[str, ...]] = ("source", "control")

    def __post_init__(self) -> None:
        judges = list(self.judge) if isinstance(self.judge, Sequence) else [self.judge]
        self.judge, self.other_judges = judges[0], judges[1:]
        self.prompts = self.plan.prompts(self.concept, self.prompt_set)
        #: source prompts that ask in words for what steering does: those of the arm "asked"
        self.rewritten = self.prompts["target"]
        #: whether reports have hashes in place of prompts, and no samples
        self.private = are_private(self.concept, self.prompt_set)
        if self.private:
            self.store = self.store.hiding(*PROMPT_ITEMS)
        #: how often every prompt is run
        self.seeds = 1
        #: what the oracle knows: which "patches", or only which "prompts", show the concept
        self.oracle_knows = "prompts"
        self.skipped: list[str] = []
        if self.plan.targets and not self.autos:
            self.skip(f"strength auto: {obstacle_to_auto(self.concept)}")
        self._scores: dict[tuple[str, float | Auto], np.ndarray] = {}

    # ---- what a domain defines --------------------------------------------------------------------------------------

    @abstractmethod
    def run_arms(self) -> None:
        """Run every prompt in every arm of `grid`, and in the arms without steering: "base", "asked"."""

    @abstractmethod
    def judge_outputs(self, judge: Any, arm: str, strength: float | Auto) -> np.ndarray:
        """A judge's target score of each output of an arm for source prompts, float [n] in [0, 1]."""

    @abstractmethod
    def preservation(self, arm: str, strength: float | Auto) -> tuple[np.ndarray, dict[str, float]]:
        """How much each control output changed, float [n] in [0, 1], and further figures of the arm."""

    @abstractmethod
    def mean_h(self, side: str) -> float:
        """Mean h of DSAS at strength 1."""

    @abstractmethod
    def baseline_figures(self, arm: str) -> dict[str, float]:
        """Further figures of "base" or "asked"."""

    @abstractmethod
    def further_figures(self) -> dict[str, Any]:
        """Figures that only this domain measures."""

    @abstractmethod
    def sample(self, side: str, number: int) -> dict[str, str]:
        """The outputs of some arms for a prompt, by the arm's label."""

    @abstractmethod
    def timed_work(self) -> tuple[Callable[[], object], Mapping[str, Any], torch.device]:
        """The workload for time and memory: a run of the model, plain data that tells it apart, and the device."""

    @abstractmethod
    def attach(self, gate: str | None = None) -> AbstractContextManager[Any]:
        """Steer the model with the concept at strength 1, as a context."""

    # ---- common to all domains --------------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        """Run what is missing, judge all outputs, and return the figures as plain data."""
        self.run_arms()
        arms = {arm: [self._point(arm, strength) for strength in self.plan.strengths] for arm in self.plan.arms}
        base, asked = self.scores("base").tolist(), self.scores("asked").tolist() if self.rewritten else None
        free = [self._point("dsas", auto) for auto in self.autos]
        figures = summarise(arms, base, asked, self.labels("source"), self.labels("control"), free=free)
        return {
            "prompts": {side: list(map(self._shown, texts)) for side, texts in self.prompts.items()},
            **figures,
            "dose": doses({side: self.mean_h(side) for side in ("source", "control")}, self.plan.arms),
            "oracle": self.oracle_knows,
            "baselines": self.baselines(),
            "judges": [self._mean_scores(judge) for judge in self.other_judges],
            "wordings": self._scores_by_template(),
            **self.further_figures(),
            "cost": self.store.complete([self._timing_cell()], "timing")[0].values,
            "samples": [
                {"side": side, "prompt": prompt, self.outputs: self.sample(side, number)}
                for side in (() if self.private else self.sides)
                for number, prompt in enumerate(self.prompts[side][:SAMPLES])
            ],
            "skipped": self.skipped,
        }

    @property
    def autos(self) -> list[Auto]:
        """The plan's targets as strengths; none if the concept cannot choose its strength."""
        return [] if obstacle_to_auto(self.concept) else [Auto(target) for target in self.plan.targets]

    @property
    def unsteered_arms(self) -> list[str]:
        """Arms without steering in the tables of judges and templates."""
        return ["base"]

    @property
    def grid(self) -> list[tuple[str, float | Auto]]:
        """Every arm at every strength, and DSAS that chooses its own strength."""
        swept = [(arm, strength) for arm in self.plan.arms for strength in self.plan.strengths]
        return [*swept, *(("dsas", auto) for auto in self.autos)]

    def scores(self, arm: str, strength: float | Auto = 0.0) -> np.ndarray:
        """The first judge's target scores of an arm's outputs for source prompts, float [n]."""
        if (arm, strength) not in self._scores:
            self._scores[arm, strength] = self.judge_outputs(self.judge, arm, strength)
        return self._scores[arm, strength]

    def labels(self, side: str) -> list[tuple[int, str]]:
        """Seed and prompt of each output of a side."""
        return [(seed, text) for seed in range(self.seeds) for text in self.prompts[side]]

    def skip(self, reason: str) -> None:
        """Record, once, what could not be measured and why."""
        if reason not in self.skipped:
            self.skipped.append(reason)

    def baselines(self) -> dict[str, dict[str, float]]:
        """Figures without steering, and when the prompt asks in words."""
        names = {"no steering": "base"} | ({"asked in words": "asked"} if self.rewritten else {})
        return {
            name: {"shown": float(self.scores(arm).mean()), **self.baseline_figures(arm)} for name, arm in names.items()
        }

    def _shown(self, prompt: str) -> str:
        return hash_prompt(prompt) if self.private else prompt

    def _point(self, arm: str, strength: float | Auto) -> Point:
        cost_of_controls, more = self.preservation(arm, strength)
        number = strength.target if isinstance(strength, Auto) else strength
        return Point(number, self.scores(arm, strength).tolist(), cost_of_controls.tolist(), more)

    def _mean_scores(self, judge: Any) -> dict[str, Any]:
        """A judge's mean target score of every arm at strength 1."""
        jobs = [(arm, 0.0) for arm in self.unsteered_arms] + [(arm, 1.0) for arm in self.plan.arms]
        means = {arm: float(self.judge_outputs(judge, arm, strength).mean()) for arm, strength in jobs}
        return {"judge": judge.name, **means}

    def _scores_by_template(self) -> list[dict[str, Any]]:
        """Mean target scores by the template that source prompts come from."""
        scores = {arm: self.scores(arm) for arm in self.unsteered_arms} | {"dsas": self.scores("dsas", 1.0)}
        template_of = self.prompt_set.wordings("source")
        templates = np.array([template_of[text] for _, text in self.labels("source")])
        return [
            {
                "wording": self._shown(" / ".join(str(template).split("\n"))),
                self.outputs: int((templates == template).sum()),
            }
            | {arm: float(values[templates == template].mean()) for arm, values in scores.items()}
            for template in dict.fromkeys(templates)
        ]

    def _timing_cell(self) -> Cell:
        """Time and memory of steered and unsteered runs."""
        work, about, device = self.timed_work()
        key = {"kind": "timing", **about, "concept": self.concept.digest, "device": cost.device_name(device)}
        return Cell(key, lambda folder: cost.compare_cost(work, self.attach, device))
