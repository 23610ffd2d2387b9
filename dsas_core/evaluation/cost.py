"""What steering costs: time and peak memory beside the unsteered model, in one run, by turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

#: where Linux tells what this process occupies, and where the highest so far is made to begin again (proc(5))
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def compare_cost(
    work: Callable[[], object],
    attached: Callable[[], AbstractContextManager[Any]],
    device: torch.device,
    rounds: int = 5,
) -> dict[str, Any]:
    """Steered over unsteered work, by turns, attaching included; a first round only warms up.

    Args:
        work: runs the model once. attached: steers it, as a context.
        device: of the model.

    Returns:
        {"time_ratio": median of the paired ratios, "peak_memory", "peak_memory_steered": medians in MiB (see
        `peak_memory`; None where nothing tells), "rounds", "device"}.
    """
    seconds: dict[bool, list[float]] = {False: [], True: []}
    peaks: dict[bool, list[float]] = {False: [], True: []}
    for number in range(rounds + 1):
        for steered in (False, True):
            highest = peak_memory(device)
            began = time.perf_counter()
            with attached() if steered else nullcontext():
                work()
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            took, peak = time.perf_counter() - began, highest()
            if number:
                seconds[steered].append(took)
                peaks[steered] += [] if peak is None else [peak]
    return {
        "time_ratio": float(np.median(np.array(seconds[True]) / np.array(seconds[False]))),
        "peak_memory": float(np.median(peaks[False])) if peaks[False] else None,
        "peak_memory_steered": float(np.median(peaks[True])) if peaks[True] else None,
        "rounds": rounds,
        "device": device_name(device),
    }


def device_name(device: torch.device) -> str:
    """What a device is, whichever of several: "cpu", or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def precision(module: Any) -> str:
    """What a model computes in, which decides about its last digits: dtype, and the device unless it is the CPU."""
    dtype, device = str(module.dtype), torch.device(module.device)
    return dtype if device.type == "cpu" else f"{dtype} on {device_name(device)}"


def peak_memory(device: torch.device) -> Callable[[], float | None]:
    """Begin to watch: what comes back tells the most memory that was held at once since, in MiB.

    Of a GPU that is what torch allocated there; of the CPU it is what the whole process occupied, as Linux tells it.
    None elsewhere.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return lambda: torch.cuda.max_memory_allocated(device) / 2**20
    if device.type == "cpu":
        try:
            RESET.write_text("5")
            _occupied()
            return _occupied
        except (OSError, StopIteration):
            pass  # another system, or one that does not let itself be asked
    return lambda: None


def _occupied() -> float:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
