"""Only the thing: what steering, with `preserve` and without, leaves of the rest, beside rewriting.

    python -m benchmarks.quality.preserve --workers 2

For each concept and seed, on the built-in model: pictures of fresh prompts (a thing beside something else; without it,
look-alikes among them; "a fruit …", which may turn out to be it), drawn in every arm from the same noise and judged by
the built-in judge. The arms: the prompt rewritten, a negative prompt, attention replaced as by prompt-to-prompt, and
steering at text sites and at denoiser sites, each as it is, with latents kept, with all kept, and with the judge's mask
given (dilated as it is for the change outside: the limit). A concept that ships is taken as it is, for the sites that
it has; others are learned. Writes benchmarks/results/preserve.json, and two sheets of pictures for each
concept, by sites.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

import dsas_core
import dsas_diffusion as dsas
from benchmarks.common import builtin_metrics, region_metrics
from benchmarks.common.arms import BATCH, Raw, join_rows
from benchmarks.common.attention_replacement import generate_replaced
from benchmarks.common.edits import Edit, draw_cases, find_masks_of
from benchmarks.common.processes import map_seeds
from benchmarks.common.records import (
    OUTPUTS,
    PROMPTS,
    build_parser,
    format_command,
    provenance,
    record_path,
    update_record,
)
from benchmarks.quality.preserve_summary import format_lines, summarise
from dsas_core.learning.prompts.prompt_file import load_prompts
from dsas_core.learning.prompts.prompt_set import COUNT, PromptSet
from dsas_diffusion.generation import strips
from dsas_diffusion.generation.compare import change
from dsas_diffusion.generation.pictures import seeds_for
from dsas_diffusion.generation.settings import settings_of
from dsas_diffusion.pipelines.sites import has_patches
from dsas_diffusion.steering.blending import compose
from dsas_diffusion.vision import similarity
from dsas_diffusion.vision.judges import judge_from

CONCEPTS = ("banana-blur", "dog-grey", "vehicles-pixelated", "fruit-to-pear", "animals-blurred")
SITES = {"text": None, "denoiser": "denoiser"}
#: in place of sites: at the denoiser, its masks learned from the judge's, also of pictures of unnamed prompts
TOLD = "told"
#: `preserve` that stands for the judge's masks
JUDGED = "judged"


class Arm(NamedTuple):
    """How one arm steers: sites of the concept, `preserve`, the gate, and strength."""

    sites: str
    preserve: bool | str = False
    gate: str | None = None
    strength: float = 1.0


#: steering arms; of those with latents kept, all is kept in another, of the same pictures. Where the gate is on, the
#: mask alone decides what is steered: also what no prompt names
STEERED = {
    **{sites: Arm(sites) for sites in SITES},
    **{f"{sites}, latents kept": Arm(sites, "latents") for sites in SITES},
    **{f"{sites}, judge's mask": Arm(sites, JUDGED) for sites in SITES},
    "denoiser, where seen, latents kept": Arm("denoiser", "latents", "on", 0.5),
    "told, where seen, latents kept": Arm(TOLD, "latents", "on", 0.5),
}
LATENTS_KEPT, ALL_KEPT = ", latents kept", ", all kept"
#: strengths beside 1, on fewer prompts, for the change at equal effect
STRENGTHS = (0.5, 1.5)
#: prompts and noises of the sheets
SHEET_PROMPTS, SHEET_SEEDS = 12, 3


class Drawn(NamedTuple):
    """Pictures, where they were steered if an arm tells, and what each cost: rows of the denoiser's batch, seconds."""

    pictures: list[Image.Image]
    masks: list[np.ndarray]
    rows: float
    seconds: float


class Trial:
    """One seed of a concept: the model, its judge, fresh prompts, and their unsteered pictures.

    Args:
        content: the prompt file.
        seed: of prompts, noise and learning.
        args: of the command line.
    """

    def __init__(self, content: PromptSet, seed: int, args: argparse.Namespace) -> None:
        self.pipe = dsas.load_pipeline(args.model)
        self.settings, self.edit = settings_of(self.pipe), Edit.of(content)
        self.judge: Any = judge_from(content.judges[0])
        self.concepts = find_concepts(self.pipe, content, seed, args)
        draws = {(COUNT, seed), *((c.provenance["count"], c.provenance["seed"]) for c in self.concepts.values())}
        used = {prompt for drawn in draws for side in content.draw(*drawn).values() for prompt in side}
        self.cases = draw_cases(self.edit, used, seed, args.size)
        self.seeds = {part: seeds_for(cases, 1000 * seed + i) for i, (part, cases) in enumerate(self.cases.items())}
        self.negative = content.sample("negative", 1)[0]
        self.base = {part: self.draw(part, self.pipe) for part in self.cases}
        self.things: dict[str, list[Any]] = {
            part: find_masks_of(self.judge.judge, drawn.pictures, self.edit.things) for part, drawn in self.base.items()
        }
        self.usable = [
            i
            for i, mask in enumerate(self.things["beside"])
            if mask is not None and similarity.surroundings(mask).any()
        ]

    def draw(self, part: str, call: Callable[..., Any], count: int | None = None, **by_picture: Sequence[Any]) -> Drawn:
        """Draw the prompts of a part.

        Args:
            part: of the prompts.
            call: takes prompts and arguments of the pipeline; returns `images`, and perhaps `masks`.
            count: of the first prompts; None for all.
            by_picture: further arguments, with an item for each prompt.
        """
        prompts, pictures, masks = [case.prompt for case in self.cases[part][:count]], [], []
        began = time.process_time()
        with count_rows(self.pipe.unet) as rows:
            for start in range(0, len(prompts), BATCH):
                batch = slice(start, min(start + BATCH, len(prompts)))
                made = call(
                    prompts[batch],
                    generator=[torch.Generator().manual_seed(seed) for seed in self.seeds[part][batch]],
                    num_inference_steps=self.settings.steps,
                    guidance_scale=self.settings.guidance,
                    **{name: values[batch] for name, values in by_picture.items()},
                )
                pictures += made.images
                # a concept that cannot be localised steers everywhere
                masks += getattr(made, "masks", None) or [np.ones(p.size[::-1], np.float32) for p in made.images]
        seconds = time.process_time() - began
        return Drawn(pictures, masks, sum(rows) / len(prompts), seconds / len(prompts))

    def draw_steered(self, arm: str, part: str, strength: float = 1.0, count: int | None = None) -> Drawn:
        """Draw the prompts of a part in a steering arm."""
        sites, preserve, gate, share = STEERED[arm]
        with dsas.steer(self.pipe, {self.concepts[sites]: strength * share}, gate=gate) as steering:
            if preserve != JUDGED:
                return self.draw(part, partial(steering.generate, preserve=preserve), count)
            shape = self.base[part].pictures[0].size[::-1]
            things = [np.zeros(shape, bool) if m is None else ~similarity.surroundings(m) for m in self.things[part]]
            return self.draw(part, steering.generate, count, preserve=things)

    def draw_baselines(self) -> Iterator[tuple[str, Drawn]]:
        """The arms without steering, on the prompts that name the thing."""
        rewritten = [case.rewritten for case in self.cases["beside"]]
        yield "in words", self.draw("beside", lambda _, texts, **options: self.pipe(texts, **options), texts=rewritten)
        yield "attention replaced", self.draw("beside", partial(generate_replaced, self.pipe), rewritten=rewritten)
        yield "negative prompt", self.draw("beside", self.call_with_negative)

    def call_with_negative(self, prompts: Sequence[str], **options: Any) -> Any:
        """The pipeline with the negative prompt of the prompt file."""
        return self.pipe(prompts, negative_prompt=[self.negative] * len(prompts), **options)

    def judge_beside(self, drawn: Drawn, has_masks: bool, sites: str = "") -> Raw:
        """Raw lists for pictures of the thing beside something else, of those whose unsteered picture shows it."""
        usable = [i for i in self.usable if i < len(drawn.pictures)]
        listed = (
            self.base["beside"].pictures,
            self.things["beside"],
            drawn.pictures,
            drawn.masks,
            self.cases["beside"],
        )
        base, things, pictures, masks, cases = ([items[i] for i in usable] for items in listed)
        around = [~similarity.surroundings(thing) for thing in things]
        edges = [mask > 0 for mask in masks] if has_masks else around
        names = [case.neighbour for case in cases]
        raw: Raw = {
            "shown": self.judge.target_scores(pictures, [case.prompt for case in cases]).tolist(),
            "change": similarity.change_outside(base, pictures, things),
            "squared error": [*map(region_metrics.squared_error_outside, base, pictures, things)],
            "intact": builtin_metrics.detect_neighbours(self.judge.judge, pictures, names).tolist(),
            "regions": builtin_metrics.count_regions(self.judge.judge, pictures),
            "gradient": [*map(region_metrics.gradient_across, pictures, edges)],
            "gradient before": [*map(region_metrics.gradient_across, base, edges)],
            "passes": [drawn.rows / self.base["beside"].rows],
            "seconds": [drawn.seconds / self.base["beside"].seconds],
        }
        if has_masks:
            hot = [mask >= 0.5 for mask in masks]
            growth = self.concepts[sites].evidence["mask"]["growth"]
            seen = [ndimage.distance_transform_edt(mask) > growth * mask.shape[1] for mask in hot]
            raw["iou"] = [*map(region_metrics.overlap, seen, things)]  # as it is before it grows
            raw["iou grown"] = [*map(region_metrics.overlap, hot, around)]
            raw["covered"] = [*map(region_metrics.covered_share, hot, things)]
            raw["area"] = [float(mask.mean()) for mask in hot]
        return raw

    def judge_rest(self, without: Drawn, unnamed: Drawn | None, has_masks: bool) -> Raw:
        """Raw lists for pictures without the thing, and for those of prompts that do not name it."""
        raw: Raw = {
            "control change": change(self.base["without"].pictures, without.pictures).tolist(),
            "control passes": [without.rows / self.base["without"].rows],
        }
        if unnamed is not None:
            prompts, base = [case.prompt for case in self.cases["unnamed"]], self.base["unnamed"].pictures
            raw["unnamed shown"] = self.judge.target_scores(unnamed.pictures, prompts).tolist()
            raw["unnamed change"] = change(base, unnamed.pictures).tolist()
            if has_masks:
                raw["unnamed covered"] = [
                    0.0 if thing is None else region_metrics.covered_share(mask >= 0.5, thing)
                    for mask, thing in zip(unnamed.masks, self.things["unnamed"], strict=True)
                ]
        return raw


def keep_all(drawn: Drawn, unsteered: Sequence[Image.Image]) -> Drawn:
    """Pictures with latents kept, as they are with all kept: composed with the unsteered ones, which may be more."""
    parts = zip(drawn.pictures, unsteered, drawn.masks, strict=False)
    pictures = [compose(picture, base, mask) if mask.any() else base for picture, base, mask in parts]
    return drawn._replace(pictures=pictures)


def find_concepts(pipe: Any, content: PromptSet, seed: int, args: argparse.Namespace) -> dict[str, dsas.Concept]:
    """Concepts by the sites that are asked for: the one that ships, for those that it has, and others learned now."""
    concepts = {}
    if content.name in {entry.name.removeprefix("builtin:") for entry in dsas_core.shipped()}:
        concept = dsas.Concept.from_pretrained(f"builtin:{content.name}")
        in_patches = any(has_patches(site, "unet") for site in concept.steered_sites)
        concepts["denoiser" if in_patches else "text"] = concept
    options: dict[str, Any] = {"seed": seed, "steps": args.learning_steps}
    for name in args.sites:
        if name == TOLD:
            judge: Any = judge_from(content.judges[0])
            told = {"masks": judge.masks, "recipe": {"supervision": "prompts"}}  # masks alone
            concepts[name] = dsas.learn(pipe, content, sites="denoiser", **told, **options)
        elif name not in concepts:
            concepts[name] = dsas.learn(pipe, content, sites=SITES[name], **options)
    return {name: concepts[name] for name in args.sites}


@contextmanager
def count_rows(denoiser: torch.nn.Module) -> Iterator[list[int]]:
    """The rows of each batch that a denoiser gets in the block."""
    rows: list[int] = []
    handle = denoiser.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    try:
        yield rows
    finally:
        handle.remove()


def run_seed(seed: int, args: argparse.Namespace) -> Raw:
    """Raw lists of one entry a picture, by arm and figure; the first seed also saves the sheets."""
    trial = Trial(load_prompts(PROMPTS / f"{args.concept}.yaml"), seed, args)
    beside = [trial.cases["beside"][i] for i in trial.usable]
    names = [case.neighbour for case in beside]
    base = [trial.base["beside"].pictures[i] for i in trial.usable]
    grid = sum(i < args.grid for i in trial.usable)
    raw: Raw = {
        "labels": [(seed, case.prompt) for case in beside],
        "control labels": [(seed, case.prompt) for case in trial.cases["without"]],
        "unnamed labels": [(seed, f"{i} {case.prompt}") for i, case in enumerate(trial.cases["unnamed"])],
        "base intact": builtin_metrics.detect_neighbours(trial.judge.judge, base, names).tolist(),
        "base regions": builtin_metrics.count_regions(trial.judge.judge, base),
        "unnamed shows": [mask is not None for mask in trial.things["unnamed"]],
        "units": [{name: concept.unit for name, concept in trial.concepts.items()}],
    }

    def add(arm: str, figures: Raw) -> None:
        raw.update({f"{arm}|{name}": values for name, values in figures.items()})

    def add_point(arm: str, strength: float, figures: Raw) -> None:
        add(arm, {f"{name}@{strength}": figures[name][:grid] for name in ("shown", "change")})

    for arm, drawn in trial.draw_baselines():
        figures = trial.judge_beside(drawn, has_masks=False)
        add(arm, figures)
        add_point(arm, 1.0, figures)
    add("negative prompt", trial.judge_rest(trial.draw("without", trial.call_with_negative), None, has_masks=False))
    for arm, how in STEERED.items():
        if how.sites not in trial.concepts:
            continue
        parts = ("beside",) if how.preserve == JUDGED else ("beside", "without", "unnamed")
        beside, *rest = (trial.draw_steered(arm, part) for part in parts)
        points = {s: trial.draw_steered(arm, "beside", s, args.grid) for s in (() if how.gate else STRENGTHS)}
        versions: dict[str, Callable[[Drawn, Sequence[Image.Image]], Drawn]] = {arm: lambda drawn, _: drawn}
        if how.preserve == "latents":
            versions[arm.replace(LATENTS_KEPT, ALL_KEPT)] = keep_all
        before = {part: trial.base[part].pictures for part in trial.base}
        for name, version in versions.items():
            has_masks = how.preserve == "latents"
            figures = trial.judge_beside(version(beside, before["beside"]), has_masks, how.sites)
            add(name, figures)
            add_point(name, 1.0, figures)
            for strength, drawn in points.items():
                add_point(name, strength, trial.judge_beside(version(drawn, before["beside"]), has_masks, how.sites))
            if rest:
                without, unnamed = map(version, rest, (before["without"], before["unnamed"]))
                add(name, trial.judge_rest(without, unnamed, has_masks))
    if seed == 0:
        args.sheets.mkdir(parents=True, exist_ok=True)
        for sites in set(trial.concepts) - {TOLD}:
            suffix = "" if sites == "text" else f"-{sites}"
            save_sheet(trial, sites, args.sheets / f"preserve-{args.concept}{suffix}.png")
    return raw


def save_sheet(trial: Trial, sites: str, path: Path) -> None:
    """Prompts with a thing, each from several noises: unsteered, steered, all kept, what that changed, the mask."""
    rows: list[list[Image.Image]] = [[] for _ in trial.cases["beside"][:SHEET_PROMPTS]]
    for noise in range(SHEET_SEEDS):
        trial.seeds["beside"] = seeds_for(trial.cases["beside"], 10_000 + noise)
        base = trial.draw("beside", trial.pipe, SHEET_PROMPTS).pictures
        steered = trial.draw_steered(sites, "beside", count=SHEET_PROMPTS).pictures
        kept = keep_all(trial.draw_steered(f"{sites}{LATENTS_KEPT}", "beside", count=SHEET_PROMPTS), base)
        for row, before, plain, after, mask in zip(rows, base, steered, kept.pictures, kept.masks, strict=True):
            row += [before, plain, after, strips.difference(before, after), strips.overlay(before, mask)]
    columns = ["unsteered", "steered", "all kept", f"difference × {strips.GAIN}", "mask"] * SHEET_SEEDS
    strips.grid(rows, columns, [case.prompt for case in trial.cases["beside"][:SHEET_PROMPTS]], 136).save(path)


def main() -> None:
    parser = build_parser(__doc__, record_path(__file__), seeds=4)
    parser.add_argument("--model", default="builtin:emoji")
    parser.add_argument("--concepts", nargs="+", choices=CONCEPTS, default=CONCEPTS, metavar="NAME")
    parser.add_argument("--size", type=int, default=50, help="fresh prompts a part and seed")
    parser.add_argument("--grid", type=int, default=12, help="of them, prompts of each seed at other strengths than 1")
    parser.add_argument(
        "--sites", nargs="+", choices=(*SITES, TOLD), default=[*SITES], metavar="NAME", help="text, denoiser, told"
    )
    parser.add_argument("--learning-steps", type=int, default=8, help="denoising steps while learning")
    parser.add_argument("--sheets", type=Path, default=OUTPUTS, help="folder of pictures to look at")
    args = parser.parse_args()

    for name in args.concepts:
        began = time.monotonic()
        raw = join_rows(map_seeds(run_seed, argparse.Namespace(**vars(args), concept=name)))
        figures = {"seeds": args.seeds, **summarise(raw)}
        command = format_command(
            *("--concepts", name, "--seeds", args.seeds, "--model", args.model, "--size", args.size),
            *("--grid", args.grid, "--sites", *args.sites, "--learning-steps", args.learning_steps),
        )
        entry = name if "text" in args.sites else f"{name}-{args.sites[0]}"
        update_record(args.out, entry, {**figures, **provenance(began=began, command=command)})
        print(name, *format_lines(figures), sep="\n  ", flush=True)


if __name__ == "__main__":
    main()
