"""The hyperplane w . x + b = 0 that a probe decides by, of one position or of the mean over all."""

from __future__ import annotations

import operator
from functools import reduce
from typing import NamedTuple

import torch

from .base import Probe
from .combine import PooledProbe, ProductProbe
from .linear import LinearProbe
from .step import StepProbe


class Hyperplane(NamedTuple):
    """A linear probe, of single positions or pooled, and the factors that multiply its h.

    Args:
        probe: the probe whose hyperplane it is.
        others: the other factors.
    """

    probe: LinearProbe | PooledProbe
    others: tuple[Probe, ...] = ()

    def gate(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor | float:
        """The product of the other factors' h, broadcastable to x; 1 where there are none."""
        return reduce(operator.mul, [other.score(x, mask) for other in self.others], 1.0)


def hyperplane(probe: Probe) -> Hyperplane | None:
    """The hyperplane of a linear, step, pooled or product probe; None for probes without one.

    A step probe has that of its linear probe, with the step itself as a factor, as x is not moved where h is 0. A
    product has that of its first factor of single positions, or of its first pooled one where there is none: that
    factor shows where the concept is, the others whether it counts.

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
    factors = probe.factors if isinstance(probe, ProductProbe) else ()
    for kind in (LinearProbe | StepProbe, PooledProbe):
        for place, factor in enumerate(factors):
            if isinstance(factor, kind) and (inner := hyperplane(factor)):
                return Hyperplane(inner.probe, (*inner.others, *factors[:place], *factors[place + 1 :]))
    return None
