"""What steering and learning cost, as ratios within one run: steered and unsteered calls are interleaved.

    OMP_NUM_THREADS=1 python benchmarks/overhead.py --rounds 15

Processor time is compared, in one thread: with more, threads that wait for one another would be counted as work. On a
GPU (--device cuda) it is the time between events on its stream, at full size with --full.

- learning: `learn` over the bare generations that it makes.
- pictures: a whole generation with a learned concept over one without.
- calls: one call of the denoiser with K random concepts at every cross-attention layer (of FLUX, at every image
  stream), by hooks and by processors, eager and compiled.

Writes benchmarks/results/overhead.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from shapes import xl_unet

import dsas_diffusion as dsas
from dsas_core.concept import Intervention
from dsas_core.hooks import Call, visit
from dsas_core.maps import AffineMap
from dsas_core.probes import LinearProbe
from dsas_core.prompts import COUNT, read
from dsas_core.provenance import versions
from dsas_core.sites import Site
from dsas_diffusion.families import roots_of
from dsas_diffusion.generation import latents_of, seeds_for, settings_of

ROOT = Path(__file__).resolve().parent.parent
PROMPT = "a banana and a dog on the grass"
#: how many concepts are steered at once
CONCEPTS = (1, 4, 8)


def steered_over_unsteered(pipe: Any, concept: dsas.Concept, rounds: int) -> dict[str, float]:
    """Time per generation with the concept attached over time without, minimum and median over interleaved rounds.

    `control` is the same ratio between two unsteered generations: what this machine's noise makes of nothing.
    """
    settings = settings_of(pipe)
    times: dict[str, list[float]] = {"unsteered": [], "steered": [], "control": []}
    latents_of(pipe, [PROMPT], [0], settings)
    for round_ in range(rounds):
        names = list(times) if round_ % 2 else list(times)[::-1]
        for name in names:
            attached = dsas.steer(pipe, {concept: 1.0}) if name == "steered" else None
            began = time.process_time()
            latents_of(pipe, [PROMPT], [round_], settings)
            times[name].append(time.process_time() - began)
            if attached is not None:
                attached.detach()
    return over(times, "unsteered")


def over(times: Mapping[str, list[float]], base: str) -> dict[str, float]:
    """Of each arm but the base, its minimum over that of the base, and the median of the ratios within each round.

    A machine that grows slower or faster meanwhile does so for both of a round.
    """
    found = {}
    for name in times:
        if name != base:
            found[f"{name}_min"] = min(times[name]) / min(times[base])
            found[f"{name}_median"] = statistics.median(a / b for a, b in zip(times[name], times[base], strict=True))
    return found


def learning_over_generations(pipe: Any, seed: int) -> dict[str, float]:
    """Time of `learn` over the bare generations that it makes, as many prompts in the same batches."""
    content, settings = read(ROOT / "prompts" / "banana-blur.yaml"), settings_of(pipe)
    began = time.process_time()
    concept = dsas.learn(pipe, content, seed=seed)
    learning = time.process_time() - began
    drawn = content.draw(COUNT, seed)
    used = concept.provenance["prompts_used"]
    batches = [texts[: used[side]] for side, texts in drawn.items()]
    batches += [texts[used[side] :] for side, texts in drawn.items()]
    trial = drawn["source"][used["source"] :] + drawn["control"][used["control"] :]
    batches += [trial] * len(concept.evidence["unit"]["trials"])
    began = time.process_time()
    for texts in batches:
        latents_of(pipe, texts, seeds_for(texts, seed), settings)
    bare = time.process_time() - began
    return {"learning": learning / bare, "generations": sum(map(len, batches))}


# ---- calls of the denoiser ------------------------------------------------------------------------------------------


def xl_shaped(width: int, side: int, device: str, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """A random pipeline with the blocks of SDXL (70 cross-attention layers), `width` channels instead of 320; its call.

    Text encoders and decoder are tiny: nobody asks for them here.
    """
    reading = 32 * round(2048 * width / 320 / 32)
    pipe = dsas.load_pipeline("builtin:emoji")
    pipe.unet = xl_unet(width, side, reading, channels=4).to(device, dtype)
    given = {
        "sample": torch.randn(2, 4, side, side, device=device, dtype=dtype),
        "timestep": torch.tensor(500, device=device),
        "encoder_hidden_states": torch.randn(2, 77, reading, device=device, dtype=dtype),
    }
    return pipe, given


def builtin(device: str, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """The built-in model, and a call of its denoiser."""
    pipe = dsas.load_pipeline("builtin:emoji").to(device, dtype)
    side = pipe.unet.config.sample_size
    texts = pipe.encode_prompt([PROMPT], device, 1, True)
    given = {
        "sample": torch.randn(2, pipe.unet.config.in_channels, side, side, device=device, dtype=dtype),
        "timestep": torch.tensor(500, device=device),
        "encoder_hidden_states": torch.cat(texts[::-1]),
    }
    return pipe, given


def random_concepts(pipe: Any, given: Mapping[str, Any], count: int) -> list[dsas.Concept]:
    """Concepts with a random direction and a random probe at every cross-attention layer."""
    sites = dsas.find_sites(pipe, "cross")
    widths = _Widths()
    with torch.no_grad(), visit(roots_of(pipe), sites, widths):
        pipe.unet(**given)
    random = torch.Generator().manual_seed(0)
    found = []
    for number in range(count):
        items = []
        for site in sites:
            width = widths.found[site]
            probe = LinearProbe(torch.randn(width, generator=random), torch.zeros(()))
            items.append(Intervention(site, (probe,), (AffineMap(torch.randn(width, generator=random)),), (1.0,)))
        found.append(dsas.Concept(name=f"random {number}", interventions=tuple(items)))
    return found


class _Widths:
    """A visitor that notes how wide activations are."""

    def __init__(self) -> None:
        self.found: dict[Site, int] = {}

    def begin(self, root: str, call: Call) -> None:
        """Nothing is announced."""

    def visit(self, site: Site, x: torch.Tensor) -> None:
        self.found[site] = x.shape[-1]


@contextmanager
def steered(pipe: Any, concepts: list[dsas.Concept], attach: str) -> Iterator[None]:
    """A pipeline that steers, its denoiser ready to be called."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random directions that oppose each other, text encoders of another width
        with dsas.steer(pipe, dict.fromkeys(concepts, 1.0), attach=attach):
            pipe.encode_prompt([PROMPT], pipe.text_encoder.device, 1, True)
            yield


@torch.no_grad()
def timed(call: Callable[[], Any], device: str) -> float:
    """Seconds of a call: of one processor thread, or on the GPU's stream."""
    if device == "cpu":
        began = time.process_time()
        call()
        return time.process_time() - began
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def eager_calls(pipe: Any, given: Mapping[str, Any], rounds: int, device: str) -> list[dict[str, Any]]:
    """Every number of concepts, by hooks and by processors, in turn within each round."""
    concepts = random_concepts(pipe, given, max(CONCEPTS))
    arms = [(attach, count) for attach in ("hooks", "processor") for count in CONCEPTS]
    times: dict[str, list[float]] = {"unsteered": [], "control": [], **{f"{how} {count}": [] for how, count in arms}}
    for round_ in range(rounds + 1):
        names = list(times) if round_ % 2 else list(times)[::-1]
        for name in names:
            how, _, count = name.partition(" ")
            if not count:
                spent = timed(lambda: pipe.unet(**given), device)
            else:
                with steered(pipe, concepts[: int(count)], how):
                    spent = timed(lambda: pipe.unet(**given), device)
            if round_:  # the first is to warm up
                times[name].append(spent)
    return rows_of(times, compiled=False)


def compiled_calls(make: Callable[[], tuple[Any, dict[str, Any]]], rounds: int, device: str) -> list[dict[str, Any]]:
    """As `eager_calls`, each arm a pipeline of its own that was compiled after attaching."""
    arms = [("unsteered", 0), ("control", 0), *((how, count) for how in ("hooks", "processor") for count in CONCEPTS)]
    kept, calls = [], {}
    for how, count in arms:
        pipe, given = make()
        if count:
            attached = steered(pipe, random_concepts(pipe, given, count), how)
            attached.__enter__()
            kept.append(attached)
        pipe.unet.compile(fullgraph=True)
        name = f"{how} {count}" if count else how
        calls[name] = lambda pipe=pipe, given=given: pipe.unet(**given)
        for _ in range(3):
            timed(calls[name], device)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(rounds):
        for name in list(calls) if round_ % 2 else list(calls)[::-1]:
            times[name].append(timed(calls[name], device))
    for attached in kept:
        attached.__exit__(None, None, None)
    return rows_of(times, compiled=True)


def rows_of(times: Mapping[str, list[float]], *, compiled: bool) -> list[dict[str, Any]]:
    """One row for each arm: its time over that of the unsteered call."""
    ratios = over(times, "unsteered")
    rows = []
    for name in times:
        if name != "unsteered":
            how, _, count = name.partition(" ")
            found = {pick: ratios[f"{name}_{pick}"] for pick in ("min", "median")}
            rows.append({"attach": how, "concepts": int(count or 0), "compiled": compiled, **found})
    return [{"milliseconds": 1000 * statistics.median(times["unsteered"]), "compiled": compiled}, *rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--parts", nargs="+", default=["learning", "pictures", "calls"])
    parser.add_argument("--compiled", action="store_true", help="calls of compiled denoisers too: minutes on a CPU")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "overhead.json")
    args = parser.parse_args()
    report: dict[str, Any] = json.loads(args.out.read_text()) if args.out.is_file() else {}
    about = {"rounds": args.rounds, "seed": args.seed, "versions": versions("diffusers", "transformers")}
    pipe = dsas.load_pipeline("builtin:emoji")
    if "learning" in args.parts:
        report["learning"] = {**learning_over_generations(pipe, args.seed), **about}
    if "pictures" in args.parts:
        for name, sites in (("default", None), ("denoiser", "denoiser")):
            concept = dsas.learn(
                pipe, ROOT / "prompts" / "banana-blur.yaml", sites=sites, seed=args.seed, count=16, steps=4
            )
            found = steered_over_unsteered(pipe, concept, args.rounds)
            report[name] = {"sites": len(concept.sites), **found, **about}
    if "calls" in args.parts:
        dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
        made = {
            "builtin": lambda: builtin(args.device, dtype),
            "SDXL-shaped": lambda: xl_shaped(64, 32, args.device, dtype),
        }
        calls = report.setdefault("calls", {})
        for name, make in made.items():
            rows = eager_calls(*make(), args.rounds, args.device)
            if args.compiled and name == "builtin":
                rows += compiled_calls(make, args.rounds, args.device)
            calls[f"{name}, {args.device}"] = {"rows": rows, **about}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
