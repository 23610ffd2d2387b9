"""What eager mode on a CPU allows, and graphs and GPUs do not: to look at numbers, and to work in chunks."""

from __future__ import annotations

from collections.abc import Callable

import torch

#: numbers of a chunk for each thread: few enough for the cache, and enough that the calls of operators hardly count
CHUNK = 2**18


def at_hand(*tensors: torch.Tensor) -> bool:
    """Whether a program may go by the numbers in tensors at no cost: no graph, gradient or transform is made of them.

    Example:
        >>> x = torch.ones(1)
        >>> at_hand(x), at_hand(x.requires_grad_())
        (True, False)
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return all(
        type(tensor) is torch.Tensor  # no fake one
        and tensor.device.type == "cpu"
        and not (tensor.requires_grad and torch.is_grad_enabled())
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        for tensor in tensors
    )


def in_chunks(compute: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """compute(x) of a function that computes each position by itself; of large activations some positions at a time.

    What is computed on the way then stays in the cache, where tensors as large as x would go to memory and back.

    Args:
        compute: of activations [..., positions, width] a tensor [..., positions, any].
        x: [..., positions, width].

    Example:
        >>> in_chunks(lambda x: x.sum(-1, keepdim=True), torch.ones(2, 3))
        tensor([[3.],
                [3.]])
    """
    step = max(1, CHUNK * torch.get_num_threads() // x.shape[-1]) if at_hand(x) else 0
    if not step or x.numel() <= 2 * step * x.shape[-1] or not x.is_contiguous():
        return compute(x)
    chunks = x.flatten(0, -2).split(step)
    first = compute(chunks[0])
    out = first.new_empty(*x.shape[:-1], first.shape[-1])
    places = out.flatten(0, -2).split(step)
    places[0].copy_(first)
    for place, chunk in zip(places[1:], chunks[1:], strict=True):
        place.copy_(compute(chunk))
    return out
