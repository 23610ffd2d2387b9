"""Probes with state, of texts that are written token by token: the mean logit so far, in O(1) numbers per row.

The mean of a linear probe's logits is its logit of the mean activation, so what was fitted on pooled activations reads
every prefix of a text exactly as it was fitted (prefix pooling; YOPO). `LastProbe` has no state, but has to know, as
they do, where the prompt ends. CAST's latch is in `condition`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch

from .base import ComplementProbe, Probe
from .linear import LOGIT_LIMIT, LinearProbe


@dataclass(frozen=True, eq=False)
class RunningProbe(Probe):
    """Base of the probes whose h depends on the positions before. The steering that uses one owns its state.

    The state is float32 [batch, state_size]: here the sum of logits, the number of positions, and the decision that a
    latch has made.

    Args:
        inner: what is asked of activations.

    Attributes:
        by_prompt: whether h depends on where the prompt ends.
    """

    by_prompt: ClassVar[bool] = False

    inner: Probe

    @property
    def state_size(self) -> int:
        """How many numbers of state a row has."""
        return 3

    def step(
        self, x: torch.Tensor, mask: torch.Tensor | None, prompt: torch.Tensor | None, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Score the positions that come now, after those that `state` has seen.

        Args:
            x: [batch, positions, width].
            mask: float [batch, positions], 1 for positions that count; None counts all.
            prompt: float [batch, positions], 1 for positions of the prompt; None where all are.
            state: [batch, state_size]; zeros before a text begins.

        Returns:
            h [batch, positions, 1], and the state after these positions.
        """
        mask = torch.ones(x.shape[:2], device=x.device) if mask is None else mask.float()
        return self._step(x, mask, torch.ones_like(mask) if prompt is None else prompt, state)

    def _step(
        self, x: torch.Tensor, mask: torch.Tensor, prompt: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotImplementedError

    def score(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """h of a whole text, every position of it the prompt's: x [batch, positions, width]."""
        return self.step(x, mask, None, torch.zeros(len(x), self.state_size, device=x.device))[0]

    def score_sample(self, mean: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self.inner.score(mean[None])[:, 0]

    def with_lower_bias(self, shift: float) -> Self:
        return replace(self, inner=self.inner.with_lower_bias(shift))

    def complement(self) -> Self:
        """The same with the opposite decision: 1 - h where it decides, 0 where it does not. The state is kept."""
        return replace(self, inner=ComplementProbe(self.inner))

    @property
    def locator(self) -> None:
        return None


@dataclass(frozen=True, eq=False)
class _MeanProbe(RunningProbe):
    """Base of those that decide by mean logits."""

    inner: LinearProbe

    def complement(self) -> Self:
        """As above: 1 - sigmoid(z) = sigmoid(-z), also of a mean of logits."""
        return replace(self, inner=LinearProbe(-self.inner.weight, -self.inner.bias))

    def _means(self, x: torch.Tensor, mask: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums of logits and numbers of positions up to each position, [batch, positions] both."""
        z = self.inner.logit(x)[..., 0].float() * mask
        return state[:, :1] + z.cumsum(1), state[:, 1:2] + mask.cumsum(1)


@dataclass(frozen=True, eq=False)
class PrefixProbe(_MeanProbe, kind="prefix"):
    """h at each position is the inner probe's score of the mean over the positions up to it.

    Args:
        inner: the probe of means.

    Example:
        >>> probe = PrefixProbe(LinearProbe(torch.tensor([1.0]), torch.tensor(0.0)))
        >>> probe.score(torch.tensor([[[2.0], [-2.0]]]))[0, :, 0]  # one row, two positions
        tensor([0.8808, 0.5000])
    """

    def _step(
        self, x: torch.Tensor, mask: torch.Tensor, prompt: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        sums, counts = self._means(x, mask, state)
        h = (sums / counts.clamp_min(1)).clamp(-LOGIT_LIMIT, LOGIT_LIMIT).sigmoid()
        return h[..., None], torch.stack([sums[:, -1], counts[:, -1], state[:, 2]], 1)


@dataclass(frozen=True, eq=False)
class LatchProbe(_MeanProbe, kind="latch"):
    """One decision per row, from the mean over its prompt: h from the prompt's last token on, 0 before.

    Args:
        inner: the probe of means.

    Example:
        >>> probe = LatchProbe(LinearProbe(torch.tensor([1.0]), torch.tensor(0.0)))
        >>> probe.score(torch.tensor([[[2.0], [-2.0]]]))[0, :, 0]
        tensor([0.0000, 0.5000])
    """

    by_prompt = True

    def _step(
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
    """The inner probe at the prompt's last token and at each token after it; 0 before.

    Args:
        inner: the probe of single positions.

    Example:
        >>> probe = LastProbe(LinearProbe(torch.tensor([1.0]), torch.tensor(0.0)))
        >>> probe.score(torch.tensor([[[2.0], [-2.0]]]))[0, :, 0]
        tensor([0.0000, 0.1192])
    """

    by_prompt = True

    @property
    def state_size(self) -> int:
        return 0

    def _step(
        self, x: torch.Tensor, mask: torch.Tensor, prompt: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.inner.score(x, mask) * writing(mask, prompt)[..., None], state


def writing(mask: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    """Which positions write a token: the last of each row's prompt, and those after it; float [batch, positions].

    Args:
        mask: float [batch, positions], 1 for positions that count.
        prompt: float [batch, positions], 1 for positions of the prompt.

    Example:
        >>> writing(mask=torch.tensor([[1.0, 1, 1]]), prompt=torch.tensor([[1.0, 1, 0]]))
        tensor([[0., 1., 1.]])
    """
    given = mask * prompt
    last = given * (given.flip(1).cumsum(1).flip(1) == 1)
    return torch.maximum(last, mask * (1 - prompt))
