"""Evidence of a gate: folds of prompts, scores of held-out prompts, and how far they allow to trust the gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from ...errors import DSASError, PromptError
from ...probes.linear import LOGIT_LIMIT
from .checks import check_rows

FOLDS = 5
#: a threshold is chosen at most this often for the evidence of one gate
THRESHOLDS = 50

#: the prompt of each source and of each control row
PromptIds = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True)
class Evidence:
    """How well a gate separates source from control prompts that it was not fitted on.

    Args:
        balanced_accuracy: mean of the shares of source and of control rows that are classified correctly.
        auroc: area under the ROC curve.
        lower: the balanced accuracy minus one standard error of its binomial estimate over prompts.
        rank: the projection that was chosen, 0 where there was nothing to choose.
        scaler: the scaler that was chosen, "none" where there was nothing to choose.
        source_prompts: number of source prompts.
        control_prompts: number of control prompts.

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


@dataclass(frozen=True)
class LabelledRows:
    """Rows that a gate is fitted on, labelled by their side.

    Args:
        source: [n, width], where h is to be 1.
        control: [m, width], where h is to be 0.
        groups: the prompt of each source and of each control row, so that a prompt's rows share a fold; None where
            every row is a prompt of its own.
        seed: of the folds.

    Example:
        >>> LabelledRows(torch.zeros(4, 2), torch.ones(3, 2), groups=([0, 0, 1, 1], [0, 1, 2])).sizes
        [2, 3]
    """

    source: torch.Tensor
    control: torch.Tensor
    groups: PromptIds | None = None
    seed: int = 0

    @property
    def prompts(self) -> PromptIds:
        """The prompt of each source row and of each control row."""
        return self.groups or (range(len(self.source)), range(len(self.control)))

    @property
    def sizes(self) -> list[int]:
        """Numbers of source and of control prompts."""
        return [len(np.unique(np.asarray(prompts))) for prompts in self.prompts]

    def split(self) -> tuple[torch.Tensor, np.ndarray, np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
        """Folds of rows, those of a prompt together.

        Returns:
            Rows of both sides, source first, float64 [n + m, width]; their labels (1 for source); their prompts, those
            of control numbered after those of source; and (train, test) indices.

        Raises:
            DSASError: rows that are not finite, or not of one width.
            PromptError: fewer prompts of a side than folds.
        """
        rows = torch.cat(check_rows(source=self.source, control=self.control))
        labels = np.repeat([1, 0], [len(self.source), len(self.control)])
        source, control = self.prompts
        prompts = np.concatenate([np.asarray(source), np.asarray(control) + 1 + max(source)])
        if min(self.sizes) < FOLDS:
            counts = " and ".join(map(str, self.sizes))
            raise PromptError(f"a gate needs at least {FOLDS} prompts a side to cross-validate, found {counts}")
        return rows, labels, prompts, _folds(tuple(labels.tolist()), tuple(prompts.tolist()), self.seed)


@lru_cache(maxsize=4)
def _folds(labels: tuple[int, ...], prompts: tuple[int, ...], seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(train, test) indices of rows; the same rows of one site after another ask for the same folds."""
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(labels)), labels, prompts))


def evidence_from_scores(
    scores: np.ndarray, hits: np.ndarray, labels: np.ndarray, sizes: Sequence[int], rank: int | str, scaler: str
) -> Evidence:
    """The evidence of held-out scores.

    Args:
        scores: [rows].
        hits: [rows], whether each is classified correctly.
        labels: [rows], 1 for source, 0 for control.
        sizes: numbers of source and of control prompts.
        rank: see `Evidence`.
        scaler: see `Evidence`.
    """
    from sklearn.metrics import roc_auc_score

    rates = [hits[labels == label].mean() for label in (1, 0)]
    accuracy = float(np.mean(rates))
    variance = sum(rate * (1 - rate) / size for rate, size in zip(rates, sizes, strict=True)) / 4
    floor = 0.25 / (2 * sum(sizes)) ** 2  # a perfect score on few prompts is still uncertain
    lower = accuracy - float(np.sqrt(max(variance, floor)))
    return Evidence(accuracy, float(roc_auc_score(labels, scores)), lower, rank, scaler, *sizes)


def evidence_of(source: torch.Tensor, control: torch.Tensor) -> Evidence:
    """The evidence of scores of held-out prompts: the mean h of each, or the highest logit.

    Nothing says where such a score's threshold is; each prompt is classified by the threshold that divides the
    others best.

    Args:
        source: scores of source prompts [n].
        control: scores of control prompts [m].

    Example:
        >>> evidence_of(torch.tensor([0.8, 0.9, 0.7]), torch.tensor([0.1, 0.0, 0.2])).balanced_accuracy
        1.0
    """
    scores = torch.cat([source, control]).double().numpy()
    sizes = len(source), len(control)
    labels = np.repeat([1, 0], sizes)
    parts = np.concatenate([np.arange(size) for size in sizes]) % THRESHOLDS
    hits = np.zeros(len(scores), bool)
    for part in np.unique(parts):
        held_out = parts == part
        threshold = _threshold(scores[~held_out], labels[~held_out])
        hits[held_out] = (scores[held_out] > threshold) == (labels[held_out] == 1)
    return evidence_from_scores(scores, hits, labels, sizes, 0, "none")


def mean_by_prompt(values: torch.Tensor, prompts: Any) -> torch.Tensor:
    """The mean over each prompt's rows, in the order of the prompts' numbers, float64.

    Args:
        values: [n].
        prompts: the prompt of each row, [n].

    Example:
        >>> mean_by_prompt(torch.tensor([1.0, 3.0, 5.0]), [0, 0, 1])
        tensor([2., 5.], dtype=torch.float64)
    """
    return _reduce_by_prompt(values, prompts, "mean")


def highest_by_prompt(values: torch.Tensor, prompts: Any) -> torch.Tensor:
    """As `mean_by_prompt`, the highest of each prompt's rows.

    Args:
        values: [n].
        prompts: the prompt of each row, [n].

    Example:
        >>> highest_by_prompt(torch.tensor([1.0, 3.0, 5.0]), [0, 0, 1])
        tensor([3., 5.], dtype=torch.float64)
    """
    return _reduce_by_prompt(values, prompts, "amax")


def _reduce_by_prompt(values: torch.Tensor, prompts: Any, how: str) -> torch.Tensor:
    """A reduction of `Tensor.scatter_reduce` over each prompt's rows, float64."""
    numbers, places = np.unique(np.asarray(prompts), return_inverse=True)
    empty = torch.zeros(len(numbers), dtype=torch.float64)
    return empty.scatter_reduce(0, torch.from_numpy(places), values.double(), how, include_self=False)


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
