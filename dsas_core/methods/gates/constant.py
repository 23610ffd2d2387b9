"""Gates that read nothing: `on` (h = 1) steers everything, the vanilla method; `off` (h = 0) nothing."""

from __future__ import annotations

import torch

from ...probes import ConstantProbe
from ..base.cross_validation import Evidence, LabelledRows, logit_of
from ..base.gate import CrossFitted, Gate
from ..base.traits import GateTraits


class Constant(Gate):
    """h = value, whatever the rows.

    Args:
        value: h, 0 or 1.

    Example:
        >>> Constant(1.0).fit(torch.zeros(2, 3), torch.zeros(2, 3)).score(torch.zeros(1, 3))
        tensor([[1.]])
    """

    def __init__(self, value: float) -> None:
        self.value = value
        summary = "steer every position: the vanilla method" if value else "steer nothing: the base model"
        self.traits = GateTraits(summary=summary, fitted_on="pooled", reads_activations=False)

    def fit(self, source: torch.Tensor, control: torch.Tensor) -> ConstantProbe:
        return ConstantProbe(self.value)

    def cross_fit_rows(self, data: LabelledRows) -> CrossFitted[ConstantProbe]:
        """Nothing is fitted: the same h of both sides classifies them by chance."""
        source, control = (torch.full((len(rows), 1), self.value).double() for rows in (data.source, data.control))
        evidence = Evidence(0.5, 0.5, 0.5, 0, "none", *data.sizes)
        probe = ConstantProbe(self.value)
        return CrossFitted(probe, evidence, logit_of(source), logit_of(control), lambda shift: control)
