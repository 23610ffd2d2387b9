"""FairSteer: T(x; s) = x + s * v, v the mean difference, where a classifier detects the unwanted concept.

    h = 1 where p(source | x) > 1/2, by logistic regression of source against control rows, else 0.

Li et al., "FairSteer: Inference Time Debiasing for LLMs with Dynamic Activation Steering", arXiv 2504.14492; released
code. v = mean(target) - mean(source), not normalised; the paper's α (1) is the strength. One layer is steered, the
most accurate one (`Recipe.keep`, here 1). In texts it reads and writes the last token, the prompt's last and each that
is generated (form "last"), in pictures each position. The regression is scikit-learn's with its defaults (ridge penalty
1, raw rows, classes weighted by their rows), on one row per prompt: of texts the mean of the hidden states that predict
the answer, of pictures the mean of all positions.

It is DSAS with a step for a sigmoid, at one site. Traps: the threshold was fitted on means and is read at positions, so
that it may fire on controls; one layer may be too few.
"""

from __future__ import annotations

import torch

from ...maps import AffineMap
from ...probes import LinearProbe, StepProbe
from ..base.gate import Gate
from ..base.logistic_regression import fit_logistic
from ..base.map_method import MapMethod
from ..base.traits import GateTraits, MapTraits


class FairSteer(MapMethod):
    """The mean difference, at one site. No options.

    Example:
        >>> FairSteer().fit(torch.zeros(2, 2), torch.ones(2, 2)).shift
        tensor([1., 1.])
    """

    traits = MapTraits(
        "add the mean difference at the one site that tells best, where a classifier fires (arXiv 2504.14492)",
        default_gate="fairsteer",
        max_sites=1,
    )

    def _fit(self, source: torch.Tensor, target: torch.Tensor) -> AffineMap:
        return AffineMap(target.mean(0) - source.mean(0))


class HardClassifier(Gate):
    """The classifier's decision: 1 or 0.

    Example:
        >>> probe = HardClassifier().fit(torch.tensor([[4.0], [5.0]]), torch.tensor([[0.0], [1.0]]))
        >>> probe.score(torch.tensor([[4.5], [0.5]]))[:, 0]
        tensor([1., 0.])
    """

    traits = GateTraits(
        "1 where logistic regression says source, else 0; of texts the last token",
        fitted_on="pooled",
        text_form="last",
        fixed_threshold=True,
    )

    def _fit(self, source: torch.Tensor, control: torch.Tensor) -> StepProbe:
        return StepProbe(LinearProbe(*fit_logistic(control, source)), torch.zeros((), dtype=torch.float64))
