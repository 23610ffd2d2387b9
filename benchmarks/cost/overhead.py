"""Cost of steering, as ratios within one run; steered and unsteered calls are interleaved.

    OMP_NUM_THREADS=1 python -m benchmarks.cost.overhead --rounds 15
    python -m benchmarks.cost.overhead --parts calls compiled --device cuda --full

Processor time is compared, in one thread, because waiting threads would count as work. On a GPU, time is measured
between events on its stream.

- pictures: a generation with a learned concept relative to one without.
- calls: one call of the denoiser with K random concepts at every cross-attention layer (of FLUX, at every attention's
  picture stream), by hooks and by processors: of the built-in model, and of random ones with the blocks of SDXL and
  FLUX.1; narrow ones, or those of 1024 pixels in bfloat16 (--full).
- generations: operators of whole generations of the built-in model, text encoder included, of two steps, with K random
  concepts at every default site.
- compiled: calls with compiled denoisers; on a CPU minutes each, and only for the built-in model.

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
from dataclasses import replace
from typing import Any

import torch

import dsas_diffusion as dsas
from benchmarks.common.records import PROMPTS, build_parser, provenance, record_path, write_record
from benchmarks.cost.model_shapes import FLUX_HEADS, PROMPT, XL_WIDTH, Model, build_builtin, build_flux, build_xl
from dsas_core.concept.intervention import Intervention
from dsas_core.maps import AffineMap
from dsas_core.model.hooks import Call, visit
from dsas_core.model.sites import Site
from dsas_core.probes import LinearProbe
from dsas_diffusion.generation.pictures import latents_of
from dsas_diffusion.generation.settings import settings_of
from dsas_diffusion.pipelines.adapter import adapt
from dsas_diffusion.pipelines.batch_layout import BatchLayout

#: numbers of concepts that steer at once
CONCEPTS = (1, 8, 64)
#: arm -> how concepts are attached, and how many
ARMS = {
    "unsteered": ("hooks", 0),
    "control": ("hooks", 0),
    **{f"{attach} {count}": (attach, count) for attach in ("hooks", "processor") for count in CONCEPTS},
}


def measure_pictures(pipe: Any, concept: dsas.Concept, rounds: int) -> dict[str, float]:
    """Time per generation with the concept relative to time without, minimum and median over interleaved rounds.

    `control` is the same ratio between two unsteered generations: the noise of this machine.
    """
    settings = settings_of(pipe)
    times: dict[str, list[float]] = {"unsteered": [], "steered": [], "control": []}
    latents_of(adapt(pipe), [PROMPT], [0], settings)
    for round_ in range(rounds):
        names = list(times) if round_ % 2 else list(times)[::-1]
        for name in names:
            steering = dsas.steer(pipe, {concept: 1.0}) if name == "steered" else None
            began = time.process_time()
            latents_of(adapt(pipe), [PROMPT], [round_], settings)
            times[name].append(time.process_time() - began)
            if steering is not None:
                steering.detach()
    return time_ratios(times, "unsteered")


def time_ratios(times: Mapping[str, list[float]], base: str) -> dict[str, float]:
    """For each arm but the base: the ratio of the minima, and the median of the ratios within each round.

    Ratios within a round cancel slow changes in the speed of the machine.
    """
    ratios = {}
    for name in times:
        if name != base:
            ratios[f"{name}_min"] = min(times[name]) / min(times[base])
            ratios[f"{name}_median"] = statistics.median(a / b for a, b in zip(times[name], times[base], strict=True))
    return ratios


# ---- calls of the denoiser ------------------------------------------------------------------------------------------


def build_random_concepts(model: Model, count: int, where: Any = "denoiser") -> list[dsas.Concept]:
    """Concepts with a random direction and a random probe at every default site of the denoiser, or at other sites."""
    sites = dsas.find_sites(model.pipe, where)
    recorder = _WidthRecorder()
    with (
        torch.no_grad(),
        BatchLayout(adapt(model.pipe)) as layout,
        visit(adapt(model.pipe).roots, sites, recorder, layout.describe()),
    ):
        model.begin()
        model.call()
    random = torch.Generator().manual_seed(0)
    concepts = []
    for number in range(count):
        items = []
        for site in sites:
            width = recorder.widths[site]
            probe = LinearProbe(torch.randn(width, generator=random), torch.zeros(()))
            items.append(Intervention(site, (probe,), (AffineMap(torch.randn(width, generator=random)),), (1.0,)))
        concepts.append(dsas.Concept(name=f"random {number}", interventions=tuple(items)))
    return concepts


class _WidthRecorder:
    """A visitor that records the width of activations by site."""

    def __init__(self) -> None:
        self.widths: dict[Site, int] = {}

    def begin(self, root: str, call: Call) -> None:
        """Nothing to prepare."""

    def visit(self, site: Site, x: torch.Tensor) -> None:
        self.widths[site] = x.shape[-1]


@contextmanager
def steering(model: Model, concepts: Sequence[dsas.Concept], attach: str) -> Iterator[None]:
    """Attach concepts to a pipeline and encode its prompt, so that the denoiser can be called."""
    with warnings.catch_warnings():
        # warnings of opposing random directions, text encoders of another width, and prompts given as tensors
        warnings.simplefilter("ignore")
        with dsas.steer(model.pipe, dict.fromkeys(concepts, 1.0), attach=attach) if concepts else nullcontext():
            model.begin()
            yield


@torch.no_grad()
def measure_time(call: Callable[[], Any], device: str) -> float:
    """Seconds of a call: processor time, or time on the stream of the GPU."""
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


def measure_eager_calls(model: Model, rounds: int, device: str) -> list[dict[str, Any]]:
    """Times of every arm, interleaved within each round, and what a call of each executes."""
    concepts = build_random_concepts(model, max(CONCEPTS))
    times: dict[str, list[float]] = {name: [] for name in ARMS}
    for round_ in range(rounds + 1):
        for name in list(times) if round_ % 2 else list(times)[::-1]:
            attach, count = ARMS[name]
            with steering(model, concepts[:count], attach):
                with torch.no_grad():
                    model.call()  # what is stacked is made in the first call
                seconds = measure_time(model.call, device)
            if round_:  # the first is to warm up
                times[name].append(seconds)
    work = {}
    for name, (attach, count) in ARMS.items():
        with steering(model, concepts[:count], attach):
            work[name] = count_operations(model.call, device)
    return build_rows(times, compiled=False, work=work)


def measure_compiled_calls(model: Model, rounds: int, device: str) -> list[dict[str, Any]]:
    """As `measure_eager_calls`, each arm with its own pipeline, compiled after attaching."""
    torch._dynamo.config.recompile_limit = 4 * len(ARMS)  # each arm is another model for the same code
    with ExitStack() as stack:
        models = {}
        for name, (attach, count) in ARMS.items():
            models[name] = arm_model = model.copy_modules()
            stack.enter_context(steering(arm_model, build_random_concepts(arm_model, count), attach))
            arm_model.denoiser.compile(fullgraph=True)
            began = time.perf_counter()
            for _ in range(3):
                measure_time(arm_model.call, device)
            print(f"{name}: compiled in {time.perf_counter() - began:.0f} s", file=sys.stderr)
        times: dict[str, list[float]] = {name: [] for name in ARMS}
        for round_ in range(rounds):
            for name in list(ARMS) if round_ % 2 else list(ARMS)[::-1]:
                times[name].append(measure_time(models[name].call, device))
    return build_rows(times, compiled=True)


@torch.no_grad()
def count_operations(call: Callable[[], Any], device: str) -> dict[str, float]:
    """Number of operators of a call; on a GPU, number and seconds of its kernels.

    If a call takes far longer than its kernels, launching them dominates; otherwise memory traffic and arithmetic do.
    """
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    gpu = device != "cpu"
    with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as profiler:
        call()
        if gpu:
            torch.cuda.synchronize()
    if not gpu:
        return {"operators": sum(event.name.startswith("aten::") for event in profiler.events())}
    kernels = [event for event in profiler.events() if event.device_type == DeviceType.CUDA]
    return {"kernels": len(kernels), "kernel_seconds": sum(event.self_device_time_total for event in kernels) / 1e6}


def count_generation_operators(model: Model) -> list[dict[str, Any]]:
    """Operators of a generation of two steps, by how many concepts steer text encoder and denoiser."""
    concepts = build_random_concepts(model, max(CONCEPTS), ["text", "denoiser"])
    adapter, settings = adapt(model.pipe), replace(settings_of(model.pipe), steps=2)
    rows: list[dict[str, Any]] = []
    for count in (0, *CONCEPTS):
        with steering(model, concepts[:count], "hooks"):
            for _ in range(2):  # the first makes the stacks
                found = count_operations(lambda: latents_of(adapter, [PROMPT], [0], settings), "cpu")["operators"]
        added = found / rows[0]["operators"] - 1 if rows else 0.0
        rows.append({"concepts": count, "operators": found, "added": added})
    return rows


def build_rows(
    times: Mapping[str, list[float]], *, compiled: bool, work: Mapping[str, Mapping[str, float]] | None = None
) -> list[dict[str, Any]]:
    """One row for each arm: its milliseconds and, but for the unsteered arm, its time relative to that."""
    ratios = time_ratios(times, "unsteered")
    rows: list[dict[str, Any]] = []
    for name, seconds in times.items():
        attach, count = ARMS[name]
        row: dict[str, Any] = {"attach": attach if count else name, "concepts": count, "compiled": compiled}
        row["milliseconds"] = 1000 * statistics.median(seconds)
        if name != "unsteered":
            row.update({statistic: ratios[f"{name}_{statistic}"] for statistic in ("min", "median")})
        rows.append({**row, **(work or {}).get(name, {})})
    return rows


def main() -> None:
    parser = build_parser(__doc__, record_path(__file__), seed=True)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--parts", nargs="+", default=["pictures", "calls", "generations"])
    parser.add_argument("--full", action="store_true", help="SDXL and FLUX.1 in their own size: for a GPU")
    args = parser.parse_args()
    report: dict[str, Any] = json.loads(args.out.read_text()) if args.out.is_file() else {}
    settings = {"rounds": args.rounds, "seed": args.seed, **provenance()}
    pipe = dsas.load_pipeline("builtin:emoji")
    if "pictures" in args.parts:
        for name, sites in (("default", None), ("denoiser", "denoiser")):
            concept = dsas.learn(pipe, PROMPTS / "banana-blur.yaml", sites=sites, seed=args.seed, count=16, steps=4)
            ratios = measure_pictures(pipe, concept, args.rounds)
            report[name] = {"sites": len(concept.sites), **ratios, **settings}
    if "generations" in args.parts:
        built_in = build_builtin("cpu", torch.float32)
        report["generations"] = {"rows": count_generation_operators(built_in), **settings}
    dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
    builders: dict[str, Callable[[], Model]] = {
        "builtin": lambda: build_builtin(args.device, dtype),
        "SDXL-shaped": lambda: build_xl(*((XL_WIDTH, 128) if args.full else (64, 32)), args.device, dtype),
        "FLUX-shaped": lambda: build_flux(*((FLUX_HEADS, 64) if args.full else (2, 16)), args.device, dtype),
    }
    for name, build in builders.items():
        label = f"{name}, {'full size, ' if args.full else ''}{args.device}"
        if "calls" in args.parts:
            rows = measure_eager_calls(build(), args.rounds, args.device)
            report.setdefault("calls", {})[label] = {"rows": rows, **settings}
        if "compiled" in args.parts and (name == "builtin" or args.device != "cpu"):
            rows = measure_compiled_calls(build(), args.rounds, args.device)
            report.setdefault("compiled calls", {})[label] = {"rows": rows, **settings}
    write_record(args.out, report)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
