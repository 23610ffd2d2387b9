"""Gates that read nothing: `on` (h = 1) steers everything, the vanilla method; `off` (h = 0) nothing."""

from __future__ import annotations

import torch

from ...probes import ConstantProbe
from ..base.cross_validation import Evidence, PromptIds, logit_of
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

    def cross_fit(
        self, source: torch.Tensor, control: torch.Tensor, *, groups: PromptIds | None = None, seed: int = 0
    ) -> CrossFitted[ConstantProbe]:
        """Nothing is fitted: the same h of both sides classifies them by chance."""
        sizes = [len(set(ids)) for ids in groups] if groups else [len(source), len(control)]
        h = [torch.full((len(rows), 1), self.value, dtype=torch.float64) for rows in (source, control)]
        evidence = Evidence(0.5, 0.5, 0.5, 0, "none", *sizes)
        logits = [logit_of(side) for side in h]
        return CrossFitted(ConstantProbe(self.value), evidence, logits[0], logits[1], lambda shift: h[1])
