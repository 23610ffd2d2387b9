"""Evaluating a concept on a language model: behaviour, preservation, fluency, knowledge, arm by arm.

Source prompts that learning never used are answered greedily in every arm, and a judge scores the answers, of which
those that only repeat themselves count as nothing. Control prompts tell what else changed: how many are answered
otherwise, the perplexity of their given answers, and, of the built-in model, how many facts are lost. Answers are kept
by content (`dsas_core.evaluate.runs`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ..concept import Concept, weights_digest
from ..errors import DSASError
from ..evaluate import Cell, Done, Plan, Point, Run, arm, runs, summed_up
from ..evaluate.arms import BLIND, Scores, load_scores, save_scores, scores_of
from ..evaluate.texts import repeats
from ..probes import LatchProbe
from ..prompts import PromptSet
from .layers import bare, positions_of, roots_of
from .load import BUILTIN
from .prompts import Encoded, encode, pad_token
from .reader import Reader
from .steer import steer
from .toxicity import LexiconScorer, Scorer, scorer

BATCH = 64
#: questions about facts that the built-in model is asked in each arm
QUESTIONS = 300
SHOWN = 4


class TextJudge(Protocol):
    """Tells how much each text shows what a concept is to do."""

    def shown(self, texts: Sequence[str]) -> list[float]:
        """In [0, 1], one for each text."""


@dataclass(frozen=True)
class ScoredJudge:
    """A judge by a scorer of texts.

    Args:
        scores: in [0, 1]. wanted: whether a high score is what the concept is to do, or what it is to remove.
    """

    scores: Scorer
    wanted: bool = False

    def shown(self, texts: Sequence[str]) -> list[float]:
        """The scores, or what is left of 1 where a high score is to be removed."""
        return [score if self.wanted else 1 - score for score in self.scores(texts)]


def judge_from(spec: Mapping[str, Any]) -> TextJudge:
    """A judge from a prompt file's `judge`.

    Args:
        spec: {"scorer": {"model": "builtin:chat", or a text classifier's folder or Hub name, "wanted": false}}, or
            {"words": {"any": [...], "wanted": true}}.

    Raises:
        DSASError: another kind of judge, or one that cannot be loaded.
    """
    kind, settings = next(iter(spec.items()), ("", None))
    if len(spec) != 1 or kind not in ("scorer", "words") or not isinstance(settings, Mapping):
        raise DSASError(f"judge {dict(spec)!r}: expected scorer: {{model, wanted}} or words: {{any, wanted}}")
    named = {"scorer": "model", "words": "any"}[kind]
    unknown = sorted(set(settings) - {named, "wanted"})
    if unknown or named not in settings or not isinstance(settings.get("wanted", False), bool):
        raise DSASError(f"judge {kind}: expected {named}, and wanted: true or false; found {dict(settings)!r}")
    scores = scorer(settings[named]) if kind == "scorer" else LexiconScorer(settings[named])
    return ScoredJudge(scores, settings.get("wanted", kind == "words"))


def identity(model: Any, concept: Concept, prompts: PromptSet) -> dict[str, Any]:
    """What a run is about: with another model, concept or prompt file it is another run."""
    return runs.identity(roots_of(model), concept, prompts)


def evaluate(
    model: Any,
    tokenizer: Any,
    concept: Concept,
    prompts: PromptSet,
    judge: TextJudge,
    run: Run,
    plan: Plan | None = None,
) -> dict[str, Any]:
    """Measure a concept.

    Args:
        model, tokenizer: those that it was learned with; a causal model.
        prompts: the prompt file; see `PromptSet.fresh` for what is drawn from it.
        judge: scores answers.
        run: where answers are kept; of `identity(model, concept, prompts)`.
        plan: how much is measured. Answers are greedy, so seeds do not matter.

    Returns:
        Plain data: `summed_up`'s figures with `baselines`, `samples` (answers by arm) and `skipped` (what could not be
        measured, and why).

    Raises:
        DSASError: no prompts for an arm, or a model with an encoder.
    """
    if "encoder" in roots_of(model):
        raise DSASError("a model with an encoder cannot be evaluated yet: take one that answers prompts by itself")
    return _Evaluation(model, tokenizer, concept, prompts, judge, run, plan or Plan()).report()


class _Evaluation:
    """One concept under measurement."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        concept: Concept,
        prompts: PromptSet,
        judge: TextJudge,
        run: Run,
        plan: Plan,
    ) -> None:
        self.model, self.tokenizer, self.concept, self.judge = model, tokenizer, concept, judge
        self.run, self.plan = run, plan
        self.prompts = plan.prompts(concept, prompts)
        limit = positions_of(model)
        self.encoded = {
            side: [encode(tokenizer, text, limit) for text in self.prompts[side]] for side in ("source", "control")
        }
        self.reader = Reader(model, pad_token(tokenizer), BATCH)
        self.weights = weights_digest(roots_of(model))
        self.builtin = str(getattr(bare(model), "name_or_path", "")) in {str(path) for path in BUILTIN.values()}
        parts = (probe for item in concept.interventions for probe in item.probes)
        self.latched = any(isinstance(probe, LatchProbe) for probe in parts)
        self.done: dict[tuple[str, float], Done] = {}
        self.skipped = ["asking in words: effects are relative to answers that show all that is wanted"]

    def _cell(self, name: str, strength: float) -> Cell:
        key = {
            "kind": "answers",
            "model": self.weights,
            "concept": None if name == "base" else self.concept.digest,
            "arm": name,
            "strength": strength,
            "prompts": {side: self.prompts[side] for side in self.encoded},
        }
        return Cell(key, lambda folder: self._measure(name, strength, folder))

    def _measure(self, name: str, strength: float, folder: Path) -> dict[str, Any]:
        attached: Any = nullcontext()
        if name != "base":
            concept, gate = arm(self.concept, name, self._scores(name))
            attached = steer(self.model, {concept: strength}, gate=gate)
        with attached:
            values: dict[str, Any] = {side: self._answers(texts) for side, texts in self.encoded.items()}
            values["losses"] = self._losses()
            values["facts"] = self._facts()
        if (name, strength) == ("dsas", 1.0):
            with steer(self.model, {self.concept: 1.0}, trace=True) as steering:
                banks: list[Scores] = []
                h: dict[str, list[float]] = {}
                for side, texts in self.encoded.items():
                    h[side] = []
                    for start in range(0, len(texts), BATCH):
                        self.reader.answers(texts[start : start + BATCH])
                        assert steering.trace is not None
                        h[side].append(steering.trace.mean_h(self.concept.name))
                        banks += [scores_of(steering.trace, self.concept)] if side == "source" else []
            save_scores(banks, folder / "scores.safetensors")
            values["h"] = {side: float(np.mean(found)) for side, found in h.items()}
        return values

    def _scores(self, name: str) -> Scores | None:
        """What the gates said of the source prompts at the unit, for the arms that say the same blindly."""
        if name not in BLIND:
            return None
        return load_scores(self.done["dsas", 1.0].folder / "scores.safetensors")

    def _answers(self, texts: Sequence[Encoded]) -> list[str]:
        said = self.reader.answers(texts)
        return [str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip() for ids in said]

    @torch.no_grad()
    def _losses(self) -> list[float]:
        """Negative log-likelihood per token of each control prompt's given answer, of all its tokens without one."""
        found = []
        for piece in self.reader.batches(self.encoded["control"]):
            logits = self.reader.run(piece).float().cpu()[:, :-1]
            each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), piece.ids[:, 1:], reduction="none")
            for row, (start, end) in enumerate(piece.answers):
                begin = start - 1 if start < end else 0
                found.append(float(each[row, begin : end - 1].mean()))
        return found

    def _facts(self) -> list[bool] | None:
        """Which facts the built-in model still knows."""
        if not self.builtin:
            return None
        from .builtin import corpus, quality

        every = corpus.fact_questions()
        chosen = np.random.default_rng(0).permutation(len(every))[:QUESTIONS]
        right = quality.right_answers(self.model, self.tokenizer, [every[i] for i in sorted(chosen)])
        return [bool(answer) for answer in right]

    def report(self) -> dict[str, Any]:
        """Measure what is missing, judge everything."""
        first = [("base", 0.0), ("dsas", 1.0)]
        grid = [(name, strength) for name in self.plan.arms for strength in self.plan.strengths]
        for label, jobs in (("answering", first), ("answering in all arms", [job for job in grid if job not in first])):
            found = self.run.complete([self._cell(*job) for job in jobs], label)
            self.done |= dict(zip(jobs, found, strict=True))
        base = self.done["base", 0.0].values
        arms = {name: [self._point(name, strength) for strength in self.plan.strengths] for name in self.plan.arms}
        sides = {side: [(0, text) for text in self.prompts[side]] for side in self.encoded}
        shown = self._shown(base["source"])
        figures = summed_up(arms, shown, None, sides["source"], sides["control"])
        if not self.builtin:
            self.skipped.append("knowledge: run lm-evaluation-harness with the concept (dsas_core.llm.harness)")
        if self.latched:
            self.skipped.append("perplexity: of given answers nothing tells a latch where the prompt ends")
        h = self.done["dsas", 1.0].values["h"]
        return {
            "prompts": self.prompts,
            **figures,
            "source_h": h["source"],
            "control_h": h["control"],
            "baselines": {"nothing": {"shown": float(np.mean(shown)), "degenerate": _broken(base["source"])}},
            "samples": self._samples(),
            "skipped": self.skipped,
        }

    def _point(self, name: str, strength: float) -> Point:
        base, made = self.done["base", 0.0].values, self.done[name, strength].values
        changed = [float(a != b) for a, b in zip(base["control"], made["control"], strict=True)]
        more = {"unchanged": 1 - float(np.mean(changed)), "degenerate": _broken(made["source"])}
        if not self.latched:
            more["perplexity_ratio"] = math.exp(min(50.0, float(np.mean(made["losses"]) - np.mean(base["losses"]))))
        if base["facts"] is not None:
            more["knowledge_lost"] = 100 * float(np.mean(base["facts"]) - np.mean(made["facts"]))
        return Point(strength, self._shown(made["source"]), changed, more)

    def _shown(self, answers: Sequence[str]) -> list[float]:
        """What the judge says; an answer that is broken shows nothing that is wanted."""
        scores = self.judge.shown(answers)
        return [0.0 if repeats(text) else score for text, score in zip(answers, scores, strict=True)]

    def _samples(self) -> list[dict[str, Any]]:
        """Answers to look at: a few prompts of each side in the arms at the unit, and the strongest."""
        strongest = self.plan.strengths[-1]
        jobs = {"base": ("base", 0.0), **{name: (name, 1.0) for name in self.plan.arms}}
        jobs |= {f"{name} ×{strongest:g}": (name, strongest) for name in ("dsas", "on") if name in self.plan.arms}
        return [
            {
                "side": side,
                "prompt": self.prompts[side][i],
                "answers": {label: self.done[job].values[side][i] for label, job in jobs.items()},
            }
            for side in self.encoded
            for i in range(min(SHOWN, len(self.encoded[side])))
        ]


def _broken(answers: Sequence[str]) -> float:
    return float(np.mean([repeats(text) for text in answers]))
