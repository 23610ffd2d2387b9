"""Gates that do not look: `on` steers everything (the vanilla method), `off` nothing."""

from __future__ import annotations

import torch

from ..probes import ConstantProbe
from ._gate import Evidence, Fitted, Gate, Groups, logit_of


class Constant(Gate):
    """h = value, whatever the rows."""

    rows = "pooled"
    looks = False

    def __init__(self, value: float) -> None:
        self.value = value
        self.line = "steer every position: the vanilla method" if value else "steer nothing: the base model"

    def fit(self, source: torch.Tensor, control: torch.Tensor) -> ConstantProbe:
        return ConstantProbe(self.value)

    def cross_fit(
        self, source: torch.Tensor, control: torch.Tensor, *, groups: Groups | None = None, seed: int = 0
    ) -> Fitted[ConstantProbe]:
        """Nothing is fitted: what says the same of both sides tells them apart by chance."""
        sizes = [len(set(ids)) for ids in groups] if groups else [len(source), len(control)]
        h = [torch.full((len(rows), 1), self.value, dtype=torch.float64) for rows in (source, control)]
        evidence = Evidence(0.5, 0.5, 0.5, 0, "none", *sizes)
        logits = [logit_of(side) for side in h]
        return Fitted(ConstantProbe(self.value), evidence, logits[0], logits[1], lambda shift: h[1])
