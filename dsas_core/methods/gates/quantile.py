"""The quantile gate: h = 1 at the positions whose linear logit is among the picture's own highest.

SEGA (arXiv 2301.12247) edits the elements above a quantile of each picture, 0.9 by default, in place of an absolute
threshold; here positions, by the logit of the `dsas` gate. Only the order of positions counts, so a direction that was
fitted on means over positions will do. The gate always steers something: a picture has a highest tenth also where
nothing shows the concept. So `Recipe.control_h` cannot be met and is ignored, and only the site weight, from the linear
gate's evidence, is low where a site does not separate source from control. It needs all positions of a picture at once:
not for texts, which are written token by token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...errors import DSASError
from ...probes import QuantileProbe
from ..base.cross_validation import LabelledRows
from ..base.gate import CrossFitted, Gate
from ..base.traits import GateTraits
from .dsas import DSAS


@dataclass(frozen=True)
class Quantile(Gate):
    """The positions above a quantile of the linear logit.

    Args:
        q: the quantile, in (0, 1).

    Raises:
        DSASError: another q.

    Example:
        >>> rows = torch.linspace(0, 1, 10)[:, None]
        >>> probe = Quantile(q=0.5).fit(rows + 2, rows)
        >>> probe.score(torch.tensor([[1.0], [2.0], [3.0]]))[:, 0]  # of any picture the upper half
        tensor([0., 1., 1.])
    """

    traits = GateTraits(
        "the tenth of each picture's positions that a linear gate scores highest (after SEGA)",
        fitted_on="pooled",
        uses_other_positions=True,
    )

    q: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.q < 1:
            raise DSASError(f"gate quantile: q {self.q}: expected a number in (0, 1)")

    def fit(self, source: torch.Tensor, control: torch.Tensor) -> QuantileProbe:
        return QuantileProbe(DSAS().fit(source, control), self.q)

    def cross_fit_rows(self, data: LabelledRows) -> CrossFitted[QuantileProbe]:
        """The evidence and the logits are the linear gate's; of rows alone, without their picture, h is 1 - q."""
        fitted = DSAS().cross_fit_rows(data)
        h = torch.full((len(data.control), 1), 1 - self.q, dtype=torch.float64)
        probe = QuantileProbe(fitted.probe, self.q)
        return CrossFitted(probe, fitted.evidence, fitted.source_logits, fitted.control_logits, lambda shift: h)
