"""ITI-c: T(x; s) = x + s * β, β the normal of the logistic regression of source against target, not normalised.

The form in which Rodriguez et al., "Controlling Language and Diffusion Models by Transporting Activations", arXiv
2410.23054, compare with ITI. The regression is ours to choose (raw rows, ridge penalty 1): the paper does not say.

Trap: β is longer where classes are closer together and shorter where activations are large, so its best strength
differs from site to site; with few rows it can raise what it should lower.
"""

from __future__ import annotations

import torch

from ...maps import AffineMap
from ..base.logistic_regression import fit_logistic
from ..base.map_method import MapMethod
from ..base.traits import MapTraits


class ITIc(MapMethod):
    """Inference-time intervention with the classifier's own normal. No options.

    Example:
        >>> source, target = torch.tensor([[0.0, 0.0], [0.0, 1.0]]), torch.tensor([[4.0, 0.0], [4.0, 1.0]])
        >>> (ITIc().fit(source, target).shift > 0.5).tolist()
        [True, False]
    """

    traits = MapTraits(
        "add the normal of a classifier of source against target activations (arXiv 2410.23054)",
        min_rows=2,
    )

    def _fit(self, source: torch.Tensor, target: torch.Tensor) -> AffineMap:
        return AffineMap(fit_logistic(source, target)[0])
