"""Concepts of two phrases, and those that ship: is the thing changed, and what is beside it kept?

    python -m benchmarks.quality.two_phrases
    python -m benchmarks.quality.two_phrases --shipped

Concepts that nobody tuned are learned by the command line (`dsas learn --from … --to …`), as a user would, and timed.
Then mixed prompts are drawn: the thing beside one of the things that the draft held out of what is learned from, other
prompts for each seed, with noise of their own. By the judge of the built-in model, in pictures whose unsteered version
shows both: the target is right where the thing is as asked; the picture is clean where the other thing is the same,
sharp, and its centre has moved by less than .12 of the width. Beside them the prompt rewritten to ask for the change,
and what the concept's own evidence claims. Concepts that ship are drawn at 1 and at both ends of their range.
Writes benchmarks/results/two_phrases.json, or shipped.json, and a sheet of pictures for each concept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

import dsas_diffusion as dsas
from benchmarks.builtin_models.picture_scenes import noun_phrase
from benchmarks.common.edits import Edit
from benchmarks.common.records import OUTPUTS, PROMPTS, RESULTS, build_parser, provenance, record_path, update_record
from dsas_core.evaluation.intervals import bootstrap_interval
from dsas_core.learning.prompts.prompt_file import load_prompts
from dsas_diffusion.builtin.judge import Judge, Verdict
from dsas_diffusion.builtin.scenes import BACKGROUNDS, NAMES, RELATIONS, STYLES
from dsas_diffusion.generation import strips
from dsas_diffusion.generation.compare import UNCHANGED, change
from dsas_diffusion.generation.pictures import pictures_of
from dsas_diffusion.generation.settings import settings_of
from dsas_diffusion.pipelines.adapter import adapt
from dsas_diffusion.vision import similarity

#: source and target phrase, by name
PHRASES = {
    "guitar-blurred": ("guitar", "blurred guitar"),
    "cat-grey": ("cat", "grey cat"),
    "pear-grey": ("pear", "grey pear"),
    "bus-pixelated": ("bus", "pixelated bus"),
    "frog-blurred": ("frog", "blurred frog"),
    "apple-to-lemon": ("apple", "lemon"),
}
#: picture concepts that ship
SHIPPED = (
    *("banana-blur", "dog-grey", "vehicles-grey", "animals-blurred", "fruit-blurred"),
    *("guitar-blurred", "frog-blurred", "pear-grey"),
)
#: how far the centre of a thing may move, in widths of the picture
MOVED = 0.12
#: noises of the sheets, and rows
SHEET_ROWS = 12


class Case(NamedTuple):
    """A prompt, the same asking in words for the change, the thing that is changed, and the one beside it."""

    prompt: str
    rewritten: str
    thing: str
    neighbour: str
    seed: int


def edit_of(source: str, target: str) -> Edit:
    """The edit that two phrases ask for.

    Example:
        >>> edit_of("cat", "grey cat").style, edit_of("apple", "lemon").becomes
        ('grey', 'lemon')
    """
    first, _, noun = target.rpartition(" ")
    return Edit((source,), style=first) if first in STYLES else Edit((source,), becomes=noun)


def draw_cases(edit: Edit, neighbours: Sequence[str], size: int, seeds: int) -> list[Case]:
    """Mixed prompts, `size` for each seed: every neighbour in turn, half of them with "and"."""
    cases = []
    for seed in range(seeds):
        rng = np.random.default_rng(1000 + seed)
        for i in range(size):
            thing, other = str(rng.choice(edit.things)), neighbours[(i + seed) % len(neighbours)]
            relation = "and" if i % 2 else str(rng.choice([*RELATIONS]))
            pair = [noun_phrase(thing), noun_phrase(other)]
            if rng.random() < 0.5:
                pair.reverse()
            prompt = f"{pair[0]} {relation} {pair[1]} {rng.choice(BACKGROUNDS)}"
            cases.append(Case(prompt, edit.in_words(prompt, thing), thing, other, seed))
    return cases


class Sheet:
    """Mixed prompts of an edit, drawn unsteered, rewritten and steered, and judged.

    Args:
        pipe: the built-in pipeline.
        edit: the edit.
        neighbours: what stands beside the things.
        args: of the command line.
    """

    def __init__(self, pipe: Any, edit: Edit, neighbours: Sequence[str], args: argparse.Namespace) -> None:
        self.pipe, self.edit, self.judge = pipe, edit, Judge.load()
        self.cases = draw_cases(edit, neighbours, args.size, args.seeds)
        self.noise = [10_000 * (1 + case.seed) + i for i, case in enumerate(self.cases)]
        self.rest = [f"{noun_phrase(name)} {place}" for name in neighbours for place in BACKGROUNDS[::4]]
        self.base = self.draw([case.prompt for case in self.cases], self.noise)
        self.base_rest = self.draw(self.rest, range(len(self.rest)))
        verdicts = self.judge.look(self.base)
        shown = [
            v.styles.get(c.thing) == v.styles.get(c.neighbour) == "sharp"
            for v, c in zip(verdicts, self.cases, strict=True)
        ]
        self.usable, self.verdicts = [i for i, both in enumerate(shown) if both], verdicts

    def draw(self, prompts: Sequence[str], noise: Sequence[int]) -> list[Image.Image]:
        return pictures_of(adapt(self.pipe), prompts, noise, settings_of(self.pipe), 8)

    def measure_words(self) -> dict[str, Any]:
        """The figures of prompts that ask for the change in words."""
        return self._judge(self.draw([case.rewritten for case in self.cases], self.noise))

    def measure(self, concept: dsas.Concept, strength: float = 1.0) -> tuple[dict[str, Any], list[Image.Image]]:
        """The figures of a concept at a strength, and its pictures."""
        with dsas.steer(self.pipe, {concept: strength}):
            pictures = self.draw([case.prompt for case in self.cases], self.noise)
            rest = self.draw(self.rest, range(len(self.rest)))
        changed = change(self.base_rest, rest) > UNCHANGED
        return {**self._judge(pictures), "without": float(changed.mean())}, pictures

    def _judge(self, pictures: Sequence[Image.Image]) -> dict[str, Any]:
        verdicts = self.judge.look(list(pictures))
        right = np.array([self._is_right(self.cases[i], verdicts[i]) for i in self.usable])
        clean = np.array([self._is_clean(i, verdicts[i]) for i in self.usable])
        things = [self.verdicts[i].masks[self.cases[i].thing] for i in self.usable]
        base, after = ([side[i] for i in self.usable] for side in (self.base, pictures))
        outside = np.array(similarity.change_outside(base, after, things))
        labels = [(self.cases[i].seed, self.cases[i].prompt) for i in self.usable]
        figures: dict[str, Any] = {"pictures": len(self.usable)}
        for name, values in (("target", right), ("clean", clean), ("change outside", outside)):
            figures[name] = list(
                vars(bootstrap_interval(lambda index, v=values: float(v[index].mean()), labels)).values()
            )
        figures["not clean"] = [self.cases[i].prompt for i, good in zip(self.usable, clean, strict=True) if not good]
        return figures

    def _is_right(self, case: Case, verdict: Verdict) -> bool:
        if self.edit.style is not None:
            return verdict.styles.get(case.thing) == self.edit.style
        return self.edit.becomes in verdict.things and case.thing not in verdict.things

    def _is_clean(self, i: int, verdict: Verdict) -> bool:
        name, before = self.cases[i].neighbour, self.verdicts[i].centres
        if verdict.styles.get(name) != "sharp":
            return False
        return bool(np.hypot(*np.subtract(before[name], verdict.centres[name])) < MOVED)

    def save(self, pictures: Sequence[Image.Image], path: Path) -> None:
        """Unsteered and steered pictures of the first prompts side by side."""
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [list(pair) for pair in zip(self.base, pictures, strict=True)][:SHEET_ROWS]
        labels = [case.prompt for case in self.cases][:SHEET_ROWS]
        strips.grid(rows, ["unsteered", "steered"], labels, 136).save(path)


def claimed(concept: dsas.Concept) -> dict[str, Any]:
    """What the evidence of a concept says of it: effect at 1, and the share of pictures that are kept beside it."""
    kept, unit = concept.evidence["kept"], concept.evidence["unit"]
    effect = next(trial["effect"] for trial in unit["trials"] if trial["unit"] == concept.unit)
    beside = kept["beside"]
    share = 1 - beside["changed"] / beside["pictures"] if beside["pictures"] else None
    return {"effect": effect, "kept beside": share, "pictures": beside["pictures"], "without": kept["without"]}


def run_phrases(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Learn a concept of two phrases by the command line, and measure it."""
    folder, (source, target) = args.folder / name, PHRASES[name]
    began, seconds = time.monotonic(), None
    if not (folder / "config.json").is_file():
        command = ["learn", "--from", source, "--to", target, "--out", str(folder), "--no-strip", "--json"]
        subprocess.run([sys.executable, "-m", "dsas_diffusion.cli", *command], check=True, stdout=subprocess.DEVNULL)
        seconds = round(time.monotonic() - began, 1)
    pipe, concept = dsas.load_pipeline("builtin:emoji"), dsas.Concept.from_pretrained(folder)
    neighbours = [noun for noun in concept.provenance["prompts"]["placeholders"]["unseen"] if noun in NAMES]
    sheet = Sheet(pipe, edit_of(source, target), neighbours, args)
    figures, pictures = sheet.measure(concept)
    sheet.save(pictures, args.sheets / f"two-phrases-{name}.png")
    return {
        "unit": concept.unit,
        "steers below": concept.steps_below,
        "seconds of learning": seconds,
        "phases": concept.evidence["cost"]["seconds"],
        "claimed": claimed(concept),
        "steered": figures,
        "in words": sheet.measure_words(),
    }


def run_shipped(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure a concept that ships, at 1 and at both ends of its range."""
    pipe, concept = dsas.load_pipeline("builtin:emoji"), dsas.Concept.from_pretrained(f"builtin:{name}")
    content = load_prompts(PROMPTS / f"{name}.yaml")
    names = content.placeholders.get("companion") or content.placeholders["unseen"]
    sheet = Sheet(pipe, Edit.of(content), [name for name in names if name in NAMES], args)
    figures, pictures = sheet.measure(concept)
    sheet.save(pictures, args.sheets / f"shipped-{name}.png")
    assert concept.range is not None
    ends = {f"at {end:g}": sheet.measure(concept, end)[0] for end in concept.range if end}
    head = {"unit": concept.unit, "range": concept.range, "steers below": concept.steps_below}
    return {**head, "claimed": claimed(concept), "at 1": figures, **ends, "in words": sheet.measure_words()}


def main() -> None:
    parser = build_parser(__doc__, record_path(__file__))
    parser.add_argument("--shipped", action="store_true", help="the concepts that ship, not those of two phrases")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of the concepts")
    parser.add_argument("--size", type=int, default=12, help="prompts for each seed")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, …")
    parser.add_argument(
        "--folder", type=Path, default=OUTPUTS / "two-phrases", help="where concepts are learned, or lie"
    )
    parser.add_argument("--sheets", type=Path, default=OUTPUTS, help="folder of pictures to look at")
    args = parser.parse_args()
    out = RESULTS / "shipped.json" if args.shipped and args.out == record_path(__file__) else args.out
    for name in args.only or (SHIPPED if args.shipped else PHRASES):
        began = time.monotonic()
        figures = (run_shipped if args.shipped else run_phrases)(name, args)
        update_record(out, name, {**figures, **provenance(began=began)})
        print(name, json.dumps({key: value for key, value in figures.items() if key != "phases"}), flush=True)


if __name__ == "__main__":
    main()
