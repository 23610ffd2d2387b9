"""Gates that do not look: `on` steers everything (the vanilla method), `off` nothing."""

from __future__ import annotations

import torch

from ..probes import ConstantProbe


class Constant:
    """h = value, whatever the rows."""

    def __init__(self, value: float) -> None:
        self.value = value
        self.line = "steer every position: the vanilla method" if value else "steer nothing: the base model"

    def fit(self, source: torch.Tensor, control: torch.Tensor) -> ConstantProbe:
        return ConstantProbe(self.value)
