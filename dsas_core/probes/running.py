"""Probes that remember the tokens before: the mean logit so far, in O(1) state per row.

The mean of a linear probe's logits is its logit of the mean activation, so what was fitted on pooled activations reads
every prefix of a text exactly as it was fitted (methods of prefix pooling; YOPO, CAST's latch).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch

from . import Probe
from .linear import LOGIT_LIMIT, LinearProbe


@dataclass(frozen=True, eq=False)
class RunningProbe(Probe):
    """Base of the probes that remember. The steering that uses one owns its state, float32 [batch, columns].

    Columns: sum of logits, number of positions, and the decision that a latch has made.
    """

    inner: LinearProbe

    @property
    def columns(self) -> int:
        return 3

    def follow(
        self, x: torch.Tensor, mask: torch.Tensor | None, prompt: torch.Tensor | None, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Score the positions that come now, after those that `state` has seen.

        Args:
            x: [batch, positions, width].
            mask: float [batch, positions], 1 for positions that count; None counts all.
            prompt: float [batch, positions], 1 for positions that were given; None where all were.
            state: [batch, columns]; zeros before a text begins.

        Returns:
            h [batch, positions, 1], and the state behind them.
        """
        mask = torch.ones(x.shape[:2], device=x.device) if mask is None else mask.float()
        return self._follow(x, mask, torch.ones_like(mask) if prompt is None else prompt, state)

    def _follow(
        self, x: torch.Tensor, mask: torch.Tensor, prompt: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotImplementedError

    def score(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The scores of a whole text, every position of it given."""
        return self.follow(x, mask, None, torch.zeros(len(x), self.columns, device=x.device))[0]

    def lowered(self, shift: float) -> Self:
        return replace(self, inner=self.inner.lowered(shift))

    def _means(self, x: torch.Tensor, mask: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums of logits and numbers of positions up to each position, [batch, positions] both."""
        z = self.inner.logit(x)[..., 0].float() * mask
        return state[:, :1] + z.cumsum(1), state[:, 1:2] + mask.cumsum(1)


@dataclass(frozen=True, eq=False)
class PrefixProbe(RunningProbe, kind="prefix"):
    """h at each position is the inner probe's score of the mean over the positions up to it."""

    def _follow(
        self, x: torch.Tensor, mask: torch.Tensor, prompt: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        sums, counts = self._means(x, mask, state)
        h = (sums / counts.clamp_min(1)).clamp(-LOGIT_LIMIT, LOGIT_LIMIT).sigmoid()
        return h[..., None], torch.stack([sums[:, -1], counts[:, -1], state[:, 2]], 1)


@dataclass(frozen=True, eq=False)
class LatchProbe(RunningProbe, kind="latch"):
    """One decision per row, from the mean over its prompt: h from the prompt's last token on, 0 before."""

    def _follow(
        self, x: torch.Tensor, mask: torch.Tensor, prompt: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        given = mask * prompt
        sums, counts = self._means(x, given, state)
        decided = (sums[:, -1:] / counts[:, -1:].clamp_min(1)).clamp(-LOGIT_LIMIT, LOGIT_LIMIT).sigmoid()
        decided = torch.where(given.sum(1, keepdim=True) > 0, decided, state[:, 2:])
        last = given * (given.flip(1).cumsum(1).flip(1) == 1)  # the last given position of each row
        h = decided * torch.maximum(last, mask * (1 - prompt))
        return h[..., None], torch.stack([sums[:, -1], counts[:, -1], decided[:, 0]], 1)
