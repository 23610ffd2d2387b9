"""Time per position of each probe with each map, relative to a copy of the activation; interleaved in one run.

    python -m benchmarks.cost.kernels                  # GPU if there is one, else one thread of the CPU
    python -m benchmarks.cost.kernels --compile        # each pair as one compiled graph

Writes benchmarks/results/kernels.json.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import time
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np
import torch

from benchmarks.common.records import build_parser, provenance, record_path, write_record
from dsas_core import methods
from dsas_core.errors import DSASError
from dsas_core.evaluation.cost import device_name
from dsas_core.maps import Map
from dsas_core.model.loading import device_of
from dsas_core.probes import Probe
from dsas_core.steering.interpolation import interpolate

ROWS = 64
GATES = ("on", "dsas", "gaps", "product(dsas, gaps)", "cosine", "mlp(accept=true)", "quantile", "cast", "fairsteer")


def fit_all(width: int) -> tuple[dict[str, Probe], dict[str, Map]]:
    """Every gate and every map, fitted on random activations."""
    torch.manual_seed(0)
    source, target, control = (torch.randn(ROWS, width) + offset for offset in (0.5, 1.0, 0.0))
    probes = {name: methods.get(name, "gate").fit(source, control) for name in GATES if name != "dsas"}
    # what steering has of it; "cast" itself reads each position, which it does in no form
    probes["cast, of means"] = methods.get("cast", "gate").in_form(probes["cast"], "pooled")
    probes["dsas"] = methods.get("dsas", "gate").fit(source, control, rank=5, scaler="none")
    maps: dict[str, Map] = {}
    for method in methods.available():
        if method.kind != "gate" and method.learned:
            maps[method.name] = methods.get(method.name, "map").fit(source, target)
    return {name: probes[name] for name in (*GATES, "cast, of means")}, maps


def keep_memory() -> None:
    """Have glibc keep memory that is freed: pages that the kernel clears anew cost more than a case, or than none."""
    with contextlib.suppress(OSError, AttributeError):
        malloc = ctypes.CDLL("libc.so.6").mallopt
        malloc(-4, 0)  # M_MMAP_MAX
        malloc(-1, -1)  # M_TRIM_THRESHOLD


def measure_times(cases: dict[str, Callable[[], object]], device: torch.device, rounds: int) -> dict[str, float]:
    """Median seconds of each case, interleaved; the first round is for warming up.

    Each case runs once untimed before it is timed, so that the caches hold its own memory, not that of the case before.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds + 1):
        for name, run in cases.items():
            run()
            began = time.perf_counter()
            run()
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            seconds[name].append(time.perf_counter() - began)
    return {name: float(np.median(values[1:])) for name, values in seconds.items()}


def main() -> None:
    parser = build_parser(__doc__, record_path(__file__))
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--positions", type=int, default=4096)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true", help="each pair as one compiled graph")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    device = torch.device(device_of(args.device))
    probes, maps = fit_all(args.width)
    x = torch.randn(1, args.positions, args.width, dtype=getattr(torch, args.dtype), device=device)
    pairs = {(name, "caa"): (probe, maps["caa"]) for name, probe in probes.items()}
    pairs |= {("dsas", name): (probes["dsas"], transform) for name, transform in maps.items()}
    strength = torch.full((1, 1, 1), 0.7, device=device)

    def step(probe: Probe, transform: Map) -> Callable[[], object]:
        probe, transform = (part.map_tensors(lambda tensor: tensor.to(device)) for part in (probe, transform))

        def run(x: torch.Tensor) -> torch.Tensor:
            return interpolate(x, [(transform, strength, probe.score(x))])

        if args.compile:  # code of its own, as graphs of one code are few, and are searched in each call
            run = FunctionType(run.__code__.replace(), globals(), closure=run.__closure__)
        compiled = torch.compile(run, fullgraph=True) if args.compile else run
        return lambda: compiled(x)

    cases: dict[str, Callable[[], object]] = {"copy": x.clone}
    for (gate, method), (probe, transform) in pairs.items():
        cases[f"{gate} × {method}"] = step(probe, transform)
    with torch.inference_mode():
        seconds = measure_times(cases, device, args.rounds)
    rows: dict[str, Any] = {
        name: {"nanoseconds_per_position": 1e9 * spent / args.positions, "over_a_copy": spent / seconds["copy"]}
        for name, spent in seconds.items()
    }
    for name, row in rows.items():
        print(f"{name:32} {row['nanoseconds_per_position']:9.1f} ns  {row['over_a_copy']:6.2f}")
    entry = {
        "settings": {key: getattr(args, key) for key in ("width", "positions", "dtype", "rounds")},
        "device": device_name(device),
        "pairs": rows,
        **provenance(),
    }
    try:
        record = json.loads(args.out.read_text()) if args.out.is_file() else {}
    except ValueError:
        raise DSASError(f"{args.out} is damaged: remove it") from None
    record[f"{device.type}{', compiled' if args.compile else ''}"] = entry
    write_record(args.out, record)


if __name__ == "__main__":
    main()
