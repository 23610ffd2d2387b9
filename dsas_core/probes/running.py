"""Probes with state, of texts that are generated token by token: the mean logit so far, in O(1) numbers per row.

The mean of a linear probe's logits is its logit of the mean activation, so a probe that was fitted on pooled
activations reads every prefix of a text exactly as it was fitted (prefix pooling, as in YOPO). `LastProbe` has no
state, but depends on where the prompt ends, as they do. CAST's latch is in `condition`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Self

import torch

from ..utils.tensorclass import LARGEST_SLOPE, Holds
from .base import ComplementProbe, ProbeOfMeans
from .linear import LOGIT_LIMIT, LinearProbe

#: tokens of logit 0 that a mean begins with in `TextProbe`, so that the first of a text do not decide
PRIOR_TOKENS = 8
#: `TextProbe` is closed where the sigmoid is lower, and open where it is that near to 1
SURE = 0.05

#: h [batch, positions, 1], and the state after these positions
Scored = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, eq=False)
class RunningProbe(ProbeOfMeans):
    """Base of the probes whose h depends on earlier positions. The `steer()` call that uses one owns its state.

    The state is float32 [batch, state_size], zeros before a text begins.

    Args:
        inner: the probe of activations, or of their means.

    Attributes:
        by_prompt: whether h depends on where the prompt ends.
    """

    by_prompt: ClassVar[bool] = False

    @property
    def state_size(self) -> int:
        """Numbers of state per row; 3 are the sum of logits, the number of positions, and a latch's decision."""
        return 3

    def step(
        self, x: torch.Tensor, mask: torch.Tensor | None, prompt: torch.Tensor | None, state: torch.Tensor
    ) -> Scored:
        """Score the positions of one call, which follow those that `state` holds.

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

    def _step(self, x: torch.Tensor, mask: torch.Tensor, prompt: torch.Tensor, state: torch.Tensor) -> Scored:
        raise NotImplementedError

    def score(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """h of a whole text, every position of it the prompt's: x [batch, positions, width]."""
        return self.step(x, mask, None, torch.zeros(len(x), self.state_size, device=x.device))[0]

    def complement(self) -> Self:
        """The same with the opposite decision: 1 - h where it decides, 0 where it does not. The state is the same."""
        return replace(self, inner=ComplementProbe(self.inner))

    @property
    def locator(self) -> None:
        return None


@dataclass(frozen=True, eq=False)
class MeanLogitProbe(RunningProbe):
    """Base of the probes that decide by mean logits.

    Args:
        inner: the probe of means.
    """

    inner: LinearProbe

    def complement(self) -> Self:
        """As above: 1 - sigmoid(z) = sigmoid(-z), also of a mean of logits."""
        return replace(self, inner=LinearProbe(-self.inner.weight, -self.inner.bias))

    def _sums(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Sums of logits from the first position up to each, [batch, positions]."""
        return (self.inner.logit(x)[..., 0].float() * mask).cumsum(1)

    def _decide(self, mean: torch.Tensor) -> torch.Tensor:
        return mean.clamp(-LOGIT_LIMIT, LOGIT_LIMIT).sigmoid()


@dataclass(frozen=True, eq=False)
class PrefixProbe(MeanLogitProbe, kind="prefix"):
    """h at each position is the inner probe's score of the mean over the positions up to it.

    Args:
        inner: the probe of means.

    Example:
        >>> probe = PrefixProbe(LinearProbe(torch.tensor([1.0]), torch.tensor(0.0)))
        >>> probe.score(torch.tensor([[[2.0], [-2.0]]]))[0, :, 0]  # one row, two positions
        tensor([0.8808, 0.5000])
    """

    def _step(self, x: torch.Tensor, mask: torch.Tensor, prompt: torch.Tensor, state: torch.Tensor) -> Scored:
        sums, counts = state[:, :1] + self._sums(x, mask), state[:, 1:2] + mask.cumsum(1)
        h = self._decide(sums / counts.clamp_min(1))
        return h[..., None], torch.stack([sums[:, -1], counts[:, -1], state[:, 2]], 1)


@dataclass(frozen=True, eq=False)
class TextProbe(MeanLogitProbe, kind="text"):
    """One decision about the text so far: its strongest token and, to a lesser degree, the mean of its tokens.

    With the inner probe's logits z_1 … z_t of the tokens so far,

        score_t = max(z_1 … z_t) + (z_1 + … + z_t) / (t + 8),   h_t = sigmoid((score_t - threshold) / temperature),

    stretched so that what is below 0.05 is 0 and what is above 0.95 is 1: other texts stay bit for bit as they are.

    A few words make a text toxic, which a mean forgets; a mean keeps one odd token from deciding alone. All positions
    of a prompt have the h of its end: a text is steered from its beginning, or not at all. Behind the prompt each token
    has its own, or, where what is written does not count, that of the prompt.

    Args:
        inner: the probe of means, read at single tokens.
        threshold: [], the score where h is 0.5.
        temperature: [], the change of the score that changes the logit of h by 1; negative for the opposite decision.
        written: [], 1 where tokens behind the prompt count as well, 0 where the prompt decides alone.

    Example:
        >>> inner, one = LinearProbe(torch.tensor([1.0]), torch.tensor(0.0)), torch.tensor(1.0)
        >>> probe = TextProbe(inner, threshold=4 * one, temperature=one, written=one)
        >>> probe.score(torch.tensor([[[-9.0], [5.0], [0.0]]]))[0, :, 0]  # all of the prompt
        tensor([0.6710, 0.6710, 0.6710])
    """

    threshold: Annotated[torch.Tensor, Holds(high=LARGEST_SLOPE)]
    temperature: Annotated[torch.Tensor, Holds(zero=False)]
    written: Annotated[torch.Tensor, Holds(high=1, low=0)]

    def complement(self) -> Self:
        return replace(self, temperature=-self.temperature)

    def with_lower_bias(self, shift: float) -> Self:
        return replace(self, threshold=self.threshold + shift)

    def link(self, z: torch.Tensor) -> torch.Tensor:
        """h of a score."""
        h = ((z - self.threshold) / self.temperature).sigmoid()
        return ((h - SURE) / (1 - 2 * SURE)).clamp(0, 1)

    def score_sample(self, mean: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self.score(positions[None])[0, :, 0]

    def _step(self, x: torch.Tensor, mask: torch.Tensor, prompt: torch.Tensor, state: torch.Tensor) -> Scored:
        counted = mask * torch.maximum(prompt, self.written.to(mask))
        score, after = text_scores(self.inner.logit(x)[..., 0].float(), counted, state)
        in_prompt = mask * prompt
        end = (in_prompt * torch.arange(1, mask.shape[1] + 1, device=x.device)).argmax(1, keepdim=True)
        score = torch.where(in_prompt > 0, score.gather(1, end), score)
        return self.link(score)[..., None], after


def text_scores(
    logits: torch.Tensor, mask: torch.Tensor | None = None, state: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The scores of `TextProbe` at each position, by what was read up to it.

    Args:
        logits: z of each position, float32 [batch, positions].
        mask: float [batch, positions], 1 for positions that count; None counts all.
        state: [batch, 3], the sum of logits, the number of positions, and the highest logit over -LOGIT_LIMIT; None
            where a text begins.

    Returns:
        Scores [batch, positions], and the state after these positions.

    Example:
        >>> text_scores(torch.tensor([[8.0, 1.0]]))[0]
        tensor([[8.8889, 8.9000]])
    """
    mask = torch.ones_like(logits) if mask is None else mask
    state = logits.new_zeros(len(logits), 3) if state is None else state
    sums, counts = state[:, :1] + (logits * mask).cumsum(1), state[:, 1:2] + mask.cumsum(1)
    above = torch.maximum(state[:, 2:], ((logits + LOGIT_LIMIT) * mask).cummax(1).values)
    score = above - LOGIT_LIMIT + sums / (counts + PRIOR_TOKENS)
    return score, torch.stack([sums[:, -1], counts[:, -1], above[:, -1]], 1)


@dataclass(frozen=True, eq=False)
class PromptLatch(RunningProbe):
    """Base of the probes with one decision per row, of a mean over its prompt.

    A subclass defines `_sum`, over the positions that a mask counts, [batch, k], and `_decide`, h of a mean,
    [batch, 1]. The state is that sum over the prompt so far, the number of its positions, and the decision.

    Args:
        inner: the probe of means.
    """

    by_prompt = True

    def _sum(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _decide(self, mean: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _step(self, x: torch.Tensor, mask: torch.Tensor, prompt: torch.Tensor, state: torch.Tensor) -> Scored:
        counted = mask * prompt
        count = counted.sum(1, keepdim=True)
        sums, counts = state[:, :-2] + self._sum(x, counted), state[:, -2:-1] + count
        decision = torch.where(count > 0, self._decide(sums / counts.clamp_min(1)), state[:, -1:])
        h = decision * generating_positions(mask, prompt)
        return h[..., None], torch.cat([sums, counts, decision], 1)


@dataclass(frozen=True, eq=False)
class LatchProbe(MeanLogitProbe, PromptLatch, kind="latch"):
    """One decision per row, from the mean over its prompt: h from the prompt's last token on, 0 before.

    Args:
        inner: the probe of means.

    Example:
        >>> probe = LatchProbe(LinearProbe(torch.tensor([1.0]), torch.tensor(0.0)))
        >>> probe.score(torch.tensor([[[2.0], [-2.0]]]))[0, :, 0]
        tensor([0.0000, 0.5000])
    """

    def _sum(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self._sums(x, mask)[:, -1:]


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

    def _step(self, x: torch.Tensor, mask: torch.Tensor, prompt: torch.Tensor, state: torch.Tensor) -> Scored:
        return self.inner.score(x, mask) * generating_positions(mask, prompt)[..., None], state


def generating_positions(mask: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    """Positions whose output is a generated token: the last of each row's prompt, and those after it.

    Args:
        mask: float [batch, positions], 1 for positions that count.
        prompt: float [batch, positions], 1 for positions of the prompt.

    Returns:
        Float [batch, positions], 1 for these positions.

    Example:
        >>> generating_positions(mask=torch.tensor([[1.0, 1, 1]]), prompt=torch.tensor([[1.0, 1, 0]]))
        tensor([[0., 1., 1.]])
    """
    counted = mask * prompt
    last = counted * (counted.flip(1).cumsum(1).flip(1) == 1)
    return torch.maximum(last, mask * (1 - prompt))
