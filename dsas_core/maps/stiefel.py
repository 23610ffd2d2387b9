"""The map of STARS: runs of one prompt are pushed apart by offsets of one length that are orthogonal to one another.

    T(x; s) = x + s * V,    α = c * σ_max²,    V = sqrt(α) * M (MᵀM)^(-1/2),    M = V0 + η H

"Exploring Diverse Generation Paths via Inference-time Stiefel Activation Steering", arXiv 2601.22010. H [width, runs]
has the activations of the runs at one position, σ are its singular values; V0 is sqrt(α) times random orthonormal
columns of its left null space, and η = D1 / D2 the first step of a line search on log det (H + V)ᵀ(H + V) along H, with
D1 = 2 Σ σ²/(σ² + α) and D2 = 4 Σ σ⁴/(σ² + α)². As V0 is orthogonal to H, MᵀM = αI + η² HᵀH: the formula of the paper,
(V0 + ηH) W (αI + η²Σ²)^(-1/2) Wᵀ. Its released code has Σ in the place of Σ², and then VᵀV is not αI.

All of it goes through matrices of runs x runs. MᵀM is computed and not taken from σ, so that VᵀV = αI to rounding also
where H lacks rank: at the first token, which all runs write from one state, they are identical.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from ..errors import DSASError, UnsupportedError
from ..model.row_groups import RowGroups
from ..utils.tensorclass import Holds
from .base import Map

#: largest seed of the random columns
MAX_SEED = 2**31 - 1


@dataclass(frozen=True, eq=False)
class StiefelMap(Map, kind="stiefel"):
    """T(x; s) = x + s * V, with V of all runs of a group: VᵀV = c * σ_max² * I.

    The random columns are the same at all positions, steps and calls: a run is pushed one way throughout, and cached
    decoding equals a full forward pass. No gradient passes through V. A run that is alone at a position, because the
    others have ended, stays as it is there.

    Args:
        scale: c, the squared length of each offset as a share of the largest squared singular value.
        seed: of the random columns.

    Raises:
        DSASError: one run that is given by itself, and not among groups.
        UnsupportedError: an activation that is less than twice as wide as there are runs.

    Example:
        >>> x = torch.ones(2, 1, 6, dtype=torch.float64)  # two runs at one position, both in one state
        >>> V = (StiefelMap(scale=0.5).apply(x, 1.0) - x)[:, 0]
        >>> (V @ V.T).round(decimals=9).abs()  # σ_max² is 12
        tensor([[6., 0.],
                [0., 6.]], dtype=torch.float64)
    """

    linear_in_strength = True
    couples_rows: ClassVar[bool] = True

    scale: Annotated[float, Holds(high=100, low=0)] = 0.5
    seed: Annotated[int, Holds(high=MAX_SEED, low=0)] = 0

    def displacement(self, x: torch.Tensor) -> torch.Tensor:
        """V of an activation [runs, positions, width], whose rows are one group."""
        groups = RowGroups.of_one(x)
        if len(groups.places) < 2:
            raise DSASError("a group of 1 run: pushing apart takes 2 or more runs of one prompt; draw or write several")
        return self.among(groups).displacement(x)

    def among(self, groups: RowGroups) -> StiefelMapAmong:
        """The map of activations whose rows belong together like that."""
        return StiefelMapAmong(self.scale, self.seed, groups)


@dataclass(frozen=True, eq=False)
class StiefelMapAmong(Map, kind="stiefel-among", stored=False):
    """A `StiefelMap` that knows which rows belong together; see there.

    Args:
        scale: c.
        seed: of the random columns.
        groups: of the rows of the activations.

    Example:
        >>> from dsas_core.model.row_groups import find_groups
        >>> pairs = find_groups(torch.tensor([0, 0, 1]), torch.ones(3))
        >>> StiefelMap().among(pairs).displacement(torch.ones(3, 1, 6)).norm(dim=-1)[2]  # it has nobody
        tensor([0.])
    """

    linear_in_strength = True

    scale: Annotated[float, Holds(high=100, low=0)]
    seed: Annotated[int, Holds(high=MAX_SEED, low=0)]
    groups: RowGroups

    def displacement(self, x: torch.Tensor) -> torch.Tensor:
        runs, counts = self.groups.gather(x.detach())  # [groups, positions, runs, width]
        if not runs.numel():
            return torch.zeros_like(x)
        size, width = runs.shape[-2:]
        if width < 2 * size:
            raise UnsupportedError(
                f"{size} runs and {width} dimensions: orthogonal offsets need twice as many dimensions as runs; take "
                f"{width // 2} runs at most, or a wider site"
            )
        offsets = orthogonal_offsets(runs, self.scale, random_rows(size, width, self.seed, x))
        together = counts & (counts.sum(-2, keepdim=True) > 1)
        return self.groups.scatter(torch.where(together, offsets, 0))


def orthogonal_offsets(runs: torch.Tensor, scale: float, random: torch.Tensor) -> torch.Tensor:
    """V of some runs, as rows.

    Args:
        runs: Hᵀ, [..., runs, width], a row of zeros for a run that does not count.
        scale: c, so that α = c * σ_max².
        random: rows from which those of the null space are taken, [runs, width].

    Returns:
        Vᵀ, of the shape of `runs`; zeros where all of H is 0.
    """
    square, vectors = torch.linalg.eigh(runs @ runs.mT)  # σ² in ascending order, and W
    square = square.clamp_min(0)
    highest = square[..., -1:]
    alpha = scale * highest
    ratio = square / torch.where(highest > 0, square + alpha, 1)
    eta = ratio.sum(-1, keepdim=True) / (2 * (ratio * ratio).sum(-1, keepdim=True)).clamp_min(1e-30)  # D1 / D2
    spanned = square > highest * (square.shape[-1] * torch.finfo(square.dtype).eps)
    inverse = torch.where(spanned, square.clamp_min(torch.finfo(square.dtype).tiny).rsqrt(), 0)
    basis = (vectors * inverse[..., None, :]).mT @ runs  # Qᵀ: orthonormal rows that span those of `runs`, and zeros
    free = random.expand_as(runs)
    for _ in range(2):  # the second time takes away what rounding left
        free = free - (free @ basis.mT) @ basis
    length = alpha.sqrt()[..., None]
    moved = orthonormal_rows(free) + eta[..., None] / torch.where(length > 0, length, 1) * runs
    return length * orthonormal_rows(moved)


def orthonormal_rows(rows: torch.Tensor) -> torch.Tensor:
    """The orthonormal rows next to some independent ones: (A Aᵀ)^(-1/2) A.

    Args:
        rows: A, [..., rows, width].

    Example:
        >>> orthonormal_rows(torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 2.0]]))
        tensor([[1., 0., 0.],
                [0., 0., 1.]])
    """
    for _ in range(2):  # the second time takes away what rounding left
        square, vectors = torch.linalg.eigh(rows @ rows.mT)
        inverse = square.clamp_min(torch.finfo(square.dtype).tiny).rsqrt()
        rows = (vectors * inverse[..., None, :]) @ (vectors.mT @ rows)
    return rows


def random_rows(count: int, width: int, seed: int, like: torch.Tensor) -> torch.Tensor:
    """Normal random numbers [count, width] that depend on seed, row and column alone: not on device, nor on calls.

    A generator would be state between calls, and no graph could have it.

    Args:
        count: of rows; the first ones are the same whatever the count.
        width: of each.
        seed: from 0 up.
        like: of which device and dtype.

    Example:
        >>> torch.equal(random_rows(3, 4, 7, torch.zeros(1))[:2], random_rows(2, 4, 7, torch.zeros(1)))
        True
    """
    rows, columns = (torch.arange(size, device=like.device) for size in (count, width))
    key = _mixed(_mixed(_mixed(rows + 1) ^ seed)[:, None] ^ columns)
    share = ((key >> 8) + 0.5).to(like.dtype) / 2**24  # 24 bits: exact in float32
    return torch.erfinv(2 * share - 1)


def _mixed(numbers: torch.Tensor) -> torch.Tensor:
    """Integers below 2^32 mixed into others, one to one; of products only the low 32 bits count."""
    for factor in (0x7FEB352D, 0x5A4BC9B5):
        numbers = ((numbers ^ (numbers >> 16)) * factor) & 0xFFFFFFFF
    return numbers ^ (numbers >> 15)
