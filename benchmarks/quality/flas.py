"""FLAS on builtin:chat: one network for many concepts, tested on concepts that it was not trained on.

    python -m benchmarks.quality.flas

A concept is "mention the WORD": a place, a thing that is there, or a thing that people write to the help desk about.
Answers that show it are those of the help desk with a sentence about the word behind them; the network is trained on
such answers for most words. The others, and as many of those, are tested on held-out messages. FLAS has the text of a
concept alone, and so has asking in words; CAA, always on and with the gate of DSAS, is fitted on examples of each
concept, made as those that FLAS is trained on. As in AxBench, each answer has three scores from 0 to 2, of which the
harmonic mean counts, and each concept's strength is chosen on one half of the messages and measured on the other.
`named` is the share of answers that have the word itself.

    concept      2 for the word, 1 for another word of its place or topic
    instruction  2 for what the help desk says about the topic of the message, 1 for a name of the topic
    fluency      2 where the unsteered model finds no sentence less likely than 95 % of those in true answers; 1 where
                 it does so by no more than 1 nat a token; 0 for what is less likely, repeats itself or is empty

Writes benchmarks/results/flas.json.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.common.records import build_parser, provenance, record_path, write_record
from dsas_core import Call, Concept, Intervention, Site, llm, methods, visit
from dsas_core.llm.builtin.corpus import CALM, TOPICS, draw_requests
from dsas_core.llm.builtin.corpus.descriptions import DESCRIPTIONS
from dsas_core.llm.builtin.corpus.facts import DAYS
from dsas_core.llm.builtin.corpus.help_desk import Request
from dsas_core.llm.builtin.corpus.sampling import choose, fill
from dsas_core.llm.evaluation.repetition import repeats
from dsas_core.llm.model.conversations import pad_token
from dsas_core.llm.model.layers import roots_of
from dsas_core.llm.steering.answer import encode_message
from dsas_core.maps import AffineMap
from dsas_core.probes import ConstantProbe

#: strengths that are tried; those of CAA are multiples of the difference of means
FLOW, ADDED = (0.25, 0.5, 0.75, 1.0, 1.25), (4.0, 8.0, 10.0, 12.0, 16.0)
SCORES = ("concept", "instruction", "fluency")
LENGTH = 64


@dataclass(frozen=True)
class Word:
    """A word that answers are to mention.

    Args:
        text: the word.
        sentences: templates of sentences that mention it.
        near: other words of its place or topic.
    """

    text: str
    sentences: tuple[str, ...]
    near: tuple[str, ...]

    @property
    def concept(self) -> str:
        return f"mention the {self.text}."


def read_words() -> list[Word]:
    """Every word of which the model knows sentences, by the corpus that it was trained on."""
    found: dict[str, Word] = {}
    for place, parts in DESCRIPTIONS["places"].items():
        looks = tuple(line.replace("{place}", place) for line in DESCRIPTIONS["first"])
        found[place] = Word(place, tuple(f"{line}." if line[-1] != "." else line for line in looks), parts["things"])
        for thing in parts["things"]:
            seen = tuple(line.replace("{things}", thing) for line in DESCRIPTIONS["sentences"])
            near = (place, *(other for other in parts["things"] if other != thing))
            found.setdefault(thing, Word(thing, seen, near))
    for topic in TOPICS.values():
        for thing in topic.things:
            said = tuple(f"{state.replace('{thing}', thing)}." for state in topic.states if "{thing}" in state)
            found.setdefault(thing, Word(thing, said, tuple(other for other in topic.things if other != thing)))
    return [word for word in found.values() if word.sentences]


def draw_sentence(rng: np.random.Generator, word: Word) -> str:
    words = {**DESCRIPTIONS["words"], "time": DESCRIPTIONS["times"], "look": DESCRIPTIONS["looks"], "day": DAYS}
    return fill(rng, choose(rng, word.sentences), words)


def draw_examples(word: Word, count: int, seed: int) -> list[tuple[str, str, str]]:
    """Messages of other topics, their answers, and a sentence for each that shows the concept."""
    topics = [name for name, topic in TOPICS.items() if word.text not in topic.things]
    rng = np.random.default_rng(seed)
    requests = draw_requests(count, seed, topics=topics, manners=CALM, held_out=False)
    return [(request.text, request.kind, draw_sentence(rng, word)) for request in requests]


# ---- scores ---------------------------------------------------------------------------------------------------------


def has(text: str, words: Sequence[str]) -> bool:
    return any(re.search(rf"\b{re.escape(word)}\b", text) for word in words)


class Judge:
    """Scores answers from 0 to 2.

    Args:
        model: unsteered.
        tokenizer: its tokenizer.
        seed: of the true answers that the limit of fluency is from.
    """

    def __init__(self, model: Any, tokenizer: Any, seed: int) -> None:
        self._model, self._tokenizer = model, tokenizer
        patterns = {}
        for name, topic in TOPICS.items():
            lines = [re.escape(line) for line in (*topic.states, *topic.steps)]
            patterns[name] = re.compile("|".join(re.sub(r"\\{\w+\\}", r"\\w+", line) for line in lines))
        self._said: Mapping[str, re.Pattern[str]] = patterns
        rng = np.random.default_rng(seed)
        true = [request.kind for request in draw_requests(60, seed, manners=CALM, held_out=False)]
        true += [draw_sentence(rng, word) for word in read_words()]
        self.limit = float(np.quantile([self.surprise(text) for text in true], 0.95))

    def surprise(self, text: str) -> float:
        """Nats per token of the least likely sentence of an answer, each by itself."""
        worst = 0.0
        for sentence in re.findall(r"[^.!?]+[.!?]?", text):
            ids = encode_message(self._tokenizer, "").input_ids
            own = self._tokenizer(sentence.strip(), add_special_tokens=False, return_tensors="pt").input_ids
            if own.shape[1] == 0:
                continue
            with torch.no_grad():
                logits = self._model(torch.cat([ids, own], 1)).logits[0, ids.shape[1] - 1 : -1]
            worst = max(worst, float(functional.cross_entropy(logits, own[0])))
        return worst

    def score(self, text: str, word: Word, request: Request) -> list[int]:
        """By the order of `SCORES`."""
        concept = 2 if has(text, [word.text]) else int(has(text, word.near))
        topic = TOPICS[request.topic]
        instruction = 2 if self._said[request.topic].search(text) else int(has(text, topic.things))
        over = self.surprise(text) - self.limit
        fluency = 0 if repeats(text) or over > 1 else 1 if over > 0 else 2
        return [concept, instruction, fluency]


def harmonic(scores: np.ndarray) -> np.ndarray:
    """The harmonic means over the last dimension, 0 where one is 0."""
    inverse = (1 / np.maximum(scores, 1e-9)).sum(-1)
    return np.where((scores > 0).all(-1), scores.shape[-1] / inverse, 0.0)


# ---- methods --------------------------------------------------------------------------------------------------------


class _Reader:
    def __init__(self) -> None:
        self.seen = torch.empty(0)

    def begin(self, root: str, call: Call) -> None: ...

    def visit(self, site: Site, x: torch.Tensor) -> None:
        self.seen = x[0]


def fit_difference(model: Any, tokenizer: Any, site: Site, word: Word, seed: int) -> dict[str, Concept]:
    """CAA on answers with and without a sentence that shows the concept, always on and with the gate of DSAS."""
    reader, plain, shown = _Reader(), [], []
    with torch.no_grad(), visit(roots_of(model), [site], reader):
        for prompt, kind, sentence in draw_examples(word, 40, seed):
            begin = encode_message(tokenizer, prompt).input_ids
            for answer, rows in ((kind, plain), (f"{kind} {sentence}", shown)):
                ids = tokenizer(answer, add_special_tokens=False, return_tensors="pt").input_ids
                model(torch.cat([begin, ids], 1))
                rows.append(reader.seen[begin.shape[1] :].mean(0))
    source, target = torch.stack(plain), torch.stack(shown)
    transform = methods.mapping("caa").fit(source, target)
    assert isinstance(transform, AffineMap)
    gate = methods.gate("dsas")
    probes = {"caa": ConstantProbe(1.0), "caa + dsas": gate.in_form(gate.fit(source, target), "token")}
    items = {name: Intervention(site, (probe,), (transform,), (1.0,)) for name, probe in probes.items()}
    return {name: Concept(name, (item,)) for name, item in items.items()}


class Writer:
    """Writes answers to messages, all at once."""

    def __init__(self, model: Any, tokenizer: Any, messages: Sequence[str]) -> None:
        self._model, self._tokenizer, self._pad = model, tokenizer, pad_token(tokenizer)
        self._messages = messages

    def write(self, concept: Concept | None = None, strength: float = 0.0, request: str = "") -> list[str]:
        ids = [encode_message(self._tokenizer, f"{text}{request}").input_ids[0] for text in self._messages]
        longest = max(map(len, ids))
        rows = torch.stack([functional.pad(row, (longest - len(row), 0), value=self._pad) for row in ids])
        mask = torch.stack([functional.pad(torch.ones_like(row), (longest - len(row), 0)) for row in ids])
        with nullcontext() if concept is None else llm.steer(self._model, {concept: strength}):
            out = self._model.generate(
                input_ids=rows, attention_mask=mask, max_new_tokens=LENGTH, do_sample=False, pad_token_id=self._pad
            )
        return [text.strip() for text in self._tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)]


def measure(
    arms: Mapping[float, Sequence[str]], judge: Judge, word: Word, requests: Sequence[Request]
) -> dict[str, Any]:
    """The scores at the strength that is best on the first half of the messages, on the second."""
    scores = {
        strength: np.array([judge.score(*given) for given in zip(texts, [word] * len(texts), requests, strict=True)])
        for strength, texts in arms.items()
    }
    half = len(requests) // 2
    best = max(scores, key=lambda strength: harmonic(scores[strength][:half]).mean())
    own = scores[best][half:]
    means = dict(zip(SCORES, own.mean(0).round(3).tolist(), strict=True))
    means["named"] = round(float((own[:, 0] == 2).mean()), 3)
    return {"strength": best, "mean": round(float(harmonic(own).mean()), 4), **means, "answer": arms[best][half]}


def measure_word(model: Any, tokenizer: Any, network: Any, judge: Judge, word: Word, args: argparse.Namespace) -> Any:
    """Every arm of a concept."""
    topics = [name for name, topic in TOPICS.items() if word.text not in topic.things]
    requests = draw_requests(args.messages, args.seed + 1, topics=topics, manners=CALM, held_out=True)
    writer = Writer(model, tokenizer, [request.text for request in requests])
    flow = network.concept(model, tokenizer, word.concept, name="flas")
    site = flow.interventions[0].site
    steered = {"flas": (flow, FLOW)}
    steered |= {
        name: (concept, ADDED) for name, concept in fit_difference(model, tokenizer, site, word, args.seed).items()
    }
    arms: dict[str, dict[float, list[str]]] = {
        "unsteered": {0.0: writer.write()},
        "asked in words": {0.0: writer.write(request=f" {word.concept}")},
    }
    for name, (concept, strengths) in steered.items():
        arms[name] = {strength: writer.write(concept, strength) for strength in strengths}
    return {name: measure(texts, judge, word, requests) for name, texts in arms.items()}


def summarise(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Means over concepts, with standard errors of the harmonic mean."""
    summary = {}
    for arm in next(iter(found.values())):
        means = np.array([arms[arm]["mean"] for arms in found.values()])
        error = float(means.std(ddof=1) / len(means) ** 0.5)
        scores = {
            name: round(float(np.mean([arms[arm][name] for arms in found.values()])), 3) for name in (*SCORES, "named")
        }
        summary[arm] = {"mean": round(float(means.mean()), 3), "standard_error": round(error, 3), **scores}
    return summary


def main() -> None:
    parser = build_parser(__doc__, record_path(__file__), seed=True)
    parser.add_argument("--layer", type=int, default=3, help="whose output is moved")
    parser.add_argument("--steps", type=int, default=1500, help="of training")
    parser.add_argument("--rate", type=float, default=1e-3, help="of training; the authors' is for a larger model")
    parser.add_argument("--examples", type=int, default=40, help="for each trained concept")
    parser.add_argument("--held-out", type=int, default=16, help="concepts that are not trained")
    parser.add_argument("--messages", type=int, default=12, help="for each tested concept")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args()
    began = time.monotonic()
    torch.set_num_threads(1)
    model, tokenizer = llm.load("builtin:chat", device="cpu")
    words = read_words()
    order = np.random.default_rng(args.seed).permutation(len(words))
    unseen, seen = ([words[i] for i in part] for part in np.split(order, [args.held_out]))
    concepts = {
        word.concept: [
            (prompt, f"{kind} {sentence}")
            for prompt, kind, sentence in draw_examples(word, args.examples, args.seed * 1000 + number)
        ]
        for number, word in enumerate(seen)
    }
    network = llm.flas.train(
        model,
        tokenizer,
        concepts,
        layer=args.layer,
        steps=args.steps,
        rate=args.rate,
        seed=args.seed,
        show_progress=not args.quiet,
    )
    trained_in = time.monotonic() - began
    judge = Judge(model, tokenizer, args.seed)
    groups: dict[str, Any] = {}
    for name, chosen in (("held_out", unseen), ("trained", seen[: args.held_out])):
        found = {word.text: measure_word(model, tokenizer, network, judge, word, args) for word in chosen}
        groups[name] = {"summary": summarise(found), "concepts": found}
        print(name, *(f"{arm}: {figures}" for arm, figures in groups[name]["summary"].items()), sep="\n  ", flush=True)
    training = {
        **{
            name: network.settings[name]
            for name in ("concepts", "examples", "total_steps", "batch_size", "lr", "losses")
        },
        "layer": args.layer,
        "seconds": round(trained_in, 1),
    }
    document = {"training": training, "fluency_limit": round(judge.limit, 3), **groups}
    write_record(args.out, {**document, **provenance(began=began)})


if __name__ == "__main__":
    main()
