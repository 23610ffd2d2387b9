"""One seed of the comparison: a concept is learned and every arm measured; each measurement is a cell, kept on disk.

An interrupted run goes on where it was. Continuations are kept as texts, so that judges can change without another run.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import dsas_core
from benchmarks.real_text.arms import PREFIX, Arm, turn_at_random
from benchmarks.real_text.cost_grid import find_strengths, target_costs
from benchmarks.real_text.reading import ModelReader, count_tokens
from benchmarks.real_text.texts import Labelled, Question, Split
from dsas_core import llm
from dsas_core.concept.concept import Concept
from dsas_core.evaluation import Cell, RunStore
from dsas_core.llm.evaluation.repetition import repeats
from dsas_core.llm.model.conversations import Encoded
from dsas_core.model.fingerprints import weights_digest
from dsas_core.utils.versions import versions

#: packages whose versions results depend on
PACKAGES = ("dsas-diffusion", "transformers")
#: the concept's folder in its cell
CONCEPT = "concept"
#: continuations whose likelihood is measured, and kept as samples
LIKELIHOODS, SAMPLES = 64, 12

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Args:
        tokens: of a continuation.
        temperature: of its sampling; 0 for greedy ones.
        points: strengths of each curve beside the unit.
        wikitext: tokens of WikiText.
        questions: of ARC, and of MMLU.
        gate_texts: texts a side for the gates' figures.
    """

    tokens: int = 20
    temperature: float = 0.0
    points: int = 5
    wikitext: int = 2048
    questions: int = 150
    gate_texts: int = 100


@dataclass(frozen=True)
class Common:
    """Texts that are the same for every seed.

    Args:
        wikitext: paragraphs.
        questions: by name of the test.
        others: further data sets, to see how gates transfer.
    """

    wikitext: Sequence[str]
    questions: Mapping[str, Sequence[Question]]
    others: Mapping[str, Labelled]


@dataclass
class Ruler:
    """Measures one model on the texts of one seed.

    Args:
        reader: of the model.
        split: the texts of the seed.
        common: the texts that all seeds share.
        sizes: how much is measured.
        store: keeps cells; of this model alone, see `open_store`.
        seed: of the split, of learning and of random directions.
        options: further arguments of `llm.learn`.
    """

    reader: ModelReader
    split: Split
    common: Common
    sizes: Sizes
    store: RunStore
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)

    def learn(self, lesson: Mapping[str, Sequence[str]], name: str = "toxicity") -> tuple[Concept, Values]:
        """A concept of some texts, and how it was learned: `seconds` and `warnings`."""
        prompts = prompt_file(name, lesson)
        options = {"count": len(lesson["source"]), "seed": self.seed, **self.options}

        def make(folder: Path) -> Values:
            began = time.monotonic()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                concept = llm.learn(self.reader.model, self.reader.tokenizer, prompts, **options)
            concept.save_pretrained(folder / CONCEPT)
            told = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
            return {"seconds": time.monotonic() - began, "warnings": told}

        key = {"kind": "concept", "code": code_digest(), "prompts": digest_of(prompts), "options": options}
        [result] = self.store.complete([self._cell(key, make)])
        return Concept.from_pretrained(result.folder / CONCEPT), result.values

    def continuations(self, arm: Arm) -> list[str]:
        """What the model writes after each cut-off text."""
        return list(self._continuations(arm)["texts"])

    def repetition(self, arm: Arm) -> float:
        """The share of continuations that repeat a word or three right away, go in circles, or are empty."""
        texts = self.continuations(arm)
        return sum(map(repeats, texts)) / len(texts)

    def likelihood(self, arm: Arm) -> float:
        """Mean log-likelihood of a token of the continuations under the unsteered model, in nats.

        Of the first `LIKELIHOODS`. The unsteered model reads them behind the prompt without any prefix.
        """
        count = min(LIKELIHOODS, len(self._prompts))
        written = self._continuations(arm)["ids"][:count]
        pairs = zip(self._prompts[:count], written, strict=True)
        texts = [Encoded((*prompt.ids, *ids), len(prompt.ids)) for prompt, ids in pairs if ids]

        def make(folder: Path) -> Values:
            return {"nats": -sum(self.reader.sum_losses(texts)) / max(1, count_tokens(texts))}

        key = self._key("likelihood", Arm(), [(text.ids, text.answer) for text in texts])
        [result] = self.store.complete([self._cell(key, make)])
        return float(result.values["nats"])

    def domain_cost(self, arm: Arm) -> float:
        """How much higher the perplexity of held-out neutral texts is than without steering, as a share."""
        return self._cost(arm, "neutral", self._neutral)

    def wikitext_cost(self, arm: Arm) -> float:
        """How much higher the perplexity of WikiText is than without steering, as a share."""
        return self._cost(arm, "wikitext", self._windows)

    def perplexities(self) -> dict[str, float]:
        """Of the unsteered model, on neutral texts of the domain and on WikiText."""
        return {
            "neutral": math.exp(self._mean_loss(Arm(), "neutral", self._neutral, False)),
            "wikitext": math.exp(self._mean_loss(Arm(), "wikitext", self._windows, False)),
        }

    def answers(self, arm: Arm, test: str) -> list[bool]:
        """Which questions of a test are answered right."""
        questions = self.common.questions[test][: self.sizes.questions]

        def make(folder: Path) -> Values:
            with arm.attach(self.reader.model):
                return {"right": self.reader.answer_questions(questions)}

        key = self._key(test, arm, [[question.text, *question.answers, question.right] for question in questions])
        [result] = self.store.complete([self._cell(key, make)])
        return list(result.values["right"])

    def gates(self, concept: Concept, texts: Sequence[str]) -> list[tuple[float, float]]:
        """See `ModelReader.gates`."""

        def make(folder: Path) -> Values:
            return {"h": self.reader.gates(concept, self.reader.encode(texts))}

        [result] = self.store.complete([self._cell(self._key("gates", Arm(concept), list(texts)), make)])
        return [(highest, mean) for highest, mean in result.values["h"]]

    def curve(self, concept: Concept, gate: str | None) -> list[Arm]:
        """A concept at the unit, and at strengths of the grid of realised cost."""
        grid = target_costs(self.sizes.points)
        strengths = find_strengths(lambda strength: self.domain_cost(Arm(concept, strength, gate)), grid)
        return [Arm(concept, strength, gate) for strength in (1.0, *strengths)]

    def arms(self, concept: Concept) -> dict[str, list[Arm]]:
        """Every arm but the oracle, which writes what always-on writes; curves begin with the unit."""
        dose = [mean for _, mean in self.gates(concept, self.split.prompts)]
        return {
            "unsteered": [Arm()],
            "prefix": [Arm(prefix=PREFIX)],
            "dsas": self.curve(concept, None),
            "on": self.curve(concept, "on"),
            "random_gate": [Arm(concept, 1.0, "on", share=sum(dose) / len(dose))],
            "random_direction": [Arm(turn_at_random(concept, self.seed), 1.0)],
        }

    # ---- cells -------------------------------------------------------------------------------------------------------

    def _continuations(self, arm: Arm) -> Values:
        prompts = self._prompts
        if arm.prefix:
            prompts = self.reader.encode([f"{arm.prefix} {text}" for text in self.split.prompts])
        plain = replace(arm, prefix="")  # what the prefix does is in the prompts

        def make(folder: Path) -> Values:
            with plain.attach(self.reader.model, prompts) as on_rows:
                reader = self.reader.calling(on_rows)
                ids = reader.continue_texts(prompts, self.sizes.tokens, self.sizes.temperature)
            return {"ids": ids, "texts": [self.reader.decode(row) for row in ids]}

        how = [self.sizes.tokens, self.sizes.temperature]
        key = self._key("continuations", plain, [text.ids for text in prompts], how)
        [result] = self.store.complete([self._cell(key, make)])
        return result.values

    def _cost(self, arm: Arm, kind: str, texts: Sequence[Encoded]) -> float:
        if arm.prefix or arm.concept is None:
            return 0.0
        losses = [self._mean_loss(one, kind, texts, arm.by_prompt) for one in (arm, Arm())]
        return math.expm1(min(50.0, losses[0] - losses[1]))

    def _mean_loss(self, arm: Arm, kind: str, texts: Sequence[Encoded], written: bool) -> float:
        def make(folder: Path) -> Values:
            with arm.attach(self.reader.model, texts) as on_rows:
                total = sum(self.reader.calling(on_rows).sum_losses(texts, written))
            return {"nats": min(1e9, total) / count_tokens(texts)}  # NaN of a ruined model counts as 1e9, too

        [result] = self.store.complete([self._cell(self._key(kind, arm, [t.ids for t in texts], written), make)])
        return float(result.values["nats"])

    @cached_property
    def _prompts(self) -> list[Encoded]:
        return self.reader.encode(self.split.prompts)

    @cached_property
    def _neutral(self) -> list[Encoded]:
        return [Encoded(text.ids, 2) for text in self.reader.encode(self.split.held_out.neutral) if len(text.ids) > 2]

    @cached_property
    def _windows(self) -> list[Encoded]:
        return self.reader.windows(self.common.wikitext, self.sizes.wikitext)

    def _key(self, kind: str, arm: Arm, *about: Any) -> dict[str, Any]:
        return {"kind": kind, **arm.key, "about": digest_of(about)}

    def _cell(self, key: Mapping[str, Any], make: Callable[[Path], Values]) -> Cell:
        def make_and_tell(folder: Path) -> Values:
            began = time.monotonic()
            values = make(folder)
            gate = {None: "gated", "on": "always on"}.get(key.get("gate"), "") if key.get("concept") else "unsteered"
            what = f"{key['kind']}, {gate} ×{key.get('strength', 1.0):g}" if "concept" in key else str(key["kind"])
            print(f"seed {self.seed}: {what} ({time.monotonic() - began:.0f} s)", flush=True)
            return values

        return Cell({**key, "versions": versions(*PACKAGES)}, make_and_tell)


def open_store(folder: Path, model: Any) -> RunStore:
    """The cells of a model, in a folder of their own.

    Args:
        folder: created if missing.
        model: the model; a folder of another is refused.
    """
    from dsas_core.llm.model.layers import roots_of

    return RunStore(folder, {"benchmark": "real text", "model": weights_digest(roots_of(model))})


def digest_of(content: Any) -> str:
    """Sixteen hex digits of plain data.

    Example:
        >>> digest_of(["a"]) == digest_of(("a",))
        True
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def code_digest() -> str:
    """Of the code that learns: a concept is learned again when it has changed."""
    root = Path(dsas_core.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def prompt_file(name: str, lesson: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The content of a prompt file that gives some texts; their braces would be placeholders."""
    sides = {side: [text.replace("{", "{{").replace("}", "}}") for text in texts] for side, texts in lesson.items()}
    return {"name": name, **sides}
