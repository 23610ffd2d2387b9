"""CAA, the mean difference: T(x; s) = x + s * v, v = mean(target) - mean(source), not normalised.

Rimsky et al., "Steering Llama 2 via Contrastive Activation Addition", arXiv 2312.06681. Paired and unpaired prompts
give the same v when their counts are equal.
"""

from __future__ import annotations

import torch

from ..maps import AffineMap
from ._rows import checked


class CAA:
    """Contrastive activation addition."""

    line = "add the mean difference of target and source activations (arXiv 2312.06681)"

    def fit(self, source: torch.Tensor, target: torch.Tensor) -> AffineMap:
        """Fit on rows [n, width] of source and target; dtype of the source out, computed in float64."""
        found = checked("source", source).mean(0)
        wanted = checked("target", target, source.shape[-1]).mean(0)
        return AffineMap(shift=(wanted - found).to(source.dtype))
