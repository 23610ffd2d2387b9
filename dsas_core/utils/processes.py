"""Several processes that share work: those that `accelerate launch` or `torchrun` started."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta


@dataclass(frozen=True)
class Share:
    """This process's share of the work.

    Args:
        process: number of this process, from 0.
        processes: how many there are.
        wait: returns when every process has called it.

    Example:
        >>> share = Share(1, 2)
        >>> [0, 1, 2, 3, 4][share.process :: share.processes]
        [1, 3]
    """

    process: int = 0
    processes: int = 1
    wait: Callable[[], object] = field(default=lambda: None)


def process_share(*, on_cpu: bool = True) -> Share:
    """The share of this process among those that were started together; all of it where it is the only one.

    Args:
        on_cpu: whether the processes compute on the CPU.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Share()
    from accelerate import PartialState

    state = PartialState(cpu=on_cpu, timeout=timedelta(days=1))  # the others wait while one process learns
    return Share(state.process_index, state.num_processes, state.wait_for_everyone)
