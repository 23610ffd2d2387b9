"""`dsas sweep`: draw a concept from its low to its high end, as a strip of pictures and as an animation."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dsas_core import llm
from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError
from dsas_core.steering.strengths import Auto
from dsas_core.utils.progress import progress_bar
from dsas_core.utils.saving.signature import UNSIGNED, sign
from dsas_core.utils.versions import versions

from ... import __version__
from ...drawing.picture_files import encode_picture, exif_of
from ...drawing.picture_settings import GATES
from ...drawing.prompt_tags import refuse_tags
from ...drawing.shelf import Shelf
from ...generation import strips
from ...generation.animation import ANIMATIONS, encode_animation
from ...generation.compare import change
from ...generation.pictures import check_negative, seeds_for
from ...generation.settings import Settings
from ...learning.illustrate import ENDS
from ...pipelines.adapter import PipelineAdapter
from ...steering.drawing import generate_batches
from ...steering.preserve import Generation
from ...steering.steer import steer
from ..arguments import generation_record, open_for_drawing, read_preserve, shows_progress, words_by_concept
from ..output import check_output_files, print_table, write_files

SUFFIXES = (".png", *ANIMATIONS)
GATE_NAMES = {"own": "its own gate", "on": "always on", "off": "gate off"}
#: characters of a prompt that fit beside its row
CAPTION = 80


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Draw a concept at every strength, and write the strip or animation.

    Returns:
        The settings, the change of each picture from strength 0, its mean h, and the files.
    """
    if args.compare and args.gate == "on":
        args.usage("--compare adds the gate that is always on: leave --gate on out")
    outs = [Path(out).expanduser() for out in dict.fromkeys(args.out or ["outputs/sweep.png"])]
    for out in outs:
        if out.suffix.lower() not in SUFFIXES:
            raise DSASError(f"{out}: a strip is written as .png, an animation as {' or '.join(ANIMATIONS)}")
        check_output_files([out], args.overwrite)
    if llm.is_language_model(args.model):
        args.usage(f"{args.model} is a language model, which draws nothing: use `dsas chat`")
    shelf, preserve = Shelf(), read_preserve(args.preserve)
    concept = shelf.concepts[shelf.read(args.concept)]
    lines = [_read_line(shelf, concept, prompt) for prompt in args.prompt]
    if args.negative_prompt is not None:
        refuse_tags(args.negative_prompt, "the negative prompt")
    low, high = concept.range or ENDS
    low, high = low if args.low is None else args.low, high if args.high is None else args.high
    if low >= high:
        args.usage(f"--from must be below --to, found --from {low:g} --to {high:g}")

    adapter, settings = open_for_drawing(args)
    settings = replace(settings, scheduler=args.scheduler)
    if args.negative_prompt is not None:
        check_negative(adapter, settings)
    strengths = strengths_between(low, high, args.count)
    rows = _draw(adapter, args, lines, shelf.concepts, concept, strengths, settings, preserve)
    document = _document(adapter, args, concept, strengths, settings, rows)
    files = {out: _encode(out.suffix.lower(), concept, strengths, rows, document) for out in outs}
    write_files(files)
    return {**document, "files": [str(out) for out in files]}


def report(document: dict[str, Any]) -> None:
    """Print the change of each picture from strength 0, and the files."""
    labels = [strips.strength_label(strength) for strength in document["strengths"]]
    for row in document["rows"]:
        print(f"{row['prompt']}, gate {row['gate']}")
        columns = zip(labels, row["change"], row["mean_h"], strict=True)
        print_table(("strength", "change of 255", "mean h"), list(columns))
        print()
    print(f"wrote {', '.join(document['files'])}")


def strengths_between(low: float, high: float, count: int) -> list[float]:
    """Ascending strengths, evenly spaced, and 0 where it is not among them.

    Example:
        >>> strengths_between(-1.0, 2.0, 3)
        [-1.0, 0.0, 0.5, 2.0]
    """
    spaced = np.linspace(low, high, count)
    spaced[np.abs(spaced) < 1e-9 * (high - low)] = 0.0  # a 0 that rounding has moved
    return sorted({*spaced.tolist(), 0.0})


@dataclass
class _Row:
    """One prompt under one gate.

    Args:
        prompt: the prompt.
        noise_seed: seed of its noise.
        tags: name -> strength of each concept that a tag of the prompt sets.
        gate: a key of GATES.
        label: name of the gate; empty where no other gate is beside the concept's own.
        drawn: by strength, the picture and the mean h of the sites that steer.
    """

    prompt: str
    noise_seed: int
    tags: Mapping[str, float | Auto]
    gate: str
    label: str
    drawn: dict[float, tuple[Image.Image, float]] = field(default_factory=dict)

    @property
    def pictures(self) -> list[Image.Image]:
        """From the lowest strength to the highest."""
        return [self.drawn[strength][0] for strength in sorted(self.drawn)]

    @property
    def mean_h(self) -> list[float]:
        """From the lowest strength to the highest."""
        return [self.drawn[strength][1] for strength in sorted(self.drawn)]


def _read_line(shelf: Shelf, concept: Concept, prompt: str) -> tuple[str, dict[str, float | Auto]]:
    """A prompt without its tags, and the strengths that these set."""
    clean, others, tagged = shelf.read_prompt(prompt)
    if concept.name in tagged:
        raise DSASError(f"the prompt has a tag for {concept.name!r}, whose strength is swept: leave the tag out")
    return clean, {other.name: other.strength for other in others}


def _draw(
    adapter: PipelineAdapter,
    args: argparse.Namespace,
    lines: Sequence[tuple[str, Mapping[str, float | Auto]]],
    concepts: Mapping[str, Concept],
    concept: Concept,
    strengths: Sequence[float],
    settings: Settings,
    preserve: Any,
) -> list[_Row]:
    """Every prompt at every strength; the rows of a prompt, one per gate, lie together."""
    gates = [args.gate, "on"] if args.compare else [args.gate]
    seeds = seeds_for(lines, args.seed)
    labels = {gate: "" if gates == ["own"] else GATE_NAMES[gate] for gate in gates}
    prompts = [(clean, seed, tags) for (clean, tags), seed in zip(lines, seeds, strict=True)]
    rows = [_Row(*prompt, gate, labels[gate]) for prompt in prompts for gate in gates]
    words = words_by_concept(args.words)
    with progress_bar(len(rows) * len(strengths), "pictures", shows_progress(args)) as bar:
        for row in rows:
            how = {"gate": GATES[row.gate], "within": args.within, "words": words}
            steered = {concept: 0.0, **{concepts[name]: strength for name, strength in row.tags.items()}}
            with steer(adapter, steered, trace=True, **how) as steering:
                assert steering.trace is not None
                first: list[Generation] = []
                for strength in sorted(strengths, key=abs):  # 0 first: its pass is the unsteered one of the others
                    steering.strengths[concept.name] = strength
                    arguments = [row.prompt], [row.noise_seed], settings, preserve, 1, first, args.negative_prompt
                    (made,) = generate_batches(steering, *arguments)  # each alone: pictures are those of `generate`
                    if made.recorded is not None:
                        first = [made]
                    if made.is_steered or not row.drawn:  # else no pass was run at this strength
                        h = steering.trace.mean_h(concept.name, sites=concept.steered_sites, prompt=0)
                    else:
                        h = row.drawn[0.0][1]
                    row.drawn[strength] = made.images[0], h
                    bar.update()
    return rows


def _document(
    adapter: PipelineAdapter,
    args: argparse.Namespace,
    concept: Concept,
    strengths: Sequence[float],
    settings: Settings,
    rows: Sequence[_Row],
) -> dict[str, Any]:
    """Everything needed to draw the same pictures again, and what was measured on them."""
    off = strengths.index(0.0)
    return {
        "model": args.model,
        "concept": {"concept": args.concept, "name": concept.name, "unit": concept.unit},
        "strengths": list(strengths),
        "within": args.within,
        "words": words_by_concept(args.words),
        "preserve": args.preserve,
        "negative_prompt": args.negative_prompt,
        "scheduler": settings.scheduler,
        **generation_record(args, adapter, settings),
        "rows": [
            {
                "prompt": row.prompt,
                "tags": {name: str(it) if isinstance(it, Auto) else it for name, it in row.tags.items()},
                "gate": row.gate,
                "noise_seed": row.noise_seed,
                "change": change([row.pictures[off]] * len(strengths), row.pictures).tolist(),
                "mean_h": row.mean_h,
            }
            for row in rows
        ],
        "versions": {"dsas": __version__, **versions("diffusers", "transformers")},
    }


# ---- files ----------------------------------------------------------------------------------------------------------


def _encode(
    suffix: str, concept: Concept, strengths: Sequence[float], rows: Sequence[_Row], document: Mapping[str, Any]
) -> bytes:
    """The strip or the animation as a file's content."""
    if suffix not in ANIMATIONS:
        captions = [_add_label(_shorten(row.prompt), row.label) for row in rows]
        return encode_picture(strips.strip([row.pictures for row in rows], strengths, captions), document)
    if len(rows) == 1:
        frames = strips.animation(rows[0].pictures, strengths, _add_label(concept.name, rows[0].label))
    else:
        frames = strips.animation([_sheet(rows, i) for i in range(len(strengths))], strengths, concept.name)
    comment = {"comment": UNSIGNED.encode()} if suffix == ".gif" else {"exif": exif_of(document)}
    return sign(encode_animation(frames, suffix, comment))


def _sheet(rows: Sequence[_Row], strength: int) -> Image.Image:
    """The pictures of one strength: a row for each prompt, a column for each gate."""
    gates = len({row.gate for row in rows})
    by_prompt = [rows[i : i + gates] for i in range(0, len(rows), gates)]
    pictures = [[row.pictures[strength] for row in line] for line in by_prompt]
    captions = [_shorten(line[0].prompt) for line in by_prompt]
    return strips.grid(pictures, [row.label for row in by_prompt[0]], captions, strips.cell_of(pictures[0][0]))


def _shorten(prompt: str) -> str:
    return textwrap.shorten(prompt, CAPTION, placeholder=" …")


def _add_label(text: str, label: str) -> str:
    return f"{text} – {label}" if label else text
