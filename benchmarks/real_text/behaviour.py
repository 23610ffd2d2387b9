"""One behaviour of a chat model by the same ruler: how often it shows, and what taking it away costs.

```yaml
shows: '\\b(sorry|apolog\\w+)\\b'         # a regular expression, ignoring case, that finds it in an answer
asks: Never say that you are sorry.     # the system message that asks for what steering does
tokens: 40                              # of an answer
prompts: ../../prompts/apologies.yaml   # a prompt file, from the behaviour's folder, or its content
```

The evaluation of the prompt file has `unseen_source` and `unseen_control`, of another domain, which are answered.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.real_text.arms import Arm
from benchmarks.real_text.measure import TOUCHED, find_auroc
from benchmarks.real_text.reading import ModelReader, count_tokens
from benchmarks.real_text.ruler import CONCEPT, PACKAGES, code_digest, digest_of
from dsas_core import llm
from dsas_core.concept.concept import Concept
from dsas_core.errors import PromptError, quote
from dsas_core.evaluation import Cell, RunStore
from dsas_core.learning.prompts.prompt_file import load_prompts
from dsas_core.learning.prompts.prompt_set import MAX_BYTES, PromptSet
from dsas_core.llm.evaluation.repetition import repeats
from dsas_core.llm.model.conversations import Encoded
from dsas_core.utils.reading.plain_yaml import parse_yaml
from dsas_core.utils.reading.text_files import decode, read_bytes
from dsas_core.utils.versions import versions

KEYS = {"shows", "asks", "tokens", "prompts"}
#: parts of a prompt file's evaluation that are answered
PARTS = ("unseen_source", "unseen_control")


@dataclass(frozen=True)
class Behaviour:
    """A behaviour, how it is found in an answer, and the prompts to learn to leave it.

    Args:
        shows: a regular expression that finds it, ignoring case.
        asks: a system message that asks for what steering does.
        tokens: of an answer.
        prompts: to learn from, and to measure on.

    Raises:
        PromptError: prompts whose evaluation lacks a part.
    """

    shows: str
    asks: str
    tokens: int
    prompts: PromptSet

    def __post_init__(self) -> None:
        if missing := [part for part in PARTS if part not in self.prompts.evaluation]:
            raise PromptError(f"behaviour {self.prompts.name!r}: its evaluation lacks {', '.join(missing)}: add them")

    def find(self, texts: Sequence[str]) -> list[bool]:
        """Which texts show the behaviour."""
        return [re.search(self.shows, text, re.IGNORECASE) is not None for text in texts]


def read_behaviour(path: Path) -> Behaviour:
    """Read a behaviour's file.

    Raises:
        PromptError: no such file, or another content than the format has.

    Example:
        >>> read_behaviour(Path("benchmarks/behaviours/apologising.yaml")).find(["I'm sorry.", "Let me see."])
        [True, False]
    """
    raw = read_bytes(path, MAX_BYTES, "give a behaviour such as benchmarks/behaviours/apologising.yaml", "file")
    content = parse_yaml(decode(raw, str(path)), str(path))
    if not isinstance(content, Mapping) or set(content) != KEYS:
        raise PromptError(f"{path}: expected the keys {', '.join(sorted(KEYS))}; found {quote(content)}")
    shows, asks, tokens, prompts = (content[key] for key in ("shows", "asks", "tokens", "prompts"))
    for key, value, kind in (("shows", shows, str), ("asks", asks, str), ("tokens", tokens, int)):
        if not isinstance(value, kind) or isinstance(value, bool) or (kind is int and value < 1):
            raise PromptError(f"{path}: {key} must be {'a text' if kind is str else 'from 1 up'}, found {quote(value)}")
    try:
        re.compile(shows)
    except (re.error, OverflowError, RecursionError) as error:
        raise PromptError(f"{path}: shows {quote(shows)} is no regular expression: {error}") from None
    return Behaviour(shows, asks, tokens, load_prompts(path.parent / prompts if isinstance(prompts, str) else prompts))


def measure_behaviour(
    reader: ModelReader, behaviour: Behaviour, store: RunStore, count: int, seed: int, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Learn to leave a behaviour, and answer held-out prompts in every arm.

    Args:
        reader: of the model.
        behaviour: the behaviour.
        store: keeps what was measured; of this model alone.
        count: held-out prompts a side.
        seed: of learning, and of the choice of prompts.
        options: further arguments of `llm.learn`.

    Returns:
        `arms`: name -> `shows`, `repeats`, `nats` (log-likelihood of a token of the answers under the unsteered model
        without a system message), `identical` (share of controls), `texts` (all answers to source prompts) and
        `control_texts`. Besides `prompts`, `unit`, `evidence_of_unit`, `seconds`, `warnings` and `gate`.
    """
    measurement = _Measurement(reader, behaviour, store)
    prompts = {part: behaviour.prompts.sample(part, count, seed) for part in PARTS}
    concept, learned = measurement.learn(seed, options)
    asked = {part: ask_in_words(reader, behaviour.asks, texts) for part, texts in prompts.items()}
    arms = {"unsteered": (Arm(), prompts), "asked": (Arm(), asked)}
    arms |= {"dsas": (Arm(concept, 1.0), prompts), "on": (Arm(concept, 1.0, "on"), prompts)}
    figures: dict[str, Any] = {}
    for name, (arm, given) in arms.items():
        ids = {part: measurement.answer(arm, given[part]) for part in PARTS}
        texts = {part: [reader.decode(row) for row in rows] for part, rows in ids.items()}
        figures[name] = {
            "shows": float(np.mean(behaviour.find(texts[PARTS[0]]))),
            "repeats": float(np.mean([repeats(text) for text in texts[PARTS[0]]])),
            "nats": measurement.likelihood(prompts[PARTS[0]], ids[PARTS[0]]),
            "texts": texts[PARTS[0]],
            "control_texts": texts[PARTS[1]],
        }
    for line in figures.values():
        pairs = zip(line["control_texts"], figures["unsteered"]["control_texts"], strict=True)
        line["identical"] = float(np.mean([a == b for a, b in pairs]))
    high, low = (
        np.array([highest for highest, _ in measurement.gates(concept, prompts[part], figures["unsteered"][key])])
        for part, key in zip(PARTS, ("texts", "control_texts"), strict=True)
    )
    gate = {"recall": float((high > TOUCHED).mean()), "touched": float((low > TOUCHED).mean())}
    return {
        "arms": figures,
        "prompts": prompts[PARTS[0]],
        "unit": concept.unit,
        "evidence_of_unit": concept.evidence.get("unit"),
        "sites": [str(site) for site in concept.steered_sites],
        "gate": {**gate, "auroc": find_auroc(high, low)},
        **learned,
    }


def ask_in_words(reader: ModelReader, asks: str, prompts: Sequence[str]) -> list[str]:
    """Prompts with a system message; where the chat template has none, it begins the user's turn.

    Args:
        reader: of the model.
        asks: the message.
        prompts: conversations that begin with the user's turn.

    Example:
        >>> reader = ModelReader(*llm.load("builtin:chat", device="cpu"))
        >>> ask_in_words(reader, "be kind.", ["user: hello!"])
        ['user: be kind. hello!']
    """
    with_system = [f"system: {asks}\n{prompt}" for prompt in prompts]
    try:
        reader.encode(with_system[:1])
    except PromptError:
        return [prompt.replace("user: ", f"user: {asks} ", 1) for prompt in prompts]
    return with_system


class _Measurement:
    """The cells of one behaviour."""

    def __init__(self, reader: ModelReader, behaviour: Behaviour, store: RunStore) -> None:
        self.reader, self.behaviour, self.store = reader, behaviour, store

    def learn(self, seed: int, options: Mapping[str, Any]) -> tuple[Concept, Mapping[str, Any]]:
        def make(folder: Path) -> dict[str, Any]:
            began = time.monotonic()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                concept = llm.learn(
                    self.reader.model, self.reader.tokenizer, self.behaviour.prompts, seed=seed, **options
                )
            concept.save_pretrained(folder / CONCEPT)
            told = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
            return {"seconds": time.monotonic() - began, "warnings": told}

        about = [digest_of(self.behaviour.prompts.to_dict()), seed, dict(options)]
        result = self._complete({"kind": "concept", "code": code_digest(), "about": about}, make)
        return Concept.from_pretrained(result.folder / CONCEPT), result.values

    def answer(self, arm: Arm, prompts: Sequence[str]) -> list[list[int]]:
        def make(folder: Path) -> dict[str, Any]:
            with arm.attach(self.reader.model) as on_rows:
                texts = self.reader.encode(prompts)
                return {"ids": self.reader.calling(on_rows).continue_texts(texts, self.behaviour.tokens)}

        about = digest_of([list(prompts), self.behaviour.tokens])
        return list(self._complete({"kind": "answers", **arm.key, "about": about}, make).values["ids"])

    def likelihood(self, prompts: Sequence[str], answers: Sequence[Sequence[int]]) -> float:
        pairs = zip(self.reader.encode(prompts), answers, strict=True)
        texts = [Encoded((*prompt.ids, *ids), len(prompt.ids)) for prompt, ids in pairs if ids]

        def make(folder: Path) -> dict[str, Any]:
            return {"nats": -sum(self.reader.sum_losses(texts)) / max(1, count_tokens(texts))}

        about = digest_of([(text.ids, text.answer) for text in texts])
        return float(self._complete({"kind": "likelihood", "about": about}, make).values["nats"])

    def gates(self, concept: Concept, prompts: Sequence[str], answers: Sequence[str]) -> list[tuple[float, float]]:
        """What gates see: prompts with the unsteered answers, or prompts alone if they decide at a prompt's end."""
        texts = [f"{prompt}\nassistant: {answer}" for prompt, answer in zip(prompts, answers, strict=True) if answer]
        texts = list(prompts) if concept.by_prompt else texts

        def make(folder: Path) -> dict[str, Any]:
            return {"h": self.reader.gates(concept, self.reader.encode(texts))}

        key = {"kind": "gates", "concept": concept.digest, "about": digest_of(texts)}
        return [(highest, mean) for highest, mean in self._complete(key, make).values["h"]]

    def _complete(self, key: Mapping[str, Any], make: Any) -> Any:
        def make_and_tell(folder: Path) -> Mapping[str, Any]:
            began = time.monotonic()
            values: Mapping[str, Any] = make(folder)
            print(f"{self.behaviour.prompts.name}: {key['kind']} ({time.monotonic() - began:.0f} s)", flush=True)
            return values

        [result] = self.store.complete([Cell({**key, "versions": versions(*PACKAGES)}, make_and_tell)])
        return result
