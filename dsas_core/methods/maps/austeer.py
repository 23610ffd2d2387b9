"""AUSteer: T(x; s) = x * (1 + s * γ) at the dimensions that change alike in nearly every pair.

arXiv 2602.04428; released code. r⁺ and r⁻ are the shares of pairs in which the dimension is higher, or lower, in the
target than in the source; its score is the larger of them, and γ = r⁺ where r⁺ > r⁻, else -r⁻. The dimensions with the
highest scores are scaled, of equal scores the first; the paper's α (15 to 50) is the strength.

`top` is their number at each site, or a share (0.05); the paper takes up to 100 of all layers together. Row i of source
and target must be a pair. Traps: with few pairs many dimensions score 1 by chance; a negative value that should grow
shrinks; large strengths turn signs around.
"""

from __future__ import annotations

import torch

from ...maps import AffineMap
from ..base.map_method import MapMethod
from ..base.top_dimensions import TOP, top_mask
from ..base.traits import MapTraits


class AUSteer(MapMethod):
    """Scaling of the dimensions that change consistently. Option `top`: how many, or which share of them.

    Example:
        >>> source, target = torch.ones(2, 3), torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 3.0]])
        >>> AUSteer().fit(source, target, top=1).slope
        tensor([2., 1., 1.])
    """

    traits = MapTraits(
        "scale the dimensions that change alike from source to target in every pair (arXiv 2602.04428)",
        paired=True,
    )
    options = {"top": TOP}

    def _fit(self, source: torch.Tensor, target: torch.Tensor, *, top: int | float) -> AffineMap:
        change = target - source
        up, down = (change > 0).double().mean(0), (change < 0).double().mean(0)
        gain = torch.where(up > down, up, -down) * top_mask(torch.maximum(up, down), top)
        return AffineMap(torch.zeros_like(gain), 1 + gain)
