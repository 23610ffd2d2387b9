"""The null model of gates: how far a position points in the direction of the mean difference.

h = max(0, cos(x, d) - threshold), d = mean(source) - mean(control): a gate that knows the direction of CAA and no
statistics, after steering-lite's (max(0, |cos| - threshold)); signed here, as activations that point the other way do
not show the concept. CASteer's local gate is this with threshold 0. The default threshold is the mean cosine of control
positions: activations have a large mean in common, and its cosine to d may be anything. h is small, rarely above 0.5;
the unit of strength compensates for it. Fitted on positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...errors import DSASError
from ...probes import CosineProbe
from ..base.gate import Gate
from ..base.traits import GateTraits


@dataclass(frozen=True)
class Cosine(Gate):
    """Cosine to the mean difference, above a threshold.

    Args:
        threshold: in [-1, 1); None for the mean cosine of control positions.

    Raises:
        DSASError: another threshold.

    Example:
        >>> probe = Cosine(0.5).fit(torch.tensor([[2.0, 1.0], [4.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
        >>> probe.score(torch.tensor([[3.0, 4.0], [5.0, 0.0]]))[:, 0]
        tensor([0.1000, 0.5000])
    """

    traits = GateTraits("cosine to the mean difference, above a threshold: the null model of gates")

    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None and not -1 <= self.threshold < 1:
            raise DSASError(f"gate cosine: threshold {self.threshold}: expected a number in [-1, 1)")

    def _fit(self, source: torch.Tensor, control: torch.Tensor) -> CosineProbe:
        direction = torch.nn.functional.normalize(source.mean(0) - control.mean(0), dim=0, eps=1e-300)
        probe = CosineProbe(direction, torch.zeros((), dtype=torch.float64))
        threshold = float(probe.logit(control).mean()) if self.threshold is None else self.threshold
        return CosineProbe(direction, torch.tensor(threshold, dtype=torch.float64))
