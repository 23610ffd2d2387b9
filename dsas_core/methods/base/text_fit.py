"""Where a gate that decides about whole texts has its threshold, and how well gates decide: by texts, not by tokens.

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
from .gate_fit import GateFit, GateRows, HByShift, place_threshold
from .map_rows import split_rows

#: quantile of control texts' scores at which h is to be `NEARLY_CLOSED` at most
USUAL = 0.9
#: logit of h there
NEARLY_CLOSED = -4.0
#: share of control texts from whose scores the tail of all is extrapolated
TAIL = 0.05
#: share of held-out source texts beyond which a gate touches more controls than was asked for, to miss fewer, and the
#: share of controls that it touches at most for that
MISSED, TOUCHED = 0.25, 0.1
#: least temperature
SHARPEST = 0.05

#: fits a probe on some texts, given by their indices, [n]; source texts come first
FitTexts = Callable[[np.ndarray], LinearProbe]


def held_out_logits(
    data: LabelledRows, source: GateRows, control: GateRows, fit: FitTexts
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Logits of the tokens of each text, by a probe that was fitted without it.

    Args:
        data: means of the texts, a row for each.
        source: activations of the source texts, in the order of the rows.
        control: those of the control texts.
        fit: fits a probe.

    Returns:
        Logits of each source text and of each control text, float32 [tokens].
    """
    _, _, _, folds = data.split()
    tokens = [text for rows in (source, control) for _, text in split_rows(rows)]
    logits: dict[int, torch.Tensor] = {}
    for train, test in folds:
        probe = fit(train)
        logits |= {int(i): probe.logit(tokens[i].to(probe.weight))[:, 0].float() for i in test}
    ordered = [logits[i] for i in range(len(tokens))]
    return ordered[: len(data.source)], ordered[len(data.source) :]


@dataclass(frozen=True)
class TextThreshold:
    """Places the threshold and the temperature of a `TextProbe` on texts that its probe was not fitted on.

    Args:
        source: score of each held-out source text at its end, [n].
        control: score of each held-out control text at its end, [m].

    Example:
        >>> threshold = TextThreshold(torch.tensor([9.0, 8.0]), torch.arange(5.0))
        >>> [round(value, 2) for value in (*threshold.place(0.25), *threshold.shares(0.25))]
        [2.54, 0.05, 0.0, 0.4]
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
            share: of control texts, or more, up to `TOUCHED`, where the gate would else miss more than `MISSED` of the
                source texts; None for the threshold halfway between the medians of the two sides.

        Returns:
            The threshold, and the temperature at which h is below 0.02 in nine of ten control texts.
        """
        middle = float((self.source.median() + self.control.median()) / 2)
        threshold = middle
        if share is not None:  # a gate that misses most is of no use, however few controls it touches
            fewest, most = (tail_quantile(self.control, touched) for touched in (share, max(share, TOUCHED)))
            threshold = min(fewest, max(most, float(self.source.quantile(MISSED))))
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
        probe = TextProbe(linear, where, temperature, torch.tensor(float(written)))
        return probe, probe.link(threshold.control)[:, None]

    h = place_at(share)[0].link
    scores = h(threshold.source).double(), h(threshold.control).double()
    evidence = replace(threshold.evidence, rank=rank, scaler=scaler)
    return GateFit(place_at, evidence, scores, per_row=True, shares=threshold.shares(share), sharp=True)


# ---- gates that decide token by token: evidence of whole texts -------------------------------------------------------


def highest_mean(logits: torch.Tensor) -> torch.Tensor:
    """The highest mean of a text's logits so far, at which a gate of form "prefix" steers it most.

    Args:
        logits: of its tokens, [tokens].

    Example:
        >>> highest_mean(torch.tensor([1.0, 5.0, -9.0]))
        tensor(3.)
    """
    return (logits.cumsum(0) / torch.arange(1, len(logits) + 1)).max()


def judge_by_prompts(
    fit: GateFit,
    source: torch.Tensor,
    control: torch.Tensor,
    control_h: HByShift,
    target: float | None,
    least: float = 0.0,
) -> GateFit:
    """The fit with evidence of whole prompts, as a prompt is steered where its highest logit is above the threshold.

    A probe of means may tell whole texts apart very well and still open somewhere in most controls, or nowhere in most
    sources: its evidence then promises what the gate does not keep.

    Args:
        fit: with evidence of means.
        source: the highest logit of each held-out source prompt, [n].
        control: that of each held-out control prompt, [m].
        control_h: held-out h of controls by shift.
        target: mean h of controls for which the threshold is placed, see `place_threshold`.
        least: the least shift of the threshold, see `make_placer`.

    Example:
        >>> from dsas_core.methods.base.gate_fit import h_by_shift
        >>> perfect = Evidence(1.0, 1.0, 0.9, 5, "std", 2, 2)
        >>> means = GateFit(lambda target: ..., perfect, (torch.ones(2), torch.zeros(2)))
        >>> highest = torch.tensor([9.0, 8.0]), torch.tensor([-1.0, 8.5])
        >>> judged = judge_by_prompts(means, *highest, h_by_shift(torch.zeros(1)), None)
        >>> judged.evidence.auroc, judged.shares
        (0.75, (0.0, 0.5))
    """
    shift = place_threshold(control_h, target, least)
    shares = float((source <= shift).double().mean()), float((control > shift).double().mean())
    evidence = replace(evidence_of(source, control), rank=fit.evidence.rank, scaler=fit.evidence.scaler)
    return replace(fit, evidence=evidence, shares=shares)
