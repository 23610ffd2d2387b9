"""The hyperplane that a probe decides by: w . x + b, of one position or of the mean over all."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .base import Probe
from .combine import PooledProbe, ProductProbe
from .linear import LinearProbe
from .step import StepProbe


class Hyperplane(NamedTuple):
    """A linear probe, of single positions or pooled, and the factors that gate what is done about it.

    Args:
        probe: what the decision is made by.
        others: the factors beside it.
    """

    probe: LinearProbe | PooledProbe
    others: tuple[Probe, ...] = ()

    def gate(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor | float:
        """The product of the other factors' h, broadcastable to x; 1 where there are none."""
        h: torch.Tensor | float = 1.0
        for other in self.others:
            h = other.score(x, mask) * h
        return h


def hyperplane(probe: Probe) -> Hyperplane | None:
    """What a linear, step, pooled or product probe decides by; None for those without a hyperplane.

    A step's is that of its linear probe, and the step stays: nothing is done where h is 0. A product's is that of its
    first factor of single positions, of its first pooled one where there is none: that factor tells where the concept
    is, the others whether it counts.

    Example:
        >>> from dsas_core.probes import ConstantProbe
        >>> linear = LinearProbe(torch.tensor([1.0]), torch.tensor(0.0))
        >>> hyperplane(ProductProbe((ConstantProbe(), linear))).probe is linear
        True
        >>> hyperplane(ConstantProbe()) is None
        True
    """
    if isinstance(probe, LinearProbe | PooledProbe):
        return Hyperplane(probe)
    if isinstance(probe, StepProbe):
        return Hyperplane(probe.inner, (probe,))
    if not isinstance(probe, ProductProbe):
        return None
    for kind in (LinearProbe | StepProbe, PooledProbe):
        for place, factor in enumerate(probe.factors):
            own = hyperplane(factor) if isinstance(factor, kind) else None
            if own is not None:
                return Hyperplane(own.probe, (*own.others, *probe.factors[:place], *probe.factors[place + 1 :]))
    return None
