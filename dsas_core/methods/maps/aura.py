"""AurA: T(x) = α * x by dimension, α = 1 - 2 (AUROC - 1/2) where AUROC > 1/2, and 1 elsewhere.

Suau et al., "Whispering Experts: Neural Interventions for Toxicity Mitigation in Language Models", arXiv 2407.12824;
released code. AUROC is how well the dimension's value separates source rows (the undesired) from target rows, ties
counted half; α of a dimension that separates perfectly is 0, which silences it. Needs no strength: 1 is the method.

Traps: the paper takes the maximum over tokens at the outputs of MLP layers; here rows are the captured means.
Dimensions that are high in the target alone stay as they are. Pictures of diffusion models become noisy. A negative
strength amplifies the experts.
"""

from __future__ import annotations

import torch

from ...maps import AffineMap
from ..base.map_method import MapMethod
from ..base.traits import MapTraits


class AurA(MapMethod):
    """Damping of expert dimensions. No options.

    Example:
        >>> source, target = torch.tensor([[3.0, 1.0], [4.0, 2.0]]), torch.tensor([[1.0, 1.0], [2.0, 2.0]])
        >>> AurA().fit(source, target).slope  # the first dimension separates the sides, the second does not
        tensor([0., 1.])
    """

    traits = MapTraits("damp the dimensions that tell source from target activations (arXiv 2407.12824)")

    def _fit(self, source: torch.Tensor, target: torch.Tensor) -> AffineMap:
        slope = 1 - 2 * (auroc(source, target) - 0.5).clamp_min(0)
        return AffineMap(torch.zeros_like(slope), slope)


def auroc(higher: torch.Tensor, lower: torch.Tensor) -> torch.Tensor:
    """By dimension, the chance that a row of one sample is above a row of another, ties half.

    Args:
        higher: [n, width].
        lower: [m, width].

    Returns:
        [width], float64.

    Example:
        >>> auroc(torch.tensor([[2.0], [4.0]]), torch.tensor([[1.0], [3.0]]))
        tensor([0.7500], dtype=torch.float64)
    """
    ordered, values = lower.T.contiguous().sort(1).values, higher.T.contiguous()
    below, up_to = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    return (below + up_to).sum(1).double() / (2 * len(higher) * len(lower))
