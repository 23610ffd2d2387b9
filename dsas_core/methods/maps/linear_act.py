"""Linear-AcT: T(x) = ω x + β, the line that takes the sorted source values of a dimension nearest to the target's.

With ã and b̃ sorted and centred, ω = Σ ã b̃ / Σ ã² and β = mean(target) - ω mean(source). The denominator is the source's
sum, as in the released code and as least squares has it; copies of the paper that show b̃² are mistaken.

The options, the source and the traps are those of `base.transport`. Choices of ours: where the counts differ, the sums
are integrals over the two quantile functions, which are the same sums at equal counts: no row is thrown away and
nothing is drawn, where the released code draws as many of each. A dimension without spread in the source, whose slope
is undetermined, gets slope 1; the released code adds noise there.
"""

from __future__ import annotations

import torch

from ...maps import AffineMap
from ..base.traits import MapTraits
from ..base.transport import Transport
from ..training.optimal_transport import match_quantiles

#: a source variance of at most this is rounding, and no spread
NO_SPREAD = 1e-16


class LinearAcT(Transport):
    """Optimal transport by a line. Options `support` and `spatial`, see `base.transport`.

    Example:
        >>> source, target = torch.tensor([[0.0], [2.0]]), torch.tensor([[9.0], [5.0]])
        >>> LinearAcT().fit(source, target).apply(source, 1.0)[:, 0]
        tensor([5., 9.])
    """

    traits = MapTraits("move each dimension's distribution to the target's by a line (arXiv 2410.23054)", min_rows=2)

    def _affine(self, source: torch.Tensor, target: torch.Tensor) -> AffineMap:
        mean, goal = source.mean(0), target.mean(0)
        a, b, share = match_quantiles((source - mean).sort(0).values, (target - goal).sort(0).values)
        variance = share @ a.square()
        slope = torch.where(variance > NO_SPREAD, share @ (a * b) / variance, 1.0)
        return AffineMap(goal - slope * mean, slope)
