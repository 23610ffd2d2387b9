"""Probes that remember the tokens before: the mean logit so far, in O(1) state per row.

The mean of a linear probe's logits is its logit of the mean activation, so what was fitted on pooled activations reads
every prefix of a text exactly as it was fitted (methods of prefix pooling; YOPO). `LastProbe` remembers nothing, but
has to know, as they do, where the prompt ends; CAST's latch is in `condition`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch

from . import Probe
from .combine import ComplementProbe
from .linear import LOGIT_LIMIT, LinearProbe


@dataclass(frozen=True, eq=False)
class RunningProbe(Probe):
    """Base of the probes that go by what came before. The steering that uses one owns its state.

    It is float32 [batch, columns]; here sum of logits, number of positions, and the decision that a latch has made.
    """

    #: whether it goes by where a prompt ends
    by_prompt: ClassVar[bool] = False

    inner: Probe

    @property
    def columns(self) -> int:
        """How many numbers of each row are remembered."""
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

    def turned(self) -> Self:
        """The same with its decision turned round: 1 - h where it decides, 0 where it does not."""
        return replace(self, inner=ComplementProbe(self.inner))


@dataclass(frozen=True, eq=False)
class _MeanProbe(RunningProbe):
    """Base of those that go by mean logits."""

    inner: LinearProbe

    def turned(self) -> Self:
        """As above: 1 - sigmoid(z) = sigmoid(-z), and a mean of logits turns with them."""
        return replace(self, inner=LinearProbe(-self.inner.weight, -self.inner.bias))

    def _means(self, x: torch.Tensor, mask: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums of logits and numbers of positions up to each position, [batch, positions] both."""
        z = self.inner.logit(x)[..., 0].float() * mask
        return state[:, :1] + z.cumsum(1), state[:, 1:2] + mask.cumsum(1)


@dataclass(frozen=True, eq=False)
class PrefixProbe(_MeanProbe, kind="prefix"):
    """h at each position is the inner probe's score of the mean over the positions up to it."""

    def _follow(
        self, x: torch.Tensor, mask: torch.Tensor, prompt: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        sums, counts = self._means(x, mask, state)
        h = (sums / counts.clamp_min(1)).clamp(-LOGIT_LIMIT, LOGIT_LIMIT).sigmoid()
        return h[..., None], torch.stack([sums[:, -1], counts[:, -1], state[:, 2]], 1)


@dataclass(frozen=True, eq=False)
class LatchProbe(_MeanProbe, kind="latch"):
    """One decision per row, from the mean over its prompt: h from the prompt's last token on, 0 before."""

    by_prompt: ClassVar[bool] = True

    def _follow(
        self, x: torch.Tensor, mask: torch.Tensor, prompt: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        given = mask * prompt
        sums, counts = self._means(x, given, state)
        decided = (sums[:, -1:] / counts[:, -1:].clamp_min(1)).clamp(-LOGIT_LIMIT, LOGIT_LIMIT).sigmoid()
        decided = torch.where(given.sum(1, keepdim=True) > 0, decided, state[:, 2:])
        h = decided * writing(mask, prompt)
        return h[..., None], torch.stack([sums[:, -1], counts[:, -1], decided[:, 0]], 1)


@dataclass(frozen=True, eq=False)
class LastProbe(RunningProbe, kind="last"):
    """The inner probe at the prompt's last token and at each behind it, the last one when it is read; 0 before."""

    by_prompt: ClassVar[bool] = True

    @property
    def columns(self) -> int:
        return 0

    def _follow(
        self, x: torch.Tensor, mask: torch.Tensor, prompt: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.inner.score(x, mask) * writing(mask, prompt)[..., None], state


def writing(mask: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    """Which positions write: the last that was given of each row, and those behind it; float [batch, positions].

    Args:
        mask, prompt: float [batch, positions], see `RunningProbe.follow`.
    """
    given = mask * prompt
    last = given * (given.flip(1).cumsum(1).flip(1) == 1)
    return torch.maximum(last, mask * (1 - prompt))
