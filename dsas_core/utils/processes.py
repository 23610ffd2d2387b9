"""Several processes that share work: those that `accelerate launch` or `torchrun` started."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Share:
    """Which of how many processes this is, and what waits until all have come so far."""

    process: int = 0
    processes: int = 1
    wait: Callable[[], object] = _nothing


def process_share(*, on_cpu: bool = True) -> Share:
    """What this process is among those that were started together; the only one, if nobody started more.

    Args:
        on_cpu: whether they compute there.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Share()
    from accelerate import PartialState

    state = PartialState(cpu=on_cpu, timeout=timedelta(days=1))  # others wait while one learns
    return Share(state.process_index, state.num_processes, state.wait_for_everyone)
