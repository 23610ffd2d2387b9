"""What eager mode on a CPU allows, and graphs and GPUs do not: to look at numbers, and to work in chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.autograd.forward_ad import unpack_dual

from ..utils.tensorclass import compute_dtype

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
        and unpack_dual(tensor).tangent is None
        for tensor in tensors
    )


def in_chunks(
    compute: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor],
    x: torch.Tensor,
    width: int,
    parameters: Sequence[torch.Tensor] = (),
) -> torch.Tensor:
    """compute(x) of a function that computes each position by itself; of large activations some positions at a time.

    What is computed on the way then stays in the cache, where tensors as large as x would go to memory and back.

    Args:
        compute: of activations [..., positions, any] a tensor [..., positions, width] of their compute dtype, written
            into its second argument unless that is None.
        x: [..., positions, any].
        width: of the result.
        parameters: tensors that it goes by.

    Example:
        >>> in_chunks(lambda x, out: torch.sum(x, -1, keepdim=True, out=out), torch.ones(2, 3), width=1)
        tensor([[3.],
                [3.]])
    """
    step = max(1, CHUNK * torch.get_num_threads() // x.shape[-1]) if at_hand(x, *parameters) else 0
    if not step or x.numel() <= 2 * step * x.shape[-1] or not x.is_contiguous():
        return compute(x, None)
    out = x.new_empty((*x.shape[:-1], width), dtype=compute_dtype(x))
    for chunk, place in zip(x.flatten(0, -2).split(step), out.flatten(0, -2).split(step), strict=True):
        compute(chunk, place)
    return out
