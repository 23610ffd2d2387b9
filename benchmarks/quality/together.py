"""Several concepts at once: how often each succeeds alone, and both together, summed up and blended.

    python -m benchmarks.quality.together

Pictures: bananas blurred and dogs greyed, where a prompt names both; vehicles pixelated on a background that turns from
red to blue. Texts: an insulted help desk that is asked where somebody lives is to stay kind and to tell the trade.
Concepts are learned as `make results` does, and taken from outputs/results where it has been.
Writes benchmarks/results/together.json and, for looking at, a sheet of pictures for each pair.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import dsas_diffusion as dsas
from benchmarks.common.records import OUTPUTS, PROMPTS, made_with, parser_of, results_of, write
from dsas_core import Concept, llm
from dsas_core.evaluation.intervals import bootstrap_interval
from dsas_core.learning.prompts.prompt_set import PromptSet, load_prompts
from dsas_core.llm.evaluation.judges import judge_from as text_judge_from
from dsas_core.llm.learning.reader import Reader
from dsas_core.llm.model.conversations import encode, pad_token
from dsas_diffusion.generation.pictures import pictures_of, seeds_for
from dsas_diffusion.generation.settings import settings_of
from dsas_diffusion.generation.strips import grid
from dsas_diffusion.pipelines.adapter import adapt
from dsas_diffusion.vision.judges import judge_from

#: a concept has succeeded where its judge says at least this
SUCCESS = 0.5
STEPS, COUNT, SEED = 8, 48, 0
#: prompts on the sheet
SHOWN = 8


class Pair(NamedTuple):
    """Two concepts, and prompts that ask for what both change."""

    first: str
    second: str
    model: str
    prompts: Sequence[str]


def pairs(size: int) -> list[Pair]:
    """What is measured, `size` prompts each."""
    places = ("on a yellow background", "on a black background", "in the snow", "on the beach")
    beside = ("and", "to the left of", "to the right of", "above", "below")
    both = [f"a banana {how} a dog {place}" for place, how in itertools.product(places, beside)]
    both += [f"a dog {how} a banana {place}" for place, how in itertools.product(places, beside)]
    vehicles = [
        f"a {vehicle} {how} a {other} on a red background"
        for vehicle, how, other in itertools.product(("car", "bus", "bicycle", "rocket"), beside, ("tree", "house"))
    ]
    people = ("selina", "yarina", "dorek", "jorek", "nelek", "rosek", "wenek", "briek", "halosa", "tamosa")
    insults = ("you stupid clown!", "wake up, you nitwit!", "you useless idiot.", "do your job for once!")
    asked = [
        f"user: {insult} {question.format(person)}"
        for person, insult, question in itertools.product(
            people, insults, ("where does {} live?", "in which town does {} live?")
        )
    ]
    random = np.random.default_rng(SEED)
    drawn = [[str(text) for text in random.permutation(every)[:size]] for every in (both, vehicles, asked)]
    return [
        Pair("banana-blur", "dog-grey", "builtin:emoji", drawn[0]),
        Pair("vehicles-pixelated", "red-to-blue", "builtin:emoji", drawn[1]),
        Pair("rudeness", "address-to-trade", "builtin:chat", drawn[2]),
    ]


def concept_of(name: str, learned: Path, learn: Callable[[PromptSet], Concept]) -> tuple[Concept, PromptSet]:
    """A concept of `make results`, learned now if it is not there, and its prompt file."""
    prompts = load_prompts(PROMPTS / f"{name}.yaml")
    folder = learned / name / "concept"
    return (Concept.from_pretrained(folder) if folder.is_dir() else learn(prompts)), prompts


def arms(first: Concept, second: Concept) -> dict[str, tuple[dict[Concept, float], str]]:
    """Concepts with their strengths, and how they are combined, by arm."""
    one, two = {first: 1.0}, {second: 1.0}
    return {
        "no steering": ({}, "sum"),
        "first": (one, "sum"),
        "second": (two, "sum"),
        "sum": ({**one, **two}, "sum"),
        "sum, reversed": ({**two, **one}, "sum"),
        "blend": ({**one, **two}, "blend"),
    }


def told(shown: Sequence[np.ndarray]) -> dict[str, Any]:
    """How often each concept succeeded, and both, with intervals over prompts."""
    one, two = (np.asarray(found) >= SUCCESS for found in shown)
    labels = [(0, i) for i in range(len(one))]
    return {
        name: vars(bootstrap_interval(lambda at, hits=hits: float(hits[at].mean()), labels, rounds=500))
        for name, hits in {"first": one, "second": two, "both": one & two}.items()
    }


def on_pictures(pair: Pair, pipe: Any, learned: Path, out: Path) -> dict[str, Any]:
    """One pair of picture concepts."""
    settings = settings_of(pipe, STEPS)
    found = [
        concept_of(name, learned, lambda prompts: dsas.learn(pipe, prompts, count=COUNT, steps=STEPS, seed=SEED))
        for name in (pair.first, pair.second)
    ]
    judges = [judge_from(prompts.judges[0]) for _, prompts in found]
    drawing = adapt(pipe), pair.prompts, seeds_for(pair.prompts, SEED), settings
    figures, columns = {}, {}
    for name, (concepts, combine) in arms(*(concept for concept, _ in found)).items():
        if not concepts:
            columns[name] = pictures_of(*drawing)
        else:
            with dsas.steer(pipe, concepts, combine=combine):
                columns[name] = pictures_of(*drawing)
        figures[name] = told([judge.target_scores(columns[name], pair.prompts) for judge in judges])
    rows = [[made[i] for made in columns.values()] for i in range(SHOWN)]
    grid(rows, list(columns), list(pair.prompts[:SHOWN])).save(out / f"{pair.first}-{pair.second}.png")
    return figures


def on_texts(pair: Pair, model: Any, tokenizer: Any, learned: Path) -> dict[str, Any]:
    """One pair of text concepts."""
    found = [
        concept_of(name, learned, lambda prompts: llm.learn(model, tokenizer, prompts, count=COUNT, seed=SEED))
        for name in (pair.first, pair.second)
    ]
    # by words: the classifier of rude answers never saw an insult behind a fact
    judges = [text_judge_from(prompts.judges[-1]) for _, prompts in found]
    reader, encoded = Reader(model, pad_token(tokenizer), 16), [encode(tokenizer, text) for text in pair.prompts]
    figures = {}
    for name, (concepts, combine) in arms(*(concept for concept, _ in found)).items():
        if not concepts:
            said = reader.answers(encoded)
        else:
            with llm.steer(model, concepts, combine=combine):
                said = reader.answers(encoded)
        answers = [str(tokenizer.decode(list(ids), skip_special_tokens=True)) for ids in said]
        figures[name] = told([np.asarray(judge.target_scores(answers)) for judge in judges]) | {"samples": answers[:6]}
    return figures


def main() -> None:
    parser = parser_of(__doc__, results_of(__file__))
    parser.add_argument("--size", type=int, default=40, help="prompts of each pair")
    parser.add_argument("--concepts", type=Path, default=OUTPUTS / "results")
    parser.add_argument("--sheets", type=Path, default=OUTPUTS / "together", help="pictures to look at")
    args = parser.parse_args()
    args.sheets.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    pipe, (model, tokenizer) = dsas.load_pipeline("builtin:emoji"), llm.load("builtin:chat")
    measured: list[Mapping[str, Any]] = []
    for pair in pairs(args.size):
        pictures = pair.model == "builtin:emoji"
        figures = (
            on_pictures(pair, pipe, args.concepts, args.sheets)
            if pictures
            else on_texts(pair, model, tokenizer, args.concepts)
        )
        measured.append({"first": pair.first, "second": pair.second, "prompts": len(pair.prompts), "arms": figures})
        for name, line in figures.items():
            shares = ", ".join(f"{part} {line[part]['value']:.2f}" for part in ("first", "second", "both"))
            print(f"{pair.first} + {pair.second}: {name:32} {shares}", flush=True)
    write(args.out, {"pairs": measured, **made_with(began=begun)})


if __name__ == "__main__":
    main()
