"""The base of every probe, and its complement."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch

from ..utils.tensorclass import TensorClass


class Probe(TensorClass):
    """Base of every probe: pure tensor code on activations [..., positions, width].

    A subclass defines `logit`, and `link` unless that is the sigmoid; or `score` alone, where there is no logit. All
    other methods have defaults. Probes with state are `RunningProbe`s.

    Attributes:
        one_score_per_row: whether h is the same at all positions of a row, so that the probe can gate a site that has
            other positions than the site it reads.

    Example:
        >>> from dsas_core.probes import LinearProbe
        >>> probe = LinearProbe(weight=torch.tensor([1.0, 0.0]), bias=torch.tensor(-2.0))
        >>> probe.score(torch.tensor([[2.0, 5.0], [9.0, 5.0]]))  # two positions of width 2
        tensor([[0.5000],
                [0.9991]])
    """

    one_score_per_row: ClassVar[bool] = False

    def logit(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The logit of h, of the same shape as `score`."""
        return self.score(x, mask).logit()

    def link(self, z: torch.Tensor) -> torch.Tensor:
        """h of a logit."""
        return z.sigmoid()

    def score(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """h, how much each position shows the concept.

        Args:
            x: activations [..., positions, width], of any floating dtype.
            mask: [..., positions], 1 for positions that count; None counts all. Only probes that pool use it.

        Returns:
            h in [0, 1], [..., positions, 1] or [..., positions, width] (each dimension by itself), or broadcastable to
            one of them; float32 at least. No other part has that memory, so a combination may write into it.
        """
        return self.link(self.logit(x, mask))

    def score_sample(self, mean: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """h of one row, of which a capture kept the mean and some positions.

        Args:
            mean: [width], over all positions of the row.
            positions: [k, width], the sampled ones.

        Returns:
            [k], the mean over dimensions; [1] of a probe that reads means.
        """
        return self.score(positions[None])[0].mean(-1).expand(len(positions))

    def with_lower_bias(self, shift: float) -> Self:
        """The probe with `shift` taken off its logit, `link(logit(x) - shift)`; itself where it has no threshold."""
        return self

    def complement(self) -> Probe:
        """The probe of everything but the concept, 1 - h."""
        return ComplementProbe(self)

    @property
    def locator(self) -> Probe | None:
        """The probe whose h shows at which positions of a row the concept is; None where h does not show positions."""
        return self


@dataclass(frozen=True, eq=False)
class ProbeOfMeans(Probe):
    """Base of the probes that apply an inner probe to means over positions.

    Args:
        inner: the probe of means; its threshold is that of the probe.
    """

    inner: Probe

    def score_sample(self, mean: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self.inner.score(mean[None])[:, 0]

    def with_lower_bias(self, shift: float) -> Self:
        return replace(self, inner=self.inner.with_lower_bias(shift))


@dataclass(frozen=True, eq=False)
class ComplementProbe(Probe, kind="complement"):
    """h = 1 - the inner probe's h: everything but the concept. It has no threshold to move.

    Args:
        inner: the probe of the concept.

    Example:
        >>> from dsas_core.probes import ConstantProbe
        >>> ConstantProbe(0.25).complement().score(torch.zeros(1, 3))
        tensor([[0.7500]])
    """

    inner: Probe

    def score(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return 1 - self.inner.score(x, mask)
