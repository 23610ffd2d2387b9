"""Schedules: strength over the denoising timestep, 1000 (noise, first) to 0 (clean, last)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from dsas_core.errors import DSASError, quote
from dsas_core.utils.numbers import KINDS, number

#: how many straight lines a cosine is made of
COSINE_POINTS = 48
#: timesteps over which `between` rises and falls
EDGE = 1e-3


class Schedule:
    """A factor of the strength that is linear between points and constant beyond them.

    Args:
        points: (timestep, factor) pairs, in any order; timesteps from 0 to 1000, each once.

    Raises:
        DSASError: no points, a timestep twice or out of range, a number that is not finite.

    Example:
        >>> schedule = Schedule([(1000, 0.0), (700, 1.0)])  # nothing at pure noise, all from timestep 700 on
        >>> [float(schedule(torch.tensor(timestep))) for timestep in (1000.0, 850.0, 700.0, 0.0)]
        [0.0, 0.5, 1.0, 1.0]
    """

    def __init__(self, points: Sequence[tuple[float, float]]) -> None:
        try:
            ordered = sorted((number("timestep", t), number("factor", factor)) for t, factor in points)
        except (TypeError, ValueError):  # no pairs, or a number that is out of bounds
            ordered = []
        times = [t for t, _ in ordered]
        if not ordered or len(set(times)) < len(times):
            raise DSASError(
                f"schedule: expected (timestep, factor) pairs, timesteps once each in 0 … 1000, factors "
                f"{KINDS['factor']}; found {quote(points)}"
            )
        self.points = ordered
        self.times = torch.tensor(times)
        self.factors = torch.tensor([factor for _, factor in ordered])

    @classmethod
    def constant(cls, factor: float) -> Schedule:
        """The same factor at every timestep."""
        return cls([(1000, factor)])

    @classmethod
    def linear(cls, first: float, last: float) -> Schedule:
        """On a straight line from `first` at pure noise to `last` at the finished picture."""
        return cls([(1000, first), (0, last)])

    @classmethod
    def cosine(cls, first: float, last: float) -> Schedule:
        """From `first` to `last` on half a cosine, slowly at both ends; exact to 0.1 % of the difference."""
        first, last = number("factor", first, "schedule"), number("factor", last, "schedule")
        shares = [i / COSINE_POINTS for i in range(COSINE_POINTS + 1)]
        return cls([(1000 * (1 - p), first + (last - first) * (1 - math.cos(math.pi * p)) / 2) for p in shares])

    @classmethod
    def between(cls, start: float, stop: float) -> Schedule:
        """1 while the timestep is between `start` (the noisier) and `stop`, 0 outside."""
        start, stop = number("timestep", start, "schedule"), number("timestep", stop, "schedule")
        if not start > stop:
            raise DSASError(f"schedule: expected 1000 >= start > stop >= 0, found {start:g} and {stop:g}")
        outside = [(t, 0.0) for t in (start + EDGE, stop - EDGE) if 0 <= t <= 1000]
        return cls([(start, 1.0), (stop, 1.0), *outside])

    def __call__(self, timestep: torch.Tensor) -> torch.Tensor:
        """The factor at a timestep, float []."""
        times, factors = self.times.to(timestep.device), self.factors.to(timestep.device)
        if len(times) == 1:
            return factors[0]
        right = torch.searchsorted(times, timestep.reshape(1)).clamp(1, len(times) - 1)
        left = right - 1
        share = ((timestep - times[left]) / (times[right] - times[left])).clamp(0, 1)
        return torch.lerp(factors[left], factors[right], share)[0]
