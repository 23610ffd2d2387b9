"""The answers of a language model in each arm of an evaluation, with losses and facts, cached by content.

Here answers are only generated and stored; `dsas_core.llm.evaluation.evaluate` judges them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...concept.concept import Concept
from ...evaluation import Cell, CellResult, RunStore, build_arm, cost
from ...evaluation.arms import BLIND, SCORES, Scores, collect_scores, load_scores, save_scores
from ...model.fingerprints import weights_digest
from ...model.loading import name_of
from ...steering.strengths import Auto
from ...utils.versions import versions
from ..learning.reader import Reader
from ..model.conversations import Encoded, encode, pad_token
from ..model.layers import max_positions, roots_of, unwrap
from ..model.load import BUILTIN
from ..steering.steer import steer

BATCH = 64
#: questions about facts for the built-in model, in each arm
QUESTIONS = 300
#: packages whose versions answers depend on
PACKAGES = ("dsas-diffusion", "transformers")

#: an arm and its strength
ArmAt = tuple[str, float | Auto]


@dataclass(eq=False)
class AnswerStore:
    """The answers of one concept under evaluation.

    Args:
        model: the language model to steer.
        tokenizer: of the model.
        concept: the concept to steer with.
        prompts: by side, "source" and "control".
        rewritten: source prompts that ask in words for what steering does.
        store: caches results.
    """

    model: Any
    tokenizer: Any
    concept: Concept
    prompts: Mapping[str, list[str]]
    rewritten: Sequence[str]
    store: RunStore

    def __post_init__(self) -> None:
        model, tokenizer, limit = self.model, self.tokenizer, max_positions(self.model)
        self.encoded = {
            side: [encode(tokenizer, text, limit) for text in self.prompts[side]] for side in ("source", "control")
        }
        self.encoded_rewritten = [encode(tokenizer, text, limit) for text in self.rewritten]
        self.reader = Reader(model, pad_token(tokenizer), BATCH)
        #: the part of every cell's key that is about the model
        self.model_key = {
            "model": weights_digest(roots_of(model)),
            "precision": cost.precision(model),
            "versions": versions(*PACKAGES),
        }
        self._results: dict[ArmAt, CellResult] = {}

    def complete(self, jobs: Sequence[ArmAt], label: str) -> None:
        """Run the missing arms; "asked" answers the rewritten prompts."""
        run = dict.fromkeys(("on" if name == "oracle" else name, strength) for name, strength in jobs)
        missing = [job for job in run if job not in self._results]
        results = self.store.complete([self._cell(*job) for job in missing], label)
        self._results |= dict(zip(missing, results, strict=True))

    def values(self, name: str, strength: float | Auto = 0.0) -> Mapping[str, Any]:
        """The stored values of an arm; the oracle steers source prompts and no others."""
        if name == "oracle":
            return {**self.values("base"), "source": self.values("on", strength)["source"]}
        return self._results[name, strength].values

    def _cell(self, name: str, strength: float | Auto) -> Cell:
        key: dict[str, Any]
        if name == "asked":
            key = {"kind": "asked", **self.model_key, "tokens": [text.ids for text in self.encoded_rewritten]}
            return Cell(key, lambda folder: {"source": self._answers(self.encoded_rewritten)})
        key = {
            "kind": "answers",
            **self.model_key,
            "concept": None if name == "base" else self.concept.digest,
            "arm": name,
            "strength": str(strength) if isinstance(strength, Auto) else strength,
            "prompts": {side: self.prompts[side] for side in self.encoded},
            "tokens": {side: [text.ids for text in texts] for side, texts in self.encoded.items()},
        }
        return Cell(key, lambda folder: self._measure(name, strength, folder))

    def _measure(self, name: str, strength: float | Auto, folder: Path) -> dict[str, Any]:
        """Answers of both sides, losses and facts of one arm; of DSAS at strength 1 also h."""
        steering: Any = nullcontext()
        if name != "base":
            scores = load_scores(self._results["dsas", 1.0].folder / SCORES) if name in BLIND else None
            concept, gate = build_arm(self.concept, name, scores)
            # strengths of the plan may go beyond the range
            steering = steer(self.model, {replace(concept, range=None): strength}, gate=gate)
        with steering:
            values: dict[str, Any] = {side: self._answers(texts) for side, texts in self.encoded.items()}
            values["losses"] = self._losses()
            values["facts"] = self._facts()
        if (name, strength) == ("dsas", 1.0):
            values["h"] = self._trace_gates(folder)
        return values

    def _trace_gates(self, folder: Path) -> dict[str, float]:
        """Mean h of DSAS at strength 1 by side; the scores of source prompts are stored for the blind arms."""
        batches: list[Scores] = []
        mean_h = dict.fromkeys(self.encoded, 0.0)
        with steer(self.model, {self.concept: 1.0}, trace=True) as steering:
            assert steering.trace is not None
            for side, texts in self.encoded.items():
                for start in range(0, len(texts), BATCH):
                    part = texts[start : start + BATCH]
                    self.reader.answers(part)
                    mean_h[side] += steering.trace.mean_h(self.concept.name) * len(part) / len(texts)
                    batches += [collect_scores(steering.trace, self.concept)] if side == "source" else []
        save_scores(batches, folder / SCORES)
        return mean_h

    def _answers(self, texts: Sequence[Encoded]) -> list[str]:
        answers = self.reader.answers(texts)
        return [str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip() for ids in answers]

    @torch.no_grad()
    def _losses(self) -> list[float]:
        """Negative log-likelihood per token of each control prompt's given answer, or of all its tokens without one."""
        losses = []
        for batch in self.reader.batches(self.encoded["control"]):
            logits = self.reader.run(batch).float().cpu()[:, :-1]
            by_token = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.ids[:, 1:], reduction="none")
            for row, (start, end) in enumerate(batch.answers):
                begin = start - 1 if start < end else 0
                losses.append(float(by_token[row, begin : end - 1].mean()))
        return losses

    def _facts(self) -> list[bool] | None:
        """Which of QUESTIONS held-out questions about facts the built-in model answers right; None for other models."""
        if name_of(unwrap(self.model), BUILTIN) not in BUILTIN:
            return None
        from ..builtin.corpus import fact_questions

        every = fact_questions()
        questions = [every[i] for i in sorted(np.random.default_rng(0).permutation(len(every))[:QUESTIONS])]
        answers = self._answers([encode(self.tokenizer, f"user: {question.text}") for question in questions])
        return [answer == question.right for answer, question in zip(answers, questions, strict=True)]
