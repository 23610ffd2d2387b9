"""CAA, the mean difference: T(x; s) = x + s * v, v = mean(target) - mean(source), not normalised.

Rimsky et al., "Steering Llama 2 via Contrastive Activation Addition", arXiv 2312.06681. Paired and unpaired prompts
give the same v when their counts are equal. `normalise`: "unit" divides v by its length; "mean norm" makes it as long
as source rows are in the mean, so that one strength means much the same at every site.

Trap: added at every layer and ungated it costs most of the model's capability.
"""

from __future__ import annotations

import torch

from ...maps import AffineMap
from ..base.map_method import MapMethod, one_of
from ..base.traits import MapTraits


class CAA(MapMethod):
    """Contrastive activation addition. Option `normalise`, see above.

    Example:
        >>> source, target = torch.zeros(2, 2), torch.tensor([[3.0, 4.0], [3.0, 4.0]])
        >>> CAA().fit(source, target).shift
        tensor([3., 4.])
        >>> CAA().fit(source, target, normalise="unit").shift
        tensor([0.6000, 0.8000])
    """

    traits = MapTraits("add the mean difference of target and source activations (arXiv 2312.06681)")
    options = {"normalise": one_of("none", "unit", "mean norm")}

    def _fit(self, source: torch.Tensor, target: torch.Tensor, *, normalise: str) -> AffineMap:
        shift = target.mean(0) - source.mean(0)
        if normalise == "none":
            return AffineMap(shift)
        length = source.norm(dim=1).mean() if normalise == "mean norm" else 1.0
        return AffineMap(length * unit(shift))


def unit(vector: torch.Tensor) -> torch.Tensor:
    """A vector [width] at length 1; a vector of zeros stays what it is.

    Example:
        >>> unit(torch.tensor([3.0, 4.0]))
        tensor([0.6000, 0.8000])
    """
    return vector / vector.norm().clamp_min(torch.finfo(vector.dtype).tiny)
