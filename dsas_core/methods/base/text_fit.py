"""Where a gate that decides about whole texts has its threshold, and how well it decides: by texts, not by tokens.

A probe that was fitted on means is read at every token, and the text is judged by its strongest and by its mean token
(`probes.TextProbe`). How often that is wrong can only be told on whole texts that the probe was not fitted on, so each
fold's probe reads the tokens of the other folds' texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ...probes import LinearProbe, TextProbe
from ...probes.running import text_scores
from .cross_validation import Evidence, LabelledRows, evidence_of
from .gate_fit import GateFit

#: quantile of control texts' scores at which h is to be `NEARLY_CLOSED` at most
USUAL = 0.9
#: logit of h there
NEARLY_CLOSED = -4.0
#: share of control texts from whose scores the tail of all is extrapolated
TAIL = 0.05
#: least temperature
SHARPEST = 0.05

#: fits a probe on some rows [n, width], whose labels are given (1 for source)
FitRows = Callable[[torch.Tensor, np.ndarray], LinearProbe]


def held_out_logits(
    data: LabelledRows, source: Sequence[torch.Tensor], control: Sequence[torch.Tensor], fit: FitRows
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Logits of the tokens of each text, by a probe that was fitted without it.

    Args:
        data: means to fit on, a row for each text.
        source: tokens of each source text, [tokens, width]; texts in the order of the rows.
        control: tokens of each control text.
        fit: fits a probe.

    Returns:
        Logits of each source text and of each control text, float32 [tokens].
    """
    rows, labels, _, folds = data.split()
    tokens = [*source, *control]
    logits: dict[int, torch.Tensor] = {}
    for train, test in folds:
        probe = fit(rows[train], labels[train])
        logits |= {int(i): probe.logit(tokens[i].to(probe.weight))[:, 0].float() for i in test}
    ordered = [logits[i] for i in range(len(tokens))]
    return ordered[: len(source)], ordered[len(source) :]


@dataclass(frozen=True)
class TextThreshold:
    """Places the threshold and the temperature of a `TextProbe` on texts that its probe was not fitted on.

    Args:
        source: score of each held-out source text at its end, [n].
        control: score of each held-out control text at its end, [m].

    Example:
        >>> threshold = TextThreshold(torch.tensor([9.0, 8.0]), torch.arange(5.0))
        >>> threshold.place(0.25), threshold.shares(0.25)
        ((4.0, 0.1), (0.0, 0.0))
    """

    source: torch.Tensor
    control: torch.Tensor

    @classmethod
    def of_logits(cls, source: Sequence[torch.Tensor], control: Sequence[torch.Tensor]) -> TextThreshold:
        """From the logits of each text's tokens, [tokens]."""
        return cls(*(torch.stack([text_scores(z[None])[0][0, -1] for z in side]) for side in (source, control)))

    def place(self, share: float | None) -> tuple[float, float]:
        """Threshold and temperature, so that about a share of control texts is above the threshold.

        Args:
            share: of control texts; None for the threshold halfway between the medians of the two sides.

        Returns:
            The threshold, and the temperature at which h is below 0.02 in nine of ten control texts.
        """
        middle = float((self.source.median() + self.control.median()) / 2)
        threshold = middle if share is None else tail_quantile(self.control, share)
        usual = float(self.control.quantile(USUAL))
        return threshold, max((usual - threshold) / NEARLY_CLOSED, SHARPEST)

    def shares(self, share: float | None) -> tuple[float, float]:
        """Shares of source texts that are missed, and of control texts that are touched, where `place` puts it."""
        threshold, _ = self.place(share)
        return float((self.source <= threshold).float().mean()), float((self.control > threshold).float().mean())

    @property
    def evidence(self) -> Evidence:
        """The evidence of the scores, whatever the threshold."""
        return evidence_of(self.source, self.control)


def tail_quantile(scores: torch.Tensor, share: float) -> float:
    """The score that a share of scores exceeds, by an exponential tail through the median and the highest twentieth.

    Of a few dozen texts the highest two or three scores, which may be of texts with a wrong label, would else decide.

    Args:
        scores: [n].
        share: above 0, below 0.5.

    Example:
        >>> round(tail_quantile(torch.arange(101.0), 0.05), 1), round(tail_quantile(torch.arange(101.0), 0.02), 1)
        (95.0, 112.9)
    """
    median, high = (float(scores.quantile(q)) for q in (0.5, 1 - TAIL))
    return median + (high - median) * math.log(0.5 / share) / math.log(0.5 / TAIL)


def fit_text_gate(
    linear: LinearProbe, threshold: TextThreshold, rank: int | str, scaler: str, share: float, written: bool
) -> GateFit:
    """The fit of a gate of form "text" or "message".

    Args:
        linear: fitted on means of all texts.
        threshold: of held-out texts.
        rank: of the linear probe, for the evidence.
        scaler: of the linear probe, for the evidence.
        share: of control texts that the gate may touch.
        written: whether what is written behind a prompt counts as well.
    """

    def place_at(target: float | None) -> tuple[TextProbe, torch.Tensor]:
        where, temperature = (torch.tensor(value) for value in threshold.place(None if target is None else share))
        h = ((threshold.control - where) / temperature).sigmoid()
        return TextProbe(linear, where, temperature, torch.tensor(float(written))), h[:, None]

    where, temperature = threshold.place(share)
    source, control = (
        ((side - where) / temperature).double().sigmoid() for side in (threshold.source, threshold.control)
    )
    evidence = replace(threshold.evidence, rank=rank, scaler=scaler)
    return GateFit(place_at, evidence, (source, control), per_row=True, shares=threshold.shares(share))
