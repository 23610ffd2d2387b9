"""The agreement probe: h is how alike the runs of one prompt are at a position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from ..model.row_groups import RowGroups
from ..utils.tensorclass import Holds, compute_dtype
from .base import Probe


@dataclass(frozen=True, eq=False)
class AgreementProbe(Probe, kind="agreement"):
    """h = (mean cosine of two runs - least) / (1 - least), clamped to [0, 1]; the same for all runs of a group.

    The cosines are of activations as they are: around the mean of their own group two runs are always opposite. A run
    that is alone at a position has h = 0 there.

    Args:
        least: the mean cosine at which h is 0, from 0 up to below 1.

    Example:
        >>> runs = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]])  # two alike, one unlike them
        >>> AgreementProbe().score(runs)[:, 0, 0]
        tensor([0.3333, 0.3333, 0.3333])
    """

    couples_rows: ClassVar[bool] = True

    least: Annotated[float, Holds(high=0.999, low=0)] = 0.0

    def score(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        h = self.among(RowGroups.of_one(x, mask)).score(x if x.ndim > 2 else x[None], mask)
        return h if x.ndim > 2 else h[0]

    def among(self, groups: RowGroups) -> AgreementAmong:
        """The probe of activations whose rows belong together like that."""
        return AgreementAmong(self.least, groups)


@dataclass(frozen=True, eq=False)
class AgreementAmong(Probe, kind="agreement-among", stored=False):
    """An `AgreementProbe` that knows which rows belong together; see there.

    Args:
        least: the mean cosine at which h is 0.
        groups: of the rows of the activations.

    Example:
        >>> from dsas_core.model.row_groups import find_groups
        >>> pairs = find_groups(torch.tensor([0, 0, 1]), torch.ones(3))
        >>> AgreementProbe().among(pairs).score(torch.ones(3, 1, 4))[:, 0, 0].round(decimals=4)
        tensor([1., 1., 0.])
    """

    least: Annotated[float, Holds(high=0.999, low=0)]
    groups: RowGroups

    def score(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        x = x.to(compute_dtype(x))
        runs, counts = self.groups.gather(x)
        if not runs.numel():
            return x.new_zeros(*x.shape[:-1], 1)
        unit = torch.nn.functional.normalize(runs, dim=-1, eps=1e-12)
        count = counts.sum(-2)  # [groups, positions, 1]
        # the sum over all pairs of different runs: |Σu|² less that of each with itself
        pairs = unit.sum(-2).square().sum(-1, keepdim=True) - unit.square().sum((-2, -1))[..., None]
        mean = pairs / (count * (count - 1)).clamp_min(1)
        h = ((mean - self.least) / (1 - self.least)).clamp(0, 1)
        return self.groups.scatter(torch.where(counts, h[..., None, :], 0))
