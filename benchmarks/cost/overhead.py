"""What steering and learning cost, as ratios within one run: steered and unsteered calls are interleaved.

    OMP_NUM_THREADS=1 python -m benchmarks.cost.overhead --rounds 15
    python -m benchmarks.cost.overhead --parts calls compiled --device cuda --full

Processor time is compared, in one thread: with more, threads that wait for one another would be counted as work. On a
GPU it is the time between events on its stream.

- learning: `learn` over the bare generations that it makes.
- pictures: a whole generation with a learned concept over one without.
- calls: one call of the denoiser with K random concepts at every cross-attention layer (of FLUX, at every attention's
  picture stream), by hooks and by processors: of the built-in model, and of random ones with the blocks of SDXL and
  FLUX.1; narrow ones, or those of 1024 pixels in bfloat16 (--full).
- compiled: the same with compiled denoisers; minutes for each on a CPU, and there of the built-in model alone.

Writes benchmarks/results/overhead.json.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch

import dsas_diffusion as dsas
from benchmarks.common.records import PROMPTS, made_with, parser_of, results_of, write
from benchmarks.cost.model_shapes import FLUX_HEADS, PROMPT, XL_WIDTH, Model, builtin, flux, xl
from dsas_core.concept.intervention import Intervention
from dsas_core.learning.prompts.prompt_set import COUNT, load_prompts
from dsas_core.maps import AffineMap
from dsas_core.model.hooks import Call, visit
from dsas_core.model.sites import Site
from dsas_core.probes import LinearProbe
from dsas_diffusion.generation.pictures import latents_of, seeds_for
from dsas_diffusion.generation.settings import settings_of
from dsas_diffusion.pipelines.adapter import adapt
from dsas_diffusion.pipelines.batch_layout import BatchLayout

#: how many concepts are steered at once
CONCEPTS = (1, 4, 8)
#: what is timed -> how it is attached, how many concepts
ARMS = {
    "unsteered": ("hooks", 0),
    "control": ("hooks", 0),
    **{f"{how} {count}": (how, count) for how in ("hooks", "processor") for count in CONCEPTS},
}


def steered_over_unsteered(pipe: Any, concept: dsas.Concept, rounds: int) -> dict[str, float]:
    """Time per generation with the concept attached over time without, minimum and median over interleaved rounds.

    `control` is the same ratio between two unsteered generations: what this machine's noise makes of nothing.
    """
    settings = settings_of(pipe)
    times: dict[str, list[float]] = {"unsteered": [], "steered": [], "control": []}
    latents_of(adapt(pipe), [PROMPT], [0], settings)
    for round_ in range(rounds):
        names = list(times) if round_ % 2 else list(times)[::-1]
        for name in names:
            attached = dsas.steer(pipe, {concept: 1.0}) if name == "steered" else None
            began = time.process_time()
            latents_of(adapt(pipe), [PROMPT], [round_], settings)
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
    content, settings = load_prompts(PROMPTS / "banana-blur.yaml"), settings_of(pipe)
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
        latents_of(adapt(pipe), texts, seeds_for(texts, seed), settings)
    bare = time.process_time() - began
    return {"learning": learning / bare, "generations": sum(map(len, batches))}


# ---- calls of the denoiser ------------------------------------------------------------------------------------------


def random_concepts(model: Model, count: int) -> list[dsas.Concept]:
    """Concepts with a random direction and a random probe at every default site of the denoiser."""
    sites = dsas.find_sites(model.pipe, "denoiser")
    widths = _Widths()
    with (
        torch.no_grad(),
        BatchLayout(adapt(model.pipe)) as told,
        visit(adapt(model.pipe).roots, sites, widths, told.describe()),
    ):
        model.begin()
        model.call()
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
def steered(model: Model, concepts: Sequence[dsas.Concept], attach: str) -> Iterator[None]:
    """A pipeline that steers, its denoiser ready to be called."""
    with warnings.catch_warnings():
        # random directions that oppose each other, text encoders of another width, prompts that are given as tensors
        warnings.simplefilter("ignore")
        with dsas.steer(model.pipe, dict.fromkeys(concepts, 1.0), attach=attach) if concepts else nullcontext():
            model.begin()
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


def eager_calls(model: Model, rounds: int, device: str) -> list[dict[str, Any]]:
    """Every number of concepts, by hooks and by processors, in turn within each round."""
    concepts = random_concepts(model, max(CONCEPTS))
    times: dict[str, list[float]] = {name: [] for name in ARMS}
    for round_ in range(rounds + 1):
        for name in list(times) if round_ % 2 else list(times)[::-1]:
            how, count = ARMS[name]
            with steered(model, concepts[:count], how):
                spent = timed(model.call, device)
            if round_:  # the first is to warm up
                times[name].append(spent)
    work = {}
    for name, (how, count) in ARMS.items():
        with steered(model, concepts[:count], how):
            work[name] = work_of(model.call, device)
    return rows_of(times, compiled=False, work=work)


def compiled_calls(model: Model, rounds: int, device: str) -> list[dict[str, Any]]:
    """As `eager_calls`, each arm a pipeline of its own that was compiled after attaching."""
    torch._dynamo.config.recompile_limit = 4 * len(ARMS)  # each arm is another model for the same code
    with ExitStack() as kept:
        models = {}
        for name, (how, count) in ARMS.items():
            models[name] = own = model.twin()
            kept.enter_context(steered(own, random_concepts(own, count), how))
            own.denoiser.compile(fullgraph=True)
            began = time.perf_counter()
            for _ in range(3):
                timed(own.call, device)
            print(f"{name}: compiled in {time.perf_counter() - began:.0f} s", file=sys.stderr)
        times: dict[str, list[float]] = {name: [] for name in ARMS}
        for round_ in range(rounds):
            for name in list(ARMS) if round_ % 2 else list(ARMS)[::-1]:
                times[name].append(timed(models[name].call, device))
    return rows_of(times, compiled=True)


@torch.no_grad()
def work_of(call: Callable[[], Any], device: str) -> dict[str, float]:
    """What a call consists of: on a GPU its kernels and the seconds that they take, elsewhere its operators.

    Where the seconds of a call are far more than those of its kernels, launching them is what takes time; else it is
    the bytes that they move, and what they compute.
    """
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    gpu = device != "cpu"
    with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as seen:
        call()
        if gpu:
            torch.cuda.synchronize()
    if not gpu:
        return {"operators": sum(event.name.startswith("aten::") for event in seen.events())}
    kernels = [event for event in seen.events() if event.device_type == DeviceType.CUDA]
    return {"kernels": len(kernels), "kernel_seconds": sum(event.self_device_time_total for event in kernels) / 1e6}


def rows_of(
    times: Mapping[str, list[float]], *, compiled: bool, work: Mapping[str, Mapping[str, float]] | None = None
) -> list[dict[str, Any]]:
    """The unsteered call, and one row for each arm: its time over that."""
    ratios = over(times, "unsteered")
    rows: list[dict[str, Any]] = []
    for name, spent in times.items():
        how, count = ARMS[name]
        row: dict[str, Any] = {"attach": how if count else name, "concepts": count, "compiled": compiled}
        row["milliseconds"] = 1000 * statistics.median(spent)
        if name != "unsteered":
            row.update({pick: ratios[f"{name}_{pick}"] for pick in ("min", "median")})
        rows.append({**row, **(work or {}).get(name, {})})
    return rows


def main() -> None:
    parser = parser_of(__doc__, results_of(__file__), seed=True)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--parts", nargs="+", default=["learning", "pictures", "calls"])
    parser.add_argument("--full", action="store_true", help="SDXL and FLUX.1 in their own size: for a GPU")
    args = parser.parse_args()
    report: dict[str, Any] = json.loads(args.out.read_text()) if args.out.is_file() else {}
    about = {"rounds": args.rounds, "seed": args.seed, **made_with()}
    pipe = dsas.load_pipeline("builtin:emoji")
    if "learning" in args.parts:
        report["learning"] = {**learning_over_generations(pipe, args.seed), **about}
    if "pictures" in args.parts:
        for name, sites in (("default", None), ("denoiser", "denoiser")):
            concept = dsas.learn(pipe, PROMPTS / "banana-blur.yaml", sites=sites, seed=args.seed, count=16, steps=4)
            found = steered_over_unsteered(pipe, concept, args.rounds)
            report[name] = {"sites": len(concept.sites), **found, **about}
    dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
    made: dict[str, Callable[[], Model]] = {
        "builtin": lambda: builtin(args.device, dtype),
        "SDXL-shaped": lambda: xl(*((XL_WIDTH, 128) if args.full else (64, 32)), args.device, dtype),
        "FLUX-shaped": lambda: flux(*((FLUX_HEADS, 64) if args.full else (2, 16)), args.device, dtype),
    }
    for name, make in made.items():
        where = f"{name}, {'full size, ' if args.full else ''}{args.device}"
        if "calls" in args.parts:
            rows = eager_calls(make(), args.rounds, args.device)
            report.setdefault("calls", {})[where] = {"rows": rows, **about}
        if "compiled" in args.parts and (name == "builtin" or args.device != "cpu"):
            rows = compiled_calls(make(), args.rounds, args.device)
            report.setdefault("compiled calls", {})[where] = {"rows": rows, **about}
    write(args.out, report)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
