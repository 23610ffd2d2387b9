"""Attention of one activation to others, as the blocks of flow maps have it: norms, rotary embedding, heads."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional

from ..utils.tensorclass import cast


class Positions(NamedTuple):
    """The positions of a call.

    Args:
        numbers: int64 [batch, positions], counted from 0 at the first token of each row.
        seen: bool [batch, positions, positions so far], which ones each may attend to.
    """

    numbers: torch.Tensor
    seen: torch.Tensor


def normalise(x: torch.Tensor, scale: torch.Tensor | None, epsilon: float) -> torch.Tensor:
    """Root mean square norm over the last dimension; without a scale, x itself.

    Example:
        >>> normalise(torch.tensor([3.0, 4.0]), scale=torch.ones(2), epsilon=0.0)
        tensor([0.8485, 1.1314])
    """
    if scale is None:
        return x
    return x * (x.square().mean(-1, keepdim=True) + epsilon).rsqrt() * cast(scale, x.dtype)


def rotate(x: torch.Tensor, numbers: torch.Tensor, frequencies: torch.Tensor, length: float) -> torch.Tensor:
    """Rotary embedding: turn pairs of channels, half a head apart, by the number of their position.

    Args:
        x: [..., positions, head].
        numbers: of the positions, broadcastable to [..., positions].
        frequencies: [head], those of both channels of a pair.
        length: factor on the result, which some ways of stretching contexts have.

    Example:
        >>> rotate(torch.tensor([[1.0, 0.0]]), torch.tensor([1]), torch.tensor([torch.pi / 2] * 2), length=1.0)
        tensor([[-4.3711e-08,  1.0000e+00]])
    """
    angles = numbers[..., None].to(frequencies.dtype) * frequencies
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * cast(length * angles.cos(), x.dtype) + turned * cast(length * angles.sin(), x.dtype)


def attend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    cap: float | None,
    hidden: torch.Tensor | None,
) -> torch.Tensor:
    """Softmax attention of several queries to each key.

    Args:
        queries: [batch, heads, groups, positions, head].
        keys: [..., heads, others, head], broadcastable.
        values: [..., heads, others, head].
        scale: factor on the products.
        cap: bound on the products, which tanh brings them under; None for no bound.
        hidden: bool, broadcastable to [batch, heads, groups, positions, others], True where nothing is read; or None.

    Returns:
        [batch, positions, heads, groups, head].

    Example:
        >>> queries, others = torch.zeros(1, 1, 1, 1, 2), torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        >>> attend(queries, others, others, scale=1.0, cap=None, hidden=None).flatten()
        tensor([0.5000, 0.5000])
    """
    products = scale * (queries @ keys.unsqueeze(-3).transpose(-1, -2))
    if cap is not None:
        products = cap * (products / cap).tanh()
    if hidden is not None:
        products = products.masked_fill(hidden, torch.finfo(products.dtype).min)
    return (products.softmax(-1) @ values.unsqueeze(-3)).permute(0, 3, 1, 2, 4)


def project(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x [batch, positions, width] in heads, [batch, *heads, positions, head].

    Args:
        x: what is projected.
        weight: [*heads, head, width].
        bias: [*heads, head], or None.

    Example:
        >>> project(torch.ones(1, 3, 2), torch.ones(4, 5, 2), None).shape
        torch.Size([1, 4, 3, 5])
    """
    flat = None if bias is None else cast(bias, x.dtype).flatten()
    out = functional.linear(x, cast(weight, x.dtype).flatten(0, -2), flat).unflatten(-1, weight.shape[:-1])
    return out.movedim(1, -2)


def collect(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The inverse of `project`, of what `attend` returns."""
    return functional.linear(
        x.flatten(2), cast(weight, x.dtype).flatten(1), None if bias is None else cast(bias, x.dtype)
    )
