"""The GAPS gate: which dimensions to move (AUROC), and at which positions each of them (a posterior of Gaussians).

With m_j, s_j^2 mean and variance of dimension j over source (1) and control (0) positions, and equal priors,

    h_j(x) = 1[|AUROC_j - 1/2| >= threshold] * 1[log N(x_j; m1_j, s1_j^2) > log N(x_j; m0_j, s0_j^2)],

one quadratic in x_j (probes/quadratic.py): O(width) to fit and to read. Gated per-dimension steering, arXiv 2609.01878,
from descriptions: no code is public and we do not know the paper's threshold, so 0.1 is ours. Known traps:

- The source's variance is often the greater, and then the posterior is above 1/2 in both tails. So h is 0 on that side
  of the controls' mean where the source's mean is not.
- Variances are of single positions. Means over a text or picture vary far less, and a gate that is fitted on them takes
  every position for an outlier.
- Meant in a product with a gate of positions, "product(dsas, gaps)". Alone it also moves control positions, in the
  dimensions where they happen to be as the source is; `Recipe.control_h` lowers its C (log odds) until few are, which
  the paper does not do (control_h None).

`soft` takes the posterior itself in place of the step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...errors import DSASError
from ...probes import QuadraticProbe, quadratic
from ..base.gate import Gate
from ..base.traits import GateTraits
from ..maps.aura import auroc


@dataclass(frozen=True)
class GAPS(Gate):
    """Gated per-dimension steering.

    Args:
        threshold: of |AUROC - 1/2|, in [0, 0.5).
        soft: h is the posterior itself, not a step.

    Raises:
        DSASError: another threshold.

    Example:
        >>> source = torch.tensor([[3.0, 0.0], [4.0, 1.0], [5.0, 2.0]])
        >>> control = torch.tensor([[-1.0, 0.0], [0.0, 1.0], [1.0, 2.0]])
        >>> GAPS().fit(source, control).score(torch.tensor([[4.0, 2.0], [0.0, 2.0]]))
        tensor([[1., 0.],
                [0., 0.]])
    """

    traits = GateTraits("per dimension: separates by AUROC, and is likelier source than control (arXiv 2609.01878)")

    threshold: float = 0.1
    soft: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 0.5:
            raise DSASError(f"gate gaps: threshold {self.threshold}: expected a number in [0, 0.5)")

    def _fit(self, source: torch.Tensor, control: torch.Tensor) -> QuadraticProbe:
        (m1, s1), (m0, s0) = ((rows.mean(0), rows.std(0, correction=0)) for rows in (source, control))
        floor = (1e-3 * torch.cat([source, control]).std(0, correction=0)).clamp_min(1e-12)
        s1, s0 = torch.maximum(s1, floor), torch.maximum(s0, floor)
        kept = (auroc(source, control) - 0.5).abs() >= self.threshold
        return QuadraticProbe(*quadratic(m1, s1, m0, s0), m0, (m1 - m0).sign() * kept, self.soft)
