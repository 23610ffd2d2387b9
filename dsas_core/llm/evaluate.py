"""Evaluating a concept on a language model: behaviour, preservation, fluency, knowledge, arm by arm.

Source prompts that learning never used are answered greedily in every arm, and a judge scores the answers, of which
those that only repeat themselves count as nothing. Control prompts tell what else changed: how many are answered
otherwise, the perplexity of their given answers, and, of the built-in model, how many facts are lost. Answers are kept
by content (`dsas_core.evaluate.runs`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, Protocol

import numpy as np
import torch

from ..concept import Concept
from ..errors import DSASError
from ..evaluate import Cell, Done, Plan, Point, Run, arm, cost, runs, summed_up
from ..evaluate.arms import BLIND, Scores, doses, load_scores, save_scores, scores_of
from ..evaluate.texts import repeats
from ..fingerprints import weights_digest
from ..pretrained import name_of
from ..prompts import PromptSet
from ..provenance import versions
from ..requirements import obstacle_to_auto
from ..strengths import Auto
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
#: control prompts that time and memory are measured on
TIMED = 8
#: what answers depend on
PACKAGES = ("dsas-diffusion", "transformers")


class TextJudge(Protocol):
    """Tells how much each text shows what a concept is to do."""

    @property
    def name(self) -> str:
        """What reports call it."""

    def shown(self, texts: Sequence[str]) -> list[float]:
        """In [0, 1], one for each text."""


@dataclass(frozen=True)
class ScoredJudge:
    """A judge by a scorer of texts.

    Args:
        scores: in [0, 1]. wanted: whether a high score is what the concept is to do, or what it is to remove.
        name: in reports.
    """

    scores: Scorer
    wanted: bool = False
    name: str = "scorer"

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
    fits = isinstance(settings.get(named), str if kind == "scorer" else list | tuple)
    if unknown or not fits or not isinstance(settings.get("wanted", False), bool):
        what = "a name" if kind == "scorer" else "a list"
        raise DSASError(f"judge {kind}: expected {named}, {what}, and wanted: true or false; found {dict(settings)!r}")
    scores = scorer(settings[named]) if kind == "scorer" else LexiconScorer(settings[named])
    name = f"scorer {settings[named]}" if kind == "scorer" else f"words {shorten(', '.join(settings[named]), 40)}"
    return ScoredJudge(scores, settings.get("wanted", kind == "words"), name)


def identity(model: Any, concept: Concept, prompts: PromptSet) -> dict[str, Any]:
    """What a run is about: with another model, concept or prompt file it is another run."""
    return runs.identity(roots_of(model), concept, prompts)


def evaluate(
    model: Any,
    tokenizer: Any,
    concept: Concept,
    prompts: PromptSet,
    judge: TextJudge | Sequence[TextJudge],
    run: Run,
    plan: Plan | None = None,
    *,
    tasks: Sequence[str] = (),
    limit: int | None = None,
) -> dict[str, Any]:
    """Measure a concept.

    Args:
        model, tokenizer: those that it was learned with; a causal model.
        prompts: the prompt file; see `PromptSet.fresh` for what is drawn from it.
        judge: scores answers; of several, figures are the first one's, and what the others say of each arm is told
            beside.
        run: where answers are kept; of `identity(model, concept, prompts)`.
        plan: how much is measured. Answers are greedy, so seeds do not matter.
        tasks, limit: of lm-evaluation-harness, by name or YAML file, for what the model still knows, without steering,
            with DSAS and always on; `limit` questions of each.

    Returns:
        Plain data: `summed_up`'s figures with `baselines`, `judges`, `wordings`, `tasks`, `cost`, `samples` (answers by
        arm) and `skipped` (what could not be measured, and why).

    Raises:
        DSASError: no prompts for an arm, a model with an encoder, or a task that lm-evaluation-harness does not know.
    """
    if "encoder" in roots_of(model):
        raise DSASError("a model with an encoder cannot be evaluated yet: take one that answers prompts by itself")
    judges = list(judge) if isinstance(judge, Sequence) else [judge]
    evaluation = _Evaluation(model, tokenizer, concept, prompts, judges, run, plan or Plan())
    return evaluation.report(prompts.wordings("source"), tasks, limit)


class _Evaluation:
    """One concept under measurement."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        concept: Concept,
        prompts: PromptSet,
        judges: Sequence[TextJudge],
        run: Run,
        plan: Plan,
    ) -> None:
        self.model, self.tokenizer, self.concept = model, tokenizer, concept
        self.judge, self.others = judges[0], judges[1:]
        self.run, self.plan = run, plan
        self.prompts = plan.prompts(concept, prompts)
        limit = positions_of(model)
        self.encoded = {
            side: [encode(tokenizer, text, limit) for text in self.prompts[side]] for side in ("source", "control")
        }
        self.reader = Reader(model, pad_token(tokenizer), BATCH)
        self.about = {
            "model": weights_digest(roots_of(model)),
            "precision": cost.precision(model),
            "versions": versions(*PACKAGES),
        }
        self.builtin = name_of(bare(model), BUILTIN) in BUILTIN
        self.latched = concept.by_prompt
        self.done: dict[tuple[str, float | Auto], Done] = {}
        self.skipped: list[str] = []
        self.autos = plan.autos(concept)
        if plan.targets and not self.autos:
            self.skipped.append(f"strength auto: {obstacle_to_auto(concept)}")
        # pairs of learning differ in their answers; only prompts that are made for it ask in other words
        asked = self.prompts["target"] if "unseen_target" in prompts.evaluation else []
        self.asked = [encode(tokenizer, text, limit) for text in asked]

    def _cell(self, name: str, strength: float | Auto) -> Cell:
        key = {
            "kind": "answers",
            **self.about,
            "concept": None if name == "base" else self.concept.digest,
            "arm": name,
            "strength": str(strength) if isinstance(strength, Auto) else strength,
            "prompts": {side: self.prompts[side] for side in self.encoded},
            "tokens": {side: [text.ids for text in texts] for side, texts in self.encoded.items()},
        }
        return Cell(key, lambda folder: self._measure(name, strength, folder))

    def _measure(self, name: str, strength: float | Auto, folder: Path) -> dict[str, Any]:
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
                h = dict.fromkeys(self.encoded, 0.0)
                for side, texts in self.encoded.items():
                    for start in range(0, len(texts), BATCH):
                        part = texts[start : start + BATCH]
                        self.reader.answers(part)
                        assert steering.trace is not None
                        h[side] += steering.trace.mean_h(self.concept.name) * len(part) / len(texts)
                        banks += [scores_of(steering.trace, self.concept)] if side == "source" else []
            save_scores(banks, folder / "scores.safetensors")
            values["h"] = h
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

    def _asking(self) -> Cell:
        """Answers to source prompts that were rewritten, asking for what steering is to do."""
        key = {"kind": "asked", **self.about, "tokens": [text.ids for text in self.asked]}
        return Cell(key, lambda folder: {"source": self._answers(self.asked)})

    def report(self, templates: Mapping[str, str], tasks: Sequence[str], limit: int | None) -> dict[str, Any]:
        """Measure what is missing, judge everything; `templates` are those that source prompts come from."""
        first = [("base", 0.0), ("dsas", 1.0)]
        grid: list[tuple[str, float | Auto]] = [
            (name, strength) for name in self.plan.arms for strength in self.plan.strengths
        ]
        grid += [("dsas", auto) for auto in self.autos]
        grid = [("on" if name == "oracle" else name, strength) for name, strength in grid]
        rest = [job for job in dict.fromkeys(grid) if job not in first]
        for label, jobs in (("answering", first), ("answering in all arms", rest)):
            found = self.run.complete([self._cell(*job) for job in jobs], label)
            self.done |= dict(zip(jobs, found, strict=True))
        base, dsas = self._values("base", 0.0), self._values("dsas", 1.0)
        arms = {name: [self._point(name, strength) for strength in self.plan.strengths] for name in self.plan.arms}
        sides = {side: [(0, text) for text in self.prompts[side]] for side in self.encoded}
        shown = self._shown(base["source"])
        rivals: dict[str, Any] = {
            "no steering": {"shown": float(np.mean(shown)), "cost": 0.0, "degenerate": _broken(base["source"])}
        }
        asked: list[float] | None = None
        if self.asked:
            said = self.run.complete([self._asking()], "answering rewritten prompts")[0].values["source"]
            asked = self._shown(said)
            rivals["asked in words"] = {"shown": float(np.mean(asked)), "degenerate": _broken(said)}
        else:
            self.skipped.append(
                "asking in words: the prompt file's evaluation has no unseen_target; effects are of all"
            )
        free = [self._point("dsas", auto) for auto in self.autos]
        figures = summed_up(arms, shown, asked, sides["source"], sides["control"], free=free)
        if not self.builtin and not tasks:
            self.skipped.append("knowledge: name tasks of lm-evaluation-harness (--tasks)")
        if self.latched:
            self.skipped.append("perplexity: of given answers nothing tells the gate where the prompt ends")
        return {
            "prompts": self.prompts,
            **figures,
            "dose": doses(dsas["h"], self.plan.arms),
            "oracle": "prompts",
            "baselines": rivals,
            "judges": [self._as_seen_by(judge) for judge in self.others],
            "wordings": self._wordings(templates, shown, self._shown(dsas["source"])),
            "tasks": self._tasks(tasks, limit),
            "cost": self.run.complete([self._timing()], "timing")[0].values,
            "samples": self._samples(),
            "skipped": self.skipped,
        }

    def _values(self, name: str, strength: float | Auto) -> Mapping[str, Any]:
        """What an arm gave; the oracle steers the prompts that show the concept and no others."""
        if name == "oracle":
            return {**self._values("base", 0.0), "source": self._values("on", strength)["source"]}
        return self.done[name, strength].values

    def _as_seen_by(self, judge: TextJudge) -> dict[str, Any]:
        """What another judge says of every arm at strength 1."""
        jobs = {"base": ("base", 0.0), **{name: (name, 1.0) for name in self.plan.arms}}
        found = {name: self._shown(self._values(*job)["source"], judge) for name, job in jobs.items()}
        return {"judge": judge.name, **{name: float(np.mean(shown)) for name, shown in found.items()}}

    def _wordings(
        self, templates: Mapping[str, str], base: Sequence[float], shown: Sequence[float]
    ) -> list[dict[str, Any]]:
        """What is shown, by the template that source prompts come from."""
        told = np.array([templates[text] for text in self.prompts["source"]])
        values = {"base": np.array(base), "dsas": np.array(shown)}
        return [
            {"wording": " / ".join(str(wording).split("\n")), "answers": int((told == wording).sum())}
            | {name: float(found[told == wording].mean()) for name, found in values.items()}
            for wording in dict.fromkeys(told)
        ]

    def _tasks(self, tasks: Sequence[str], limit: int | None) -> list[dict[str, Any]]:
        """What lm-evaluation-harness says without steering, with DSAS and always on, at strength 1."""
        if not tasks:
            return []
        if self.latched:
            self.skipped.append("tasks: nothing tells the gate where a prompt ends (dsas_core.llm.harness)")
            return []
        from . import harness

        def cell(name: str, attached: Callable[[], AbstractContextManager[Any]]) -> Cell:
            def make(folder: Path) -> dict[str, float]:
                with attached():
                    return harness.measured(self.model, self.tokenizer, tasks, limit)

            of = None if name == "base" else self.concept.digest
            told = [[task, Path(task).read_text() if Path(task).is_file() else None] for task in tasks]
            key = {"kind": "tasks", **self.about, "concept": of, "arm": name, "tasks": told, "limit": limit}
            return Cell({**key, "by": versions("lm_eval", "datasets")}, make)

        arms: dict[str, Callable[[], AbstractContextManager[Any]]] = {
            "base": nullcontext,
            "dsas": lambda: steer(self.model, {self.concept: 1.0}),
            "on": lambda: steer(self.model, {self.concept: 1.0}, gate="on"),
        }
        found = self.run.complete([cell(name, attached) for name, attached in arms.items()], "tasks")
        return [{"arm": name, **done.values} for name, done in zip(arms, found, strict=True)]

    def _timing(self) -> Cell:
        """Time and memory of reading a few control prompts with their answers: as many tokens, steered or not."""
        (piece,) = self.reader.batches(self.encoded["control"][:TIMED])

        def make(folder: Path) -> dict[str, Any]:
            attached = lambda: steer(self.model, {self.concept: 1.0})  # noqa: E731
            return cost.compared(lambda: self.reader.run(piece), attached, self.reader.device)

        key = {"kind": "timing", **self.about, "concept": self.concept.digest, "tokens": piece.ids.tolist()}
        return Cell({**key, "device": cost.named(self.reader.device)}, make)

    def _point(self, name: str, strength: float | Auto) -> Point:
        base, made = self._values("base", 0.0), self._values(name, strength)
        changed = [float(a != b) for a, b in zip(base["control"], made["control"], strict=True)]
        more = {"unchanged": 1 - float(np.mean(changed)), "degenerate": _broken(made["source"])}
        if not self.latched:
            more["perplexity_ratio"] = math.exp(min(50.0, float(np.mean(made["losses"]) - np.mean(base["losses"]))))
        if base["facts"] is not None:
            more["knowledge_lost"] = 100 * float(np.mean(base["facts"]) - np.mean(made["facts"]))
        number = strength.target if isinstance(strength, Auto) else strength
        return Point(number, self._shown(made["source"]), changed, more)

    def _shown(self, answers: Sequence[str], judge: TextJudge | None = None) -> list[float]:
        """What the judge says; an answer that is broken shows nothing that is wanted."""
        scores = (judge or self.judge).shown(answers)
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
                "answers": {label: self._values(*job)[side][i] for label, job in jobs.items()},
            }
            for side in self.encoded
            for i in range(min(SHOWN, len(self.encoded[side])))
        ]


def _broken(answers: Sequence[str]) -> float:
    return float(np.mean([repeats(text) for text in answers]))
