"""Evaluation of a concept on a language model: effect, preservation, fluency and knowledge of every arm.

Held-out source prompts are answered greedily in every arm, and a judge scores the answers; answers that repeat
themselves score 0. Preservation is measured on control prompts: the share of changed answers, the perplexity of given
answers and, for the built-in model, the share of lost facts. Answers are cached by content
(`dsas_core.llm.evaluation.answer_store`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...concept.concept import Concept
from ...errors import UnsupportedError
from ...evaluation import Cell, Evaluation, Plan, RunStore, run_store
from ...learning.prompts.prompt_set import PromptSet
from ...steering.handle import refuse_steered
from ...steering.strengths import Auto
from ...utils.versions import versions
from ..model.layers import roots_of
from ..steering.steer import steer
from .answer_store import AnswerStore, ArmAt
from .judges import TextJudge
from .repetition import repeats

#: control prompts in the workload for time and memory
TIMED = 8


def identity(model: Any, concept: Concept, prompts: PromptSet) -> dict[str, Any]:
    """The `RunStore` identity of an evaluation: model, concept and prompt file."""
    return run_store.identity(roots_of(model), concept, prompts)


def evaluate(
    model: Any,
    tokenizer: Any,
    concept: Concept,
    prompts: PromptSet,
    judge: TextJudge | Sequence[TextJudge],
    run: RunStore,
    plan: Plan | None = None,
    *,
    tasks: Sequence[str] = (),
    limit: int | None = None,
) -> dict[str, Any]:
    """Measure a concept.

    Args:
        model: the causal language model that the concept was learned on.
        tokenizer: of the model.
        concept: the concept to measure.
        prompts: the prompt file; see `PromptSet.fresh` for which prompts are drawn from it.
        judge: scores answers. Of several judges, figures are the first one's, and the others' mean scores are reported
            beside them.
        run: caches results; its identity is `identity(model, concept, prompts)`.
        plan: how much to measure. Answers are greedy, so seeds do not matter.
        tasks: of lm-evaluation-harness, by name or YAML file; run without steering, with DSAS and always on.
        limit: questions of each task; None asks them all.

    Returns:
        Plain data: the figures of `summarise` with `baselines`, `judges`, `wordings`, `tasks`, `cost`, `samples`
        (answers by arm) and `skipped` (what could not be measured, and why).

    Raises:
        DSASError: no prompts for an arm, a model with an encoder, or a task that lm-evaluation-harness does not know.

    Example:
        >>> import tempfile
        >>> from dsas_core import Concept, llm
        >>> from dsas_core.learning.prompts.prompt_file import load_prompts
        >>> from dsas_core.llm.evaluation.judges import judge_from
        >>> concept = Concept.from_pretrained("builtin:rudeness")
        >>> model, tokenizer = llm.load("builtin:chat")
        >>> prompts = load_prompts(concept.provenance["prompts"])
        >>> run = RunStore(tempfile.mkdtemp(), identity(model, concept, prompts))
        >>> plan = Plan(count=2, strengths=(1.0,), arms=("dsas",))
        >>> judge = judge_from({"scorer": {"model": "builtin:chat"}})
        >>> figures = evaluate(model, tokenizer, concept, prompts, judge, run, plan)
        >>> round(figures["arms"]["dsas"]["points"][0]["effect"]["value"], 2)
        1.0
    """
    if "encoder" in roots_of(model):
        raise UnsupportedError(
            "a model with an encoder cannot be evaluated yet: take one that answers prompts by itself"
        )
    refuse_steered(roots_of(model), "an evaluation")
    return TextEvaluation(concept, prompts, judge, run, plan or Plan(), model, tokenizer, tasks, limit).report()


@dataclass(eq=False)
class TextEvaluation(Evaluation):
    """The evaluation of a concept on a language model; arguments as in `evaluate`."""

    model: Any
    tokenizer: Any
    tasks: Sequence[str]
    limit: int | None
    outputs = "answers"

    def __post_init__(self) -> None:
        super().__post_init__()
        if "unseen_target" not in self.prompt_set.evaluation:
            self.rewritten = []  # the pairs of learning differ in their given answers, not in what they ask for
        self.answers = AnswerStore(self.model, self.tokenizer, self.concept, self.prompts, self.rewritten, self.store)

    def run_arms(self) -> None:
        self.answers.complete([("base", 0.0), ("dsas", 1.0)], "answering")
        self.answers.complete(self.grid, "answering in all arms")
        if self.rewritten:
            self.answers.complete([("asked", 0.0)], "answering rewritten prompts")

    def judge_outputs(self, judge: TextJudge, arm: str, strength: float | Auto) -> np.ndarray:
        """The judge's scores; 0 for an answer that repeats itself."""
        answers = self.answers.values(arm, strength)["source"]
        scores = zip(answers, judge.target_scores(answers), strict=True)
        return np.array([0.0 if repeats(answer) else score for answer, score in scores])

    def preservation(self, arm: str, strength: float | Auto) -> tuple[np.ndarray, dict[str, float]]:
        base, steered = self.answers.values("base"), self.answers.values(arm, strength)
        changed = np.array([float(a != b) for a, b in zip(base["control"], steered["control"], strict=True)])
        more = {"unchanged": 1 - float(np.mean(changed)), "degenerate": _share_of_repeats(steered["source"])}
        if not self.concept.by_prompt:
            ratio = float(np.mean(steered["losses"]) - np.mean(base["losses"]))
            more["perplexity_ratio"] = math.exp(min(50.0, ratio))
        if base["facts"] is not None:
            more["knowledge_lost"] = 100 * float(np.mean(base["facts"]) - np.mean(steered["facts"]))
        return changed, more

    def mean_h(self, side: str) -> float:
        return float(self.answers.values("dsas", 1.0)["h"][side])

    def baseline_figures(self, arm: str) -> dict[str, float]:
        cost = {"cost": 0.0} if arm == "base" else {}
        return {**cost, "degenerate": _share_of_repeats(self.answers.values(arm)["source"])}

    def further_figures(self) -> dict[str, Any]:
        if not self.rewritten:
            self.skip("asking in words: the prompt file's evaluation has no unseen_target; effects are of all")
        if self.answers.values("base")["facts"] is None and not self.tasks:
            self.skip("knowledge: name tasks of lm-evaluation-harness (--tasks)")
        if self.concept.by_prompt:
            self.skip("perplexity: of given answers nothing tells the gate where the prompt ends")
        return {"tasks": self._task_results()}

    def sample(self, side: str, number: int) -> dict[str, str]:
        strongest = self.plan.strengths[-1]
        jobs: dict[str, ArmAt] = {"base": ("base", 0.0), **{arm: (arm, 1.0) for arm in self.plan.arms}}
        jobs |= {f"{arm} ×{strongest:g}": (arm, strongest) for arm in ("dsas", "on") if arm in self.plan.arms}
        return {label: self.answers.values(*job)[side][number] for label, job in jobs.items()}

    def timed_work(self) -> tuple[Callable[[], object], Mapping[str, Any], torch.device]:
        """A forward pass over a few control prompts with given answers: as many tokens, steered or not."""
        reader = self.answers.reader
        (batch,) = reader.batches(self.answers.encoded["control"][:TIMED])
        about = {**self.answers.model_key, "tokens": batch.ids.tolist()}
        return lambda: reader.run(batch), about, reader.device

    def attach(self, gate: str | None = None) -> AbstractContextManager[Any]:
        return steer(self.model, {self.concept: 1.0}, gate=gate)

    def _task_results(self) -> list[dict[str, Any]]:
        """Results of lm-evaluation-harness without steering, with DSAS and always on, at strength 1."""
        if not self.tasks:
            return []
        if self.concept.by_prompt:
            self.skip("tasks: nothing tells the gate where a prompt ends (dsas_core.llm.evaluation.lm_eval_harness)")
            return []
        arms = ("base", "dsas", "on")
        results = self.store.complete([self._task_cell(arm) for arm in arms], "tasks")
        return [{"arm": arm, **result.values} for arm, result in zip(arms, results, strict=True)]

    def _task_cell(self, arm: str) -> Cell:
        from . import lm_eval_harness

        def make(folder: Path) -> dict[str, float]:
            with nullcontext() if arm == "base" else self.attach("on" if arm == "on" else None):
                return lm_eval_harness.run_tasks(self.model, self.tokenizer, self.tasks, self.limit)

        key = {
            "kind": "tasks",
            **self.answers.model_key,
            "concept": None if arm == "base" else self.concept.digest,
            "arm": arm,
            "tasks": [[task, Path(task).read_text() if Path(task).is_file() else None] for task in self.tasks],
            "limit": self.limit,
            "by": versions("lm_eval", "datasets"),
        }
        return Cell(key, make)


def _share_of_repeats(answers: Sequence[str]) -> float:
    return float(np.mean([repeats(text) for text in answers]))
