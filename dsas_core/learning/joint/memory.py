"""How much memory a backward pass needs, and how much there is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Self

import torch


class SavedTensors:
    """Counts what autograd keeps for the backward pass of the block, but for parameters.

    Args:
        parameters: what is there anyway.

    Attributes:
        bytes: what was kept, each storage once.

    Example:
        >>> x = torch.ones(1000, requires_grad=True)
        >>> with SavedTensors([]) as saved:
        ...     y = x.exp()
        >>> saved.bytes
        4000
    """

    def __init__(self, parameters: Iterable[torch.Tensor]) -> None:
        self.bytes = 0
        self._seen = {part.untyped_storage().data_ptr() for part in parameters}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._count, lambda tensor: tensor)

    def _count(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, torch.nn.Parameter) and storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.__exit__()


def free_memory(device: torch.device | None) -> float:
    """Bytes that are free on a device; infinity where the system does not tell.

    Example:
        >>> free_memory(None) > 0
        True
    """
    if device is not None and device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        from psutil import virtual_memory
    except ImportError:
        return math.inf
    return float(virtual_memory().available)
