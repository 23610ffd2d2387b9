"""The elliptic envelope of activations: an ellipse of constant Mahalanobis distance around their mean.

In-Distribution Steering (IDS, arXiv 2510.13285) limits its strength so that the Mahalanobis distance to activations of
the desired behaviour, in principal components, is at most their own 95th percentile. IDS ignores displacement outside
of these components. Here it counts as well: the remaining directions share one variance, the mean of theirs, which is
the covariance of probabilistic PCA (Tipping and Bishop, 1999).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from ..utils.tensorclass import LARGEST_SLOPE, Holds, TensorClass, Vector, cast, compute_dtype

#: default for the largest number of principal components
RANK = 8
#: smallest standard deviation
SMALLEST = 1e-20


@dataclass(frozen=True, eq=False)
class EllipticEnvelope(TensorClass, kind="cloud"):
    """The ellipse that contains 95 % of some activations.

    Args:
        mean: [width].
        axes: [rank, width], orthonormal.
        spread: [rank], the standard deviation along each axis.
        rest: [], the standard deviation in every other direction.
        radius: [], the Mahalanobis distance from the mean within which 95 % of the activations are.

    Example:
        >>> one, zero = torch.tensor(1.0), torch.zeros(2)
        >>> axes, spread = torch.tensor([[1.0, 0.0]]), torch.tensor([3.0])
        >>> ellipse = EllipticEnvelope(zero, axes, spread, rest=one, radius=one)
        >>> ellipse.distance(torch.tensor([[3.0, 0.0], [0.0, 3.0]]))[:, 0]
        tensor([1., 3.])
    """

    mean: Vector
    axes: Annotated[torch.Tensor, Holds("rank width", unit=True)]
    spread: Annotated[torch.Tensor, Holds("rank", low=SMALLEST)]
    rest: Annotated[torch.Tensor, Holds(low=SMALLEST)]
    radius: Annotated[torch.Tensor, Holds(high=LARGEST_SLOPE, low=0)]

    def whiten(self, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A difference of activations [..., width] in standard deviations, along the axes and beside them.

        Returns:
            [..., rank] and [..., width].
        """
        axes, spread, rest = (cast(tensor, v.dtype) for tensor in (self.axes, self.spread, self.rest))
        flat = v.reshape(-1, v.shape[-1])
        along = flat @ axes.T
        beside = torch.addmm(flat, along, axes, alpha=-1).div_(rest)
        return (along / spread).view(*v.shape[:-1], -1), beside.view_as(v)

    def distance(self, x: torch.Tensor) -> torch.Tensor:
        """Mahalanobis distance of activations [..., width] from the mean, [..., 1]; float32 at least."""
        wide = x.to(compute_dtype(x))
        along, beside = self.whiten(wide - self.mean.to(wide.dtype))
        return torch.hypot(along.norm(dim=-1, keepdim=True), beside.norm(dim=-1, keepdim=True))
