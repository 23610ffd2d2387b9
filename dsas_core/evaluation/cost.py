"""The cost of steering: time and peak memory of the steered and the unsteered model, measured alternately."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

#: files in which Linux reports the memory of this process, and resets its peak (proc(5))
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def compare_cost(
    work: Callable[[], object],
    attach: Callable[[], AbstractContextManager[Any]],
    device: torch.device,
    rounds: int = 5,
) -> dict[str, Any]:
    """Compare steered and unsteered work, run alternately, the time to attach included; a first round only warms up.

    Args:
        work: runs the model once.
        attach: steers it, as a context.
        device: of the model.
        rounds: measured pairs.

    Returns:
        {"time_ratio": median of the paired ratios, "peak_memory", "peak_memory_steered": medians in MiB (see
        `peak_memory`; None if unknown), "rounds", "device"}.
    """
    seconds: dict[bool, list[float]] = {False: [], True: []}
    peaks: dict[bool, list[float]] = {False: [], True: []}
    for number in range(rounds + 1):
        for steered in (False, True):
            read_peak = peak_memory(device)
            began = time.perf_counter()
            with attach() if steered else nullcontext():
                work()
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            took, peak = time.perf_counter() - began, read_peak()
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
    """The kind of a device, without its number: "cpu", or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def precision(module: Any) -> str:
    """A model's dtype, and its device unless that is the CPU: what the last digits of its results depend on."""
    dtype, device = str(module.dtype), torch.device(module.device)
    return dtype if device.type == "cpu" else f"{dtype} on {device_name(device)}"


def peak_memory(device: torch.device) -> Callable[[], float | None]:
    """Start to record the peak of memory.

    Returns:
        A function that returns the peak since, in MiB: of what torch allocated on a GPU, or of what the whole process
        occupied on a CPU under Linux; None elsewhere.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return lambda: torch.cuda.max_memory_allocated(device) / 2**20
    if device.type == "cpu":
        try:
            RESET.write_text("5")
            _peak_of_process()
            return _peak_of_process
        except (OSError, StopIteration):
            pass  # another system, or one without these files
    return lambda: None


def _peak_of_process() -> float:
    """Peak resident memory in MiB."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
