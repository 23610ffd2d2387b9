"""Several runs of one prompt pushed apart: STARS beside temperature, random offsets, and offsets from their mean.

    python -m benchmarks.quality.diverse

Texts (builtin:chat): answers to held-out calm messages, and to held-out questions on facts. Measured: the share of
distinct answers among the runs of a prompt; of messages the share of kind answers on topic, and the perplexity of the
answers in the unsteered model; of questions the share of right answers. Pictures (builtin:emoji): the mean distance of
two pictures of a prompt (root mean square of pixels in [0, 1]), and the share that show the things named, and no other,
by the judge that ships. All steered arms have offsets of one length, sqrt(c) σ_max times the strength, at the same site
and positions: orthogonal by STARS; random orthonormal directions; away from the mean of the runs. Of two seeds, which
are of the random directions, of sampling and of the noise. Writes benchmarks/results/diverse.json.
"""

from __future__ import annotations

import itertools
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import numpy as np
import torch

import dsas_diffusion as dsas
from benchmarks.common.records import build_parser, provenance, record_path, write_record
from dsas_core import Concept, llm
from dsas_core.evaluation.intervals import bootstrap_interval
from dsas_core.llm.builtin.corpus import TOPICS, draw_requests, fact_questions, is_rude
from dsas_core.llm.steering.answer import encode_message
from dsas_core.maps import Map
from dsas_core.maps.stiefel import orthonormal_rows, random_rows
from dsas_core.model.row_groups import RowGroups
from dsas_core.utils.tensorclass import Holds
from dsas_diffusion.builtin.judge import Judge
from dsas_diffusion.generation.settings import Settings
from dsas_diffusion.steering.drawing import generate_batches

#: c of all arms, as in the paper
SCALE = 0.5
STRENGTHS, TEMPERATURES = (0.5, 1.0, 2.0, 4.0), (0.3, 0.7, 1.0)
SEEDS = (0, 1)
#: prompts of each kind, runs of each, prompts in a batch, tokens of an answer
MESSAGES, ANSWERS, BATCH, TOKENS = 40, 8, 8, 32
SCENES, PICTURES, STEPS, GUIDANCE = 16, 4, 8, 3.0


@dataclass(frozen=True, eq=False)
class Offsets(Map, kind="benchmark-offsets", stored=False):
    """Offsets as long as those of STARS, in directions of another kind: "random" or "mean"."""

    linear_in_strength = True
    couples_rows: ClassVar[bool] = True

    directions: str
    seed: Annotated[int, Holds(high=1e6, low=0)]
    groups: RowGroups | None = None

    def among(self, groups: RowGroups) -> Offsets:
        return replace(self, groups=groups)

    def displacement(self, x: torch.Tensor) -> torch.Tensor:
        assert self.groups is not None
        runs, counts = self.groups.gather(x)
        if not runs.numel():
            return torch.zeros_like(x)
        length = (SCALE * torch.linalg.eigvalsh(runs @ runs.mT)[..., -1:, None].clamp_min(0)).sqrt()
        random = orthonormal_rows(random_rows(*runs.shape[-2:], self.seed, x)).expand_as(runs)
        count = counts.sum(-2, keepdim=True)
        if self.directions == "mean":
            apart = torch.where(counts, runs - runs.sum(-2, keepdim=True) / count.clamp_min(1), 0)
            apart = apart + 1e-3 * length * random  # runs that are the same have no direction of their own
            random = torch.nn.functional.normalize(apart, dim=-1)
        return self.groups.scatter(torch.where(counts & (count > 1), length * random, 0))


def with_offsets(concept: Concept, kind: str, seed: int) -> Concept:
    """A concept of STARS, with its offsets or those of another kind."""
    if kind == "stars":
        return concept
    items = tuple(replace(item, maps=(Offsets(kind, seed),)) for item in concept.interventions)
    return replace(concept, interventions=items)


@dataclass(frozen=True)
class Arm:
    """A way to make runs differ: its name, and a strength or temperature."""

    name: str
    amount: float = 0.0

    def __str__(self) -> str:
        return f"{self.name} {self.amount:g}" if self.amount else self.name


STEERED = [Arm(name, strength) for name in ("stars", "random", "mean") for strength in STRENGTHS]


# ---- texts -----------------------------------------------------------------------------------------------------------


def _batches(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    yield from (items[i : i + BATCH] for i in range(0, len(items), BATCH))


def answer_all(model: Any, tokenizer: Any, texts: Sequence[str], arm: Arm, seed: int) -> list[list[tuple[str, float]]]:
    """Answers to each text, each with the mean negative log likelihood of its tokens in the unsteered model."""
    torch.manual_seed(seed)
    sampled = {"do_sample": True, "temperature": arm.amount} if arm.name == "temperature" else {"do_sample": False}
    steered: Any = nullcontext()
    pad, answers = int(tokenizer.pad_token_id or 0), []
    for batch in _batches(texts):
        encoded = [encode_message(tokenizer, text).input_ids[0] for text in batch]
        start = max(map(len, encoded))
        ids = torch.stack([torch.nn.functional.pad(row, (start - len(row), 0), value=pad) for row in encoded])
        mask = torch.stack([(torch.arange(start) >= start - len(row)).long() for row in encoded])
        ids, mask = ids.repeat_interleave(ANSWERS, 0), mask.repeat_interleave(ANSWERS, 0)
        if arm in STEERED:
            concept = with_offsets(llm.stars(model, c=SCALE, seed=seed), arm.name, seed)
            steered = llm.steer(model, {concept: arm.amount})
        with steered:
            out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=TOKENS, pad_token_id=pad, **sampled)
        written = out[:, start:]
        ends = (written == model.generation_config.eos_token_id).cumsum(1)
        counts = (ends == 0) | ((ends == 1) & (written == model.generation_config.eos_token_id))
        with torch.inference_mode():
            logits = model(input_ids=out, attention_mask=torch.cat([mask, counts.long()], 1)).logits[:, start - 1 : -1]
        loss = -logits.log_softmax(-1).gather(2, written[..., None])[..., 0]
        means = ((loss * counts).sum(1) / counts.sum(1).clamp_min(1)).tolist()
        said = [
            tokenizer.decode(row[kept], skip_special_tokens=True).strip()
            for row, kept in zip(written, counts, strict=True)
        ]
        pairs = list(zip(said, means, strict=True))
        answers += [pairs[i : i + ANSWERS] for i in range(0, len(pairs), ANSWERS)]
    return answers


def is_on_topic(text: str, topic: str) -> bool:
    """Whether an answer names a thing of the topic, and is kind."""
    named = any(re.search(rf"\b{re.escape(thing)}\b", text) for thing in TOPICS[topic].things)
    return named and not is_rude(text)


def measure_texts() -> dict[str, Any]:
    """The figures of each arm."""
    model, tokenizer = llm.load("builtin:chat", device="cpu")
    requests = draw_requests(MESSAGES, 7, manners=("polite", "plain", "complaint"))
    questions = fact_questions(7)[:MESSAGES]
    arms = [Arm("greedy"), *(Arm("temperature", t) for t in TEMPERATURES), *STEERED]
    figures = {}
    for arm in arms:
        names = ("distinct", "on_topic", "loss", "distinct_facts", "right")
        rows: dict[str, list[float]] = {name: [] for name in names}
        for seed in SEEDS:
            said = answer_all(model, tokenizer, [request.text for request in requests], arm, seed)
            for request, own in zip(requests, said, strict=True):
                rows["distinct"].append(len({text for text, _ in own}) / ANSWERS)
                rows["on_topic"].append(np.mean([is_on_topic(text, request.topic) for text, _ in own]))
                rows["loss"].append(np.mean([loss for _, loss in own]))
            said = answer_all(model, tokenizer, [question.text for question in questions], arm, seed)
            for question, own in zip(questions, said, strict=True):
                rows["distinct_facts"].append(len({text for text, _ in own}) / ANSWERS)
                right = rf"\b{re.escape(question.fact.value)}\b"
                rows["right"].append(np.mean([bool(re.search(right, text)) for text, _ in own]))
        figures[str(arm)] = summarise(rows, MESSAGES)
        print(arm, {name: round(of["value"], 3) for name, of in figures[str(arm)].items()}, flush=True)
    return figures


# ---- pictures --------------------------------------------------------------------------------------------------------


def draw_scenes() -> list[tuple[str, frozenset[str]]]:
    """Prompts of two things each, and the things."""
    things, places = ("banana", "dog", "car", "tree", "pear", "house"), ("on the grass", "on a blue background")
    pairs = [pair for pair in itertools.permutations(things, 2) if pair[0] < pair[1]]
    chosen = [(*pair, place) for pair, place in itertools.product(pairs, places)]
    order = np.random.default_rng(7).permutation(len(chosen))[:SCENES]
    return [(f"a {a} and a {b} {place}", frozenset((a, b))) for a, b, place in (chosen[i] for i in order)]


def measure_pictures() -> dict[str, Any]:
    """The figures of each arm."""
    pipe, judge = dsas.load_pipeline("builtin:emoji", device="cpu"), Judge.load()
    pipe.set_progress_bar_config(disable=True)
    scenes, settings, figures = draw_scenes(), Settings(STEPS, GUIDANCE), {}
    for arm in (Arm("noise alone"), *STEERED):
        rows: dict[str, list[float]] = {"distance": [], "right": []}
        for seed in SEEDS:
            concept = with_offsets(dsas.stars(pipe, c=SCALE, seed=seed), arm.name if arm.amount else "stars", seed)
            with dsas.steer(pipe, {concept: arm.amount}) as steering:
                for prompt, things in scenes:
                    noise = [1000 * seed + k for k in range(PICTURES)]
                    (made,) = generate_batches(steering, [prompt] * PICTURES, noise, settings, batch=PICTURES)
                    pixels = np.stack([np.asarray(image.convert("RGB")) for image in made.images])
                    pairs = itertools.combinations(pixels.astype(float) / 255, 2)
                    rows["distance"].append(np.mean([math.sqrt(np.square(a - b).mean()) for a, b in pairs]))
                    rows["right"].append(np.mean([verdict.things == things for verdict in judge.look(pixels)]))
        figures[str(arm)] = summarise(rows, SCENES)
        print(arm, {name: round(of["value"], 3) for name, of in figures[str(arm)].items()}, flush=True)
    return figures


def summarise(rows: Mapping[str, Sequence[float]], prompts: int) -> dict[str, Any]:
    """Means with bootstrap intervals over seeds and prompts; of losses, perplexities."""
    labels = [(seed, prompt) for seed in SEEDS for prompt in range(prompts)]
    summary = {}
    for name, values in rows.items():
        array, then = np.array(values), _perplexity if name == "loss" else float
        summary["perplexity" if name == "loss" else name] = vars(bootstrap_interval(_mean(array, then), labels))
    return summary


def _mean(values: np.ndarray, then: Callable[[float], float]) -> Callable[[np.ndarray], float]:
    return lambda at: then(values[at].mean())


def _perplexity(loss: float) -> float:
    return math.exp(loss)


def main() -> None:
    args = build_parser(__doc__, record_path(__file__)).parse_args()
    began = time.monotonic()
    torch.set_num_threads(1)
    settings = {
        "c": SCALE,
        "strengths": STRENGTHS,
        "temperatures": TEMPERATURES,
        "seeds": SEEDS,
        "steps": STEPS,
        "guidance": GUIDANCE,
        "tokens": TOKENS,
    }
    sizes = {"messages": MESSAGES, "questions": MESSAGES, "answers": ANSWERS, "scenes": SCENES, "pictures": PICTURES}
    texts, pictures = measure_texts(), measure_pictures()
    record = {"settings": {**settings, **sizes}, "texts": texts, "pictures": pictures}
    write_record(args.out, {**record, **provenance(began=began)})


if __name__ == "__main__":
    main()
