"""What a piece of work costs: seconds by phase, tokens that a model read, and memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass
class TokenCount:
    """Tokens that a model has read.

    Args:
        passes: number of forward passes.
        run: positions that went through the model, padding included.
        needed: those of them that are no padding.

    Example:
        >>> count = TokenCount()
        >>> count.add(run=8, needed=6)
        >>> count
        TokenCount(passes=1, run=8, needed=6)
    """

    passes: int = 0
    run: int = 0
    needed: int = 0

    def add(self, run: int, needed: int, passes: int = 1) -> None:
        """Count what went through the model."""
        self.passes, self.run, self.needed = self.passes + passes, self.run + run, self.needed + needed


class Meter:
    """Measures work from its creation on.

    Args:
        device: of the model, whose peak of memory is told; None for no model.
        tokens: where the model's tokens are counted, if they are.

    Example:
        >>> meter = Meter()
        >>> with meter.phase("reading"):
        ...     pass
        >>> list(meter.summary()["seconds"])
        ['reading']
    """

    def __init__(self, device: torch.device | None = None, tokens: TokenCount | None = None) -> None:
        self.device, self.tokens = device, tokens
        self._before = TokenCount() if tokens is None else TokenCount(**asdict(tokens))
        self._seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block's time for a phase; that of a block inside counts for its own phase alone."""
        self._seconds.setdefault(name, 0.0)
        self._settle()
        self._open.append(name)
        try:
            yield
        finally:
            self._settle()
            self._open.pop()

    def _settle(self) -> None:
        """Give the time since the last change of phase to the phase that is open."""
        now = time.perf_counter()
        if self._open:
            self._seconds[self._open[-1]] += now - self._since
        self._since = now

    def summary(self) -> dict[str, Any]:
        """What it has cost so far, as plain data.

        Returns:
            "seconds" by phase; "passes", "tokens_run" and "tokens_needed", where tokens are counted; "peak_memory", see
            `peak_memory`, and the kind of "device" that it is of, where that is known.
        """
        cost: dict[str, Any] = {"seconds": {name: round(seconds, 2) for name, seconds in self._seconds.items()}}
        if self.tokens is not None:
            now, before = self.tokens, self._before
            cost |= {"passes": now.passes - before.passes}
            cost |= {"tokens_run": now.run - before.run, "tokens_needed": now.needed - before.needed}
        peak = peak_memory(self.device)
        if peak is not None:
            on_gpu = self.device is not None and self.device.type == "cuda"
            cost |= {"peak_memory": peak, "device": "cuda" if on_gpu else "cpu"}
        return cost


def peak_memory(device: torch.device | None = None) -> int | None:
    """The most memory that this process has held so far, in bytes; None where the system does not tell.

    Args:
        device: a GPU, for what torch has allocated there; else main memory.

    Example:
        >>> (peak_memory() or 2**20) >= 2**20
        True
    """
    if device is not None and device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) * (1 if sys.platform == "darwin" else 1024)
