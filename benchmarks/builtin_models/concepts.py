"""Learn the concepts that come with the package: `python -m benchmarks.builtin_models.concepts`.

Each is learned, calibrated and illustrated on its built-in model as a user would, from its file in prompts/, and then
replaces what ships in one step. On one core a picture concept takes some five minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import dsas_diffusion as dsas
from dsas_core import llm
from dsas_core.concept.builtin import FOLDER, shipped
from dsas_core.concept.card import render_card
from dsas_core.concept.concept import Concept
from dsas_core.concept.format import CARD, save_concept
from dsas_core.model.loading import BUILTIN
from dsas_core.utils.saving.files import writing

ROOT = Path(__file__).parents[2]
#: prompt files, by the names of their concepts
PROMPTS = ROOT / "prompts"
#: between these the README has a table of what ships
MARKS = "<!-- concepts: written by make concepts -->", "<!-- end of concepts -->"
SEED = 0


@dataclass(frozen=True)
class ShippedConcept:
    """How a concept that ships is learned.

    Args:
        model: a built-in one.
        settings: what `learn` is given beside prompts and seed.
    """

    model: str = "builtin:emoji"
    settings: Mapping[str, Any] = field(default_factory=dict)


#: pictures in 8 steps show all that learning goes by
FEW = {"steps": 8}

CONCEPTS: Mapping[str, ShippedConcept] = {
    "banana-blur": ShippedConcept(),  # as the README learns it
    "dog-grey": ShippedConcept(settings=FEW),
    "vehicles-grey": ShippedConcept(settings=FEW),
    "animals-blurred": ShippedConcept(settings=FEW),
    "fruit-blurred": ShippedConcept(settings=FEW),
    # as two phrases draft them
    "guitar-blurred": ShippedConcept(settings=FEW),
    "frog-blurred": ShippedConcept(settings=FEW),
    "pear-grey": ShippedConcept(settings=FEW),
    "rudeness": ShippedConcept("builtin:chat"),
    "address-to-trade": ShippedConcept("builtin:chat"),
}


def learn_shipped(name: str, *, show_progress: bool = False) -> Concept:
    """A concept of the table, calibrated and illustrated."""
    shipped_concept, prompts = CONCEPTS[name], PROMPTS / f"{name}.yaml"
    progress: dict[str, Any] = {"show_progress": show_progress}
    if shipped_concept.model == "builtin:chat":
        model, tokenizer = llm.load(shipped_concept.model, device="cpu")
        concept = llm.learn(model, tokenizer, prompts, seed=SEED, **shipped_concept.settings, **progress)
        concept = llm.illustrate(model, tokenizer, llm.calibrate(model, tokenizer, concept, **progress))
    else:
        pipe = dsas.load_pipeline(shipped_concept.model, device="cpu")
        concept = dsas.learn(pipe, prompts, seed=SEED, **shipped_concept.settings, **progress)
        concept = dsas.illustrate(pipe, dsas.calibrate(pipe, concept, **progress), **progress)
    # the name under which the shipped cards know this program, kept so that a concept learned anew is the same file
    command = f"python -m dsas_diffusion.builtin.concepts --only {name}"
    return replace(concept, provenance={**concept.provenance, "command": command})


def write_shipped(name: str, concept: Concept, out: Path) -> Path:
    """Put a concept into its folder below `out`, whole or not at all; its card's example names the built-in one."""
    with writing(out / name):
        card = render_card(concept, f"{BUILTIN}{name}").encode()
    return save_concept(concept, out / name, overwrite=True, beside={CARD: card})


def overview() -> str:
    """What ships, as a table in Markdown."""
    headings = ("concept", "model", "what it does", "range", "at 1: effect, drift", "at its top: effect, drift")
    rows: list[tuple[str, ...]] = [headings]
    for entry in shipped():
        concept = Concept.from_pretrained(entry.name)
        assert concept.range is not None
        low, high = concept.range
        at = [_trial(concept, strength) for strength in (1.0, high)]
        figures = [f"{trial['effect']:.2f}, {trial['drift']:.3f}" for trial in at]
        rows.append((f"`{entry.name}`", f"`{entry.model}`", entry.description, f"{low:g} to {high:g}", *figures))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(headings), *lines[1:]])


def readme_with(text: str) -> str:
    """The README with that table between its marks."""
    (before, rest), end = text.split(MARKS[0]), MARKS[1]
    return f"{before}{MARKS[0]}\n{overview()}\n{end}{rest.split(end)[1]}"


def _trial(concept: Concept, strength: float) -> Mapping[str, float]:
    """What calibration measured at a strength, or nearest to it."""
    trials = concept.evidence["range"]["trials"]
    return min(trials, key=lambda trial: abs(trial["strength"] - strength))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", action="append", choices=CONCEPTS, metavar="NAME", help=f"{', '.join(CONCEPTS)}; repeatable"
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help="where folders are written (default: the package)")
    args = parser.parse_args()
    for name in args.only or CONCEPTS:
        concept = learn_shipped(name, show_progress=True)
        print(write_shipped(name, concept, args.out), concept)
    if args.out == FOLDER:
        readme = ROOT / "README.md"
        readme.write_text(readme_with(readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
