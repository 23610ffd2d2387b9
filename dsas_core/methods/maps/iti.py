"""ITI, inference-time intervention: T(x; s) = x + s * σ * θ at the most separating heads, θ of length 1.

Li et al., "Inference-Time Intervention: Eliciting Truthful Answers from a Language Model", arXiv 2306.03341; released
code. θ is the mean difference ("mass mean", the default) or the normal of a logistic regression ("classifier"). σ is
the standard deviation of the projections of source and target rows together on θ, divided by n and not n - 1, as
released. The paper's α (15) is the strength.

A head is a site of its own, a slice of the channels that enter the output projection (`--sites heads`). The paper
moves the 48 that separate best: `keep` of `dsas_core.learning.recipe.Recipe`. Trap: at other sites it is CAA with
another length.
"""

from __future__ import annotations

import torch

from ...maps import AffineMap
from ..base.logistic_regression import fit_logistic
from ..base.map_method import MapMethod, one_of
from ..base.traits import MapTraits
from .caa import unit


class ITI(MapMethod):
    """Inference-time intervention, at one head. Option `direction`, see above.

    Example:
        >>> source, target = torch.tensor([[0.0, 0.0], [0.0, 1.0]]), torch.tensor([[4.0, 0.0], [4.0, 1.0]])
        >>> ITI().fit(source, target).shift  # projections 0, 0, 4, 4: a deviation of 2
        tensor([2., 0.])
    """

    traits = MapTraits(
        "add the direction from source to target, as long as activations spread along it (arXiv 2306.03341)",
        min_rows=2,
    )
    options = {"direction": one_of("mass mean", "classifier")}

    def _fit(self, source: torch.Tensor, target: torch.Tensor, *, direction: str) -> AffineMap:
        theta = unit(fit_logistic(source, target)[0] if direction == "classifier" else target.mean(0) - source.mean(0))
        return AffineMap((torch.cat([source, target]) @ theta).std(unbiased=False) * theta)
