"""Evidence of a gate: folds of prompts, held-out scores, and what they say of how far the gate is to be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...errors import DSASError, PromptError
from ...probes.linear import LOGIT_LIMIT

FOLDS = 5
#: a threshold is chosen at most this often for the evidence of one gate
THRESHOLDS = 50

#: the prompt of each source and of each control row
PromptIds = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True)
class Evidence:
    """How well a gate tells source from control on prompts that it was not fitted on.

    Args:
        balanced_accuracy: mean of the shares of source and of control rows that are classified correctly.
        auroc: area under the ROC curve.
        lower: the balanced accuracy minus one standard error of its binomial estimate over prompts.
        rank: what was chosen, 0 where there was nothing to choose.
        scaler: what was chosen, "none" where there was nothing to choose.
        source_prompts: how many there were.
        control_prompts: how many there were.

    Example:
        >>> Evidence(0.9, 0.95, 0.75, 5, "std", 24, 24).weight("soft")
        0.5
    """

    balanced_accuracy: float
    auroc: float
    lower: float
    rank: int | str
    scaler: str
    source_prompts: int
    control_prompts: int

    def weight(self, rule: str = "soft", threshold: float = 0.75) -> float:
        """The site's weight in [0, 1].

        Args:
            rule: "soft" clip(2 lower - 1, 0, 1), "threshold" 1 from `threshold` up, else 0, "none" 1.
            threshold: a balanced accuracy.

        Raises:
            DSASError: another rule.
        """
        if rule == "soft":
            return float(np.clip(2 * self.lower - 1, 0, 1))
        if rule == "threshold":
            return float(self.balanced_accuracy >= threshold)
        if rule == "none":
            return 1.0
        raise DSASError(f"site weight {rule!r}: expected soft, threshold or none")


def split_folds(
    source: torch.Tensor, control: torch.Tensor, groups: PromptIds | None, seed: int
) -> tuple[torch.Tensor, np.ndarray, np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Folds of rows, those of a prompt together.

    Args:
        source: [n, width].
        control: [m, width].
        groups: the prompt of each row; None where every row is its own.
        seed: of the folds.

    Returns:
        Rows of both sides [n + m, width], their labels (1 for source), their prompts, and (train, test) indices.

    Raises:
        PromptError: fewer prompts than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    rows = torch.cat([source, control])
    labels = np.repeat([1, 0], [len(source), len(control)])
    if groups is None:
        prompts = np.arange(len(rows))
    else:
        prompts = np.concatenate([np.asarray(groups[0]), np.asarray(groups[1]) + 1 + max(groups[0])])
    sizes = [len(np.unique(prompts[labels == label])) for label in (1, 0)]
    if min(sizes) < FOLDS:
        raise PromptError(
            f"a gate needs at least {FOLDS} prompts a side to cross-validate, found {sizes[0]} and {sizes[1]}"
        )
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    return rows, labels, prompts, list(splitter.split(rows, labels, prompts))


def evidence_from_scores(
    scores: np.ndarray, hits: np.ndarray, labels: np.ndarray, sizes: Sequence[int], rank: int | str, scaler: str
) -> Evidence:
    """The evidence of held-out scores.

    Args:
        scores: [rows].
        hits: [rows], whether each is classified correctly.
        labels: [rows], 1 for source, 0 for control.
        sizes: prompts of source and of control.
        rank: see `Evidence`.
        scaler: see `Evidence`.
    """
    from sklearn.metrics import roc_auc_score

    rates = [hits[labels == label].mean() for label in (1, 0)]
    accuracy = float(np.mean(rates))
    variance = sum(rate * (1 - rate) / size for rate, size in zip(rates, sizes, strict=True)) / 4
    floor = 0.25 / (2 * sum(sizes)) ** 2  # a perfect score on few prompts is still uncertain
    return Evidence(
        balanced_accuracy=accuracy,
        auroc=float(roc_auc_score(labels, scores)),
        lower=accuracy - float(np.sqrt(max(variance, floor))),
        rank=rank,
        scaler=scaler,
        source_prompts=sizes[0],
        control_prompts=sizes[1],
    )


def evidence_of(source: torch.Tensor, control: torch.Tensor) -> Evidence:
    """The evidence of held-out scores of prompts: their mean h, the dose that each would be given.

    A gate that is no classifier has no threshold in dose; each prompt is classified by the threshold that divides the
    others best.

    Args:
        source: scores of source prompts [n].
        control: scores of control prompts [m].

    Example:
        >>> evidence_of(torch.tensor([0.8, 0.9, 0.7]), torch.tensor([0.1, 0.0, 0.2])).balanced_accuracy
        1.0
    """
    scores = torch.cat([source, control]).double().numpy()
    labels = np.repeat([1, 0], [len(source), len(control)])
    left_out = np.concatenate([np.arange(len(source)), np.arange(len(control))]) % THRESHOLDS
    hits = np.zeros(len(scores), bool)
    for part in np.unique(left_out):
        here = left_out == part
        hits[here] = (scores[here] > _threshold(scores[~here], labels[~here])) == (labels[here] == 1)
    return evidence_from_scores(scores, hits, labels, (len(source), len(control)), 0, "none")


def by_prompt(values: torch.Tensor, prompts: Any) -> torch.Tensor:
    """The mean of each prompt's rows, in the order of the prompts' numbers, float64.

    Args:
        values: [n].
        prompts: the prompt of each row, [n].

    Example:
        >>> by_prompt(torch.tensor([1.0, 3.0, 5.0]), [0, 0, 1])
        tensor([2., 5.], dtype=torch.float64)
    """
    _, places = np.unique(np.asarray(prompts), return_inverse=True)
    where = torch.from_numpy(places)
    sums = torch.zeros(int(where.max()) + 1, dtype=torch.float64).index_add_(0, where, values.double())
    return sums / torch.bincount(where)


def logit_of(h: torch.Tensor) -> torch.Tensor:
    """The logit of h [n, 1 or width], of its mean over dimensions: [n]."""
    return h.mean(-1).double().logit().clamp(-LOGIT_LIMIT, LOGIT_LIMIT)


def _threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    """The threshold of the best balanced accuracy, source above it; between two scores, or infinite."""
    order = np.argsort(scores)
    ordered, positive = scores[order], labels[order] == 1
    below = np.cumsum(~positive) / max(1, (~positive).sum()) - np.cumsum(positive) / max(1, positive.sum())
    below[:-1][ordered[:-1] == ordered[1:]] = -np.inf  # no threshold goes between equal scores
    best = int(below.argmax())
    return float(ordered[best : best + 2].mean()) if below[best] > 0 and best + 1 < len(ordered) else np.inf
