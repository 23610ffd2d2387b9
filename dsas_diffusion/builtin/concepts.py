"""Learn the concepts that come with the package: `python -m dsas_diffusion.builtin.concepts` (`make concepts`).

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
from dsas_core.card import card
from dsas_core.concept import Concept
from dsas_core.files import replacing_folder
from dsas_core.layout import CARD
from dsas_core.pretrained import BUILTIN
from dsas_core.shipped import FOLDER

#: prompt files, by the names of their concepts
PROMPTS = Path(__file__).parents[2] / "prompts"
SEED = 0


@dataclass(frozen=True)
class Lesson:
    """How a concept is learned.

    Args:
        model: a built-in one. settings: what `learn` is given beside prompts and seed.
    """

    model: str = "builtin:emoji"
    settings: Mapping[str, Any] = field(default_factory=dict)


CONCEPTS: Mapping[str, Lesson] = {
    "banana-blur": Lesson(),
    "fruit-to-pear": Lesson(),
    "dog-grey": Lesson(),
    "vehicles-pixelated": Lesson(),
    "red-to-blue": Lesson(),
    "rudeness": Lesson("builtin:chat"),
}


def learned(name: str, *, show_progress: bool = False) -> Concept:
    """A concept of the table, calibrated and illustrated."""
    lesson, prompts = CONCEPTS[name], PROMPTS / f"{name}.yaml"
    told: dict[str, Any] = {"show_progress": show_progress}
    if lesson.model == "builtin:chat":
        model, tokenizer = llm.load(lesson.model, device="cpu")
        concept = llm.learn(model, tokenizer, prompts, seed=SEED, **lesson.settings, **told)
        concept = llm.illustrate(model, tokenizer, llm.calibrate(model, tokenizer, concept, **told))
    else:
        pipe = dsas.load_pipeline(lesson.model, device="cpu")
        concept = dsas.learn(pipe, prompts, seed=SEED, **lesson.settings, **told)
        concept = dsas.illustrate(pipe, dsas.calibrate(pipe, concept, **told), **told)
    command = f"python -m dsas_diffusion.builtin.concepts --only {name}"
    return replace(concept, provenance={**concept.provenance, "command": command})


def write(name: str, concept: Concept, out: Path) -> Path:
    """Put a concept into its folder below `out`, whole or not at all; its card's example names the built-in one."""
    with replacing_folder(out / name) as draft:
        concept.save_pretrained(draft)
        (draft / CARD).write_text(card(concept, f"{BUILTIN}{name}"), encoding="utf-8")
    return out / name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", action="append", choices=CONCEPTS, metavar="NAME", help=f"{', '.join(CONCEPTS)}; repeatable"
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help="where folders are written (default: the package)")
    args = parser.parse_args()
    for name in args.only or CONCEPTS:
        concept = learned(name, show_progress=True)
        print(write(name, concept, args.out), concept)


if __name__ == "__main__":
    main()
