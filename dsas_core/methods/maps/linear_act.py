"""Linear-AcT: T(x) = ω x + β, the line that takes the sorted source values of a dimension nearest to the target's.

With ã and b̃ sorted and centred, ω = Σ ã b̃ / Σ ã² and β = mean(target) - ω mean(source). The denominator is the source's
sum, as in the released code and as least squares has it; copies of the paper that show b̃² are mistaken.

The options, the source and the traps are those of `base.transport`. Choices of ours: where the counts differ, the sums
are integrals over the two quantile functions, which are the same sums at equal counts: no row is thrown away and
nothing is drawn, where the released code draws as many of each. A dimension without spread in the source, whose slope
is undetermined, gets slope 1; the released code adds noise there.
"""

from __future__ import annotations

import numpy as np
import torch

from ...maps import AffineMap
from ..base.traits import MapTraits
from ..base.transport import Transport

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
        a, b, share = _match_quantiles((source - mean).sort(0).values, (target - goal).sort(0).values)
        variance = share @ a.square()
        slope = torch.where(variance > NO_SPREAD, share @ (a * b) / variance, 1.0)
        return AffineMap(goal - slope * mean, slope)


def _match_quantiles(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two sorted samples [n, width] and [m, width] side by side: both [k, width], and the share [k] of each row.

    Each sample's quantile function is a staircase; k counts the pieces where neither has a step. At n = m they are the
    rows themselves, in shares of 1 / n.
    """
    n, m = len(a), len(b)
    edges = torch.from_numpy(np.union1d(np.arange(n + 1) * m, np.arange(m + 1) * n))  # in steps of 1 / (n m)
    begin = edges[:-1]
    return a[begin // m], b[begin // n], edges.diff().double() / (n * m)
