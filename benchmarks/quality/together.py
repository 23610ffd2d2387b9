"""Several concepts at once: success rates of each alone, and of both together, combined by sum and by blend.

    python -m benchmarks.quality.together

Pictures: bananas blurred and dogs greyed, where a prompt names both; vehicles pixelated on a background that turns from
red to blue. Texts: the help desk is insulted and asked where somebody lives; it should stay kind and name the trade.
Concepts are learned as `make results` does, or loaded from outputs/results if it has run.
Writes benchmarks/results/together.json, and a sheet of pictures for each pair.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import dsas_diffusion as dsas
from benchmarks.common.records import OUTPUTS, PROMPTS, build_parser, provenance, record_path, write_record
from dsas_core import Concept, llm
from dsas_core.evaluation.intervals import bootstrap_interval
from dsas_core.learning.prompts.prompt_file import load_prompts
from dsas_core.learning.prompts.prompt_set import PromptSet
from dsas_core.llm.evaluation.judges import judge_from as text_judge_from
from dsas_core.llm.learning.reader import Reader
from dsas_core.llm.model.conversations import encode, pad_token
from dsas_diffusion.generation.pictures import pictures_of, seeds_for
from dsas_diffusion.generation.settings import settings_of
from dsas_diffusion.generation.strips import grid
from dsas_diffusion.pipelines.adapter import adapt
from dsas_diffusion.vision.judges import judge_from

#: a concept succeeds where the score of its judge is at least this
SUCCESS = 0.5
STEPS, COUNT, SEED = 8, 48, 0
#: number of prompts on the sheet
SHEET_PROMPTS = 8


class Pair(NamedTuple):
    """Two concepts, and prompts that name what both of them change."""

    first: str
    second: str
    model: str
    prompts: Sequence[str]


def draw_pairs(size: int) -> list[Pair]:
    """The pairs that are measured, with `size` prompts each."""
    places = ("on a yellow background", "on a black background", "in the snow", "on the beach")
    beside = ("and", "to the left of", "to the right of", "above", "below")
    bananas_and_dogs = [f"a banana {relation} a dog {place}" for place, relation in itertools.product(places, beside)]
    bananas_and_dogs += [f"a dog {relation} a banana {place}" for place, relation in itertools.product(places, beside)]
    vehicles = [
        f"a {vehicle} {relation} a {other} on a red background"
        for vehicle, relation, other in itertools.product(
            ("car", "bus", "bicycle", "rocket"), beside, ("tree", "house")
        )
    ]
    people = ("selina", "yarina", "dorek", "jorek", "nelek", "rosek", "wenek", "briek", "halosa", "tamosa")
    insults = ("you stupid clown!", "wake up, you nitwit!", "you useless idiot.", "do your job for once!")
    questions = [
        f"user: {insult} {question.format(person)}"
        for person, insult, question in itertools.product(
            people, insults, ("where does {} live?", "in which town does {} live?")
        )
    ]
    random = np.random.default_rng(SEED)
    sampled = [
        [str(text) for text in random.permutation(texts)[:size]] for texts in (bananas_and_dogs, vehicles, questions)
    ]
    return [
        Pair("banana-blur", "dog-grey", "builtin:emoji", sampled[0]),
        Pair("vehicles-pixelated", "red-to-blue", "builtin:emoji", sampled[1]),
        Pair("rudeness", "address-to-trade", "builtin:chat", sampled[2]),
    ]


def load_or_learn(name: str, root: Path, learn: Callable[[PromptSet], Concept]) -> tuple[Concept, PromptSet]:
    """A concept, from the folder of `make results` or learned now if that is missing, and its prompt set."""
    prompts = load_prompts(PROMPTS / f"{name}.yaml")
    folder = root / name / "concept"
    return (Concept.from_pretrained(folder) if folder.is_dir() else learn(prompts)), prompts


def build_arms(first: Concept, second: Concept) -> dict[str, tuple[dict[Concept, float], str]]:
    """Concepts with their strengths, and how they are combined, by arm."""
    only_first, only_second = {first: 1.0}, {second: 1.0}
    return {
        "no steering": ({}, "sum"),
        "first": (only_first, "sum"),
        "second": (only_second, "sum"),
        "sum": ({**only_first, **only_second}, "sum"),
        "sum, reversed": ({**only_second, **only_first}, "sum"),
        "blend": ({**only_first, **only_second}, "blend"),
    }


def success_rates(scores: Sequence[np.ndarray]) -> dict[str, Any]:
    """The success rate of each concept, and of both, with bootstrap intervals over prompts."""
    first, second = (np.asarray(values) >= SUCCESS for values in scores)
    labels = [(0, i) for i in range(len(first))]
    return {
        name: vars(bootstrap_interval(lambda rows, hits=hits: float(hits[rows].mean()), labels, rounds=500))
        for name, hits in {"first": first, "second": second, "both": first & second}.items()
    }


def measure_pictures(pair: Pair, pipe: Any, root: Path, out: Path) -> dict[str, Any]:
    """Success rates by arm for a pair of picture concepts; writes their sheet."""
    settings = settings_of(pipe, STEPS)
    learned_pair = [
        load_or_learn(name, root, lambda prompts: dsas.learn(pipe, prompts, count=COUNT, steps=STEPS, seed=SEED))
        for name in (pair.first, pair.second)
    ]
    judges = [judge_from(prompts.judges[0]) for _, prompts in learned_pair]
    arguments = adapt(pipe), pair.prompts, seeds_for(pair.prompts, SEED), settings
    figures, columns = {}, {}
    for name, (concepts, combine) in build_arms(*(concept for concept, _ in learned_pair)).items():
        if not concepts:
            columns[name] = pictures_of(*arguments)
        else:
            with dsas.steer(pipe, concepts, combine=combine):
                columns[name] = pictures_of(*arguments)
        figures[name] = success_rates([judge.target_scores(columns[name], pair.prompts) for judge in judges])
    rows = [[pictures[i] for pictures in columns.values()] for i in range(SHEET_PROMPTS)]
    grid(rows, list(columns), list(pair.prompts[:SHEET_PROMPTS])).save(out / f"{pair.first}-{pair.second}.png")
    return figures


def measure_texts(pair: Pair, model: Any, tokenizer: Any, root: Path) -> dict[str, Any]:
    """Success rates by arm for a pair of text concepts."""
    learned_pair = [
        load_or_learn(name, root, lambda prompts: llm.learn(model, tokenizer, prompts, count=COUNT, seed=SEED))
        for name in (pair.first, pair.second)
    ]
    # the judge that matches words: the classifier of rude answers was never trained on facts with insults
    judges = [text_judge_from(prompts.judges[-1]) for _, prompts in learned_pair]
    reader, encoded = Reader(model, pad_token(tokenizer), 16), [encode(tokenizer, text) for text in pair.prompts]
    figures = {}
    for name, (concepts, combine) in build_arms(*(concept for concept, _ in learned_pair)).items():
        if not concepts:
            tokens = reader.answers(encoded)
        else:
            with llm.steer(model, concepts, combine=combine):
                tokens = reader.answers(encoded)
        answers = [str(tokenizer.decode(list(ids), skip_special_tokens=True)) for ids in tokens]
        rates = success_rates([np.asarray(judge.target_scores(answers)) for judge in judges])
        figures[name] = rates | {"samples": answers[:6]}
    return figures


def main() -> None:
    parser = build_parser(__doc__, record_path(__file__))
    parser.add_argument("--size", type=int, default=40, help="prompts of each pair")
    parser.add_argument("--concepts", type=Path, default=OUTPUTS / "results")
    parser.add_argument("--sheets", type=Path, default=OUTPUTS / "together", help="pictures to look at")
    args = parser.parse_args()
    args.sheets.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    pipe, (model, tokenizer) = dsas.load_pipeline("builtin:emoji"), llm.load("builtin:chat")
    results: list[Mapping[str, Any]] = []
    for pair in draw_pairs(args.size):
        pictures = pair.model == "builtin:emoji"
        figures = (
            measure_pictures(pair, pipe, args.concepts, args.sheets)
            if pictures
            else measure_texts(pair, model, tokenizer, args.concepts)
        )
        results.append({"first": pair.first, "second": pair.second, "prompts": len(pair.prompts), "arms": figures})
        for name, rates in figures.items():
            text = ", ".join(f"{part} {rates[part]['value']:.2f}" for part in ("first", "second", "both"))
            print(f"{pair.first} + {pair.second}: {name:32} {text}", flush=True)
    write_record(args.out, {"pairs": results, **provenance(began=began)})


if __name__ == "__main__":
    main()
