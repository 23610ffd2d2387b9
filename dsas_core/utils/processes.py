"""Several processes that share work: those that `accelerate launch` or `torchrun` started."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch

from ..errors import DSASError

Made = TypeVar("Made")


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

    def from_first(self, make: Callable[[], Made]) -> Made:
        """What the first process makes, for all of them: plain data and tensors; what it raises is raised by all.

        Example:
            >>> Share().from_first(lambda: 3)
            3
        """
        if self.processes == 1:
            return make()
        found: list[Any] = [None, None]
        if self.process == 0:
            try:
                found[0] = make()
            except DSASError as error:
                found[1] = error
        torch.distributed.broadcast_object_list(found)
        if found[1] is not None:
            raise found[1]
        return found[0]  # type: ignore[no-any-return]

    def gather(self, rows: torch.Tensor, own: Sequence[int], count: int) -> torch.Tensor:
        """The rows of all processes, [count, ...]; those of this one with their gradient.

        Args:
            rows: of this process.
            own: the places of these rows among all.
            count: how many rows there are in all processes together.

        Example:
            >>> Share().gather(torch.tensor([[1.0], [2.0]]), [0, 1], 2).tolist()
            [[1.0], [2.0]]
        """
        if self.processes == 1:
            return rows
        places = torch.tensor([*own], device=rows.device)
        all_rows = rows.new_zeros((count, *rows.shape[1:])).index_copy(0, places, rows.detach())
        torch.distributed.all_reduce(all_rows)
        return all_rows.index_copy(0, places, rows)

    def add(self, number: torch.Tensor) -> torch.Tensor:
        """The sums of numbers over all processes, with the gradient of this one's."""
        if self.processes == 1:
            return number
        total = number.detach().clone()
        torch.distributed.all_reduce(total)
        return number + (total - number.detach())

    def add_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Give every process the sum of all gradients."""
        if self.processes > 1:
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                torch.distributed.all_reduce(parameter.grad)


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
