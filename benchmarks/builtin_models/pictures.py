"""Quality of the built-in picture model and its judge, without steering, on content held out from training.

    python -m benchmarks.builtin_models.pictures --pictures 400

Writes benchmarks/results/pictures.json.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

import dsas_diffusion as dsas
from benchmarks.builtin_models.picture_scenes import Scene, render, sample_scene
from benchmarks.common.records import build_parser, provenance, record_path, write_record
from dsas_diffusion.builtin.judge import Judge
from dsas_diffusion.builtin.scenes import RELATIONS
from dsas_diffusion.generation.pictures import pictures_of, seeds_for
from dsas_diffusion.generation.settings import Settings, settings_of
from dsas_diffusion.pipelines.adapter import adapt


def has_exact_caption(scene: Scene) -> bool:
    """Whether the caption names every thing by its own name."""
    return all(item.thing in scene.caption.split() for item in scene.items)


def measure_judge(judge: Judge, count: int, seed: int) -> dict[str, float]:
    """The judge on held-out renders: exact set of things, and style of the things that it detects."""
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng, held_out=True) for _ in range(count)]
    pictures = np.stack([render(scene, rng)[0] for scene in scenes])
    exact, styles = [], []
    for scene, verdict in zip(scenes, judge.look(pictures), strict=True):
        expected = {item.thing: item.style for item in scene.items}
        exact.append(verdict.things == frozenset(expected))
        styles += [verdict.styles[thing] == style for thing, style in expected.items() if thing in verdict.styles]
    return {"renders": count, "exact_set": float(np.mean(exact)), "style": float(np.mean(styles))}


def measure_model(pipe: Any, judge: Judge, count: int, seed: int, settings: Settings) -> dict[str, Any]:
    """The model on held-out prompts, half with one thing and half with two."""
    rng = np.random.default_rng(seed)
    scenes: dict[int, list[Scene]] = {1: [], 2: []}
    while min(map(len, scenes.values())) < count // 2:
        scene = sample_scene(rng, held_out=True)
        if len(scene.items) in scenes and has_exact_caption(scene) and len(scenes[len(scene.items)]) < count // 2:
            scenes[len(scene.items)].append(scene)
    single, exact, styles, relations = [], [], [], []
    for number, drawn in scenes.items():
        captions = [scene.caption for scene in drawn]
        verdicts = judge.look(pictures_of(adapt(pipe), captions, seeds_for(captions, seed + number), settings))
        for scene, verdict in zip(drawn, verdicts, strict=True):
            expected = {item.thing: item.style for item in scene.items}
            styles += [verdict.styles[thing] == style for thing, style in expected.items() if thing in verdict.styles]
            if number == 1:
                single.append(scene.items[0].thing in verdict.things)
                continue
            exact.append(verdict.things == frozenset(expected))
            first, second = (item.thing for item in scene.items)
            if scene.relation and {first, second} <= verdict.things:
                offset = np.subtract(verdict.centres[first], verdict.centres[second])
                relations.append(float(np.dot(offset, RELATIONS[scene.relation])) > 0)
    return {
        "prompts": count,
        "single_right_thing": float(np.mean(single)),
        "pair_exact": float(np.mean(exact)),
        "style": float(np.mean(styles)),
        "side_or_height": float(np.mean(relations)),
        "steps": settings.steps,
        "guidance": settings.guidance,
    }


def main() -> None:
    parser = build_parser(__doc__, record_path(__file__), seed=True)
    parser.add_argument("--model", default="builtin:emoji")
    parser.add_argument("--judge", type=Path, default=None, help="folder of judge.safetensors")
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--renders", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--guidance", type=float, default=None)
    args = parser.parse_args()
    pipe, judge = dsas.load_pipeline(args.model), Judge.load(args.judge)
    settings = settings_of(pipe, args.steps, args.guidance)
    report: dict[str, Any] = {"judge": measure_judge(judge, args.renders, args.seed)} if args.renders else {}
    began = time.monotonic()
    report["model"] = measure_model(pipe, judge, args.pictures, args.seed, settings)
    report["model"]["seconds_a_picture"] = (time.monotonic() - began) / args.pictures
    began = time.monotonic()
    pictures_of(adapt(pipe), ["a banana"], [0], settings)
    report["model"]["seconds_one_picture_alone"] = time.monotonic() - began
    report |= {"seed": args.seed, **provenance()}
    write_record(args.out, report)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
