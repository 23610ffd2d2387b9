"""What every gate has: `fit`, cross-validated evidence, and a threshold that can be placed on controls.

A gate is a subclass of `Gate` with a `line` and `_fit`; the rest follows from fitting it again on folds of prompts.
One that has something better overrides `cross_fit`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from ..errors import DSASError
from ..probes import Probe
from ..probes.linear import LOGIT_LIMIT
from ._rows import checked

FOLDS = 5
#: a threshold is chosen at most this often for the evidence of one gate
THRESHOLDS = 50

Fit = TypeVar("Fit", bound=Probe)
#: the prompt of each source and of each control row
Groups = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True)
class Evidence:
    """How well a gate tells source from control on prompts that it was not fitted on.

    `lower` is the balanced accuracy minus one standard error of its binomial estimate over prompts; `rank` and
    `scaler` are what was chosen, 0 and "none" where there was nothing to choose.
    """

    balanced_accuracy: float
    auroc: float
    lower: float
    rank: int | str
    scaler: str
    source_prompts: int
    control_prompts: int

    def weight(self, rule: str = "soft", threshold: float = 0.75) -> float:
        """The site's weight: "soft" clip(2 lower - 1, 0, 1), "threshold" 1 from `threshold` up, "none" 1."""
        if rule == "soft":
            return float(np.clip(2 * self.lower - 1, 0, 1))
        if rule == "threshold":
            return float(self.balanced_accuracy >= threshold)
        if rule == "none":
            return 1.0
        raise DSASError(f"site weight {rule!r}: expected soft, threshold or none")


@dataclass(frozen=True)
class Fitted(Generic[Fit]):
    """A gate, its evidence, and what probes say of rows whose prompts they had not seen.

    `source_logits` [n] and `control_logits` [m] are logits of h, of its mean over dimensions where it differs by
    dimension. `control_h(shift)` is h of the control rows, [m, 1] or [m, width], with `shift` taken off the evidence.
    """

    probe: Fit
    evidence: Evidence
    source_logits: torch.Tensor
    control_logits: torch.Tensor
    control_h: Callable[[float], torch.Tensor]


class RefusedError(DSASError):
    """A gate that does not earn its place at a site; `fitted` is what it came to."""

    def __init__(self, message: str, fitted: Fitted[Any]) -> None:
        super().__init__(message)
        self.fitted = fitted


class Gate:
    """Base of every gate. Settings are the fields of its dataclass, and can be given by name: "quantile(q=0.95)".

    `rows` tells what `learn` fits it on, "positions" (every one a row) or "pooled" (means over positions); it is read
    at positions in either case. `looks` is False for gates that are the same everywhere: their site weight is 1.
    `whole` is True where h also depends on the row's other positions in the call, which a text does not have yet.
    `once` is True for one decision per row, by its mean, at the site that tells best: `learn` lets it gate that site
    and those behind it. `text_form` is the form in which `learn` has the gate read texts, unless the recipe says.
    `settled` is True for gates of published methods that place their threshold themselves and know no partial trust:
    `Recipe.control_h` does not move it, and the site weight "soft" is 1 where balanced accuracy is above chance by
    three standard errors, else 0.
    """

    line: str = ""
    rows: str = "positions"
    looks: bool = True
    whole: bool = False
    once: bool = False
    text_form: str = "token"
    settled: bool = False

    def fit(self, source: torch.Tensor, control: torch.Tensor) -> Probe:
        """Fit on rows [n, width] of source (h = 1) and control (h = 0); float64 inside, the source's dtype out."""
        positive, negative = checked("source", source), checked("control", control, source.shape[-1])
        return _stored(self._fit(positive, negative), source.dtype)

    def _fit(self, source: torch.Tensor, control: torch.Tensor) -> Probe:
        """The probe of checked float64 rows."""
        raise NotImplementedError

    def reading(self, probe: Any, form: str) -> Probe:
        """A fitted probe as it reads in a form of `gating`."""
        found: Probe = probe
        return found

    def cross_fit(
        self, source: torch.Tensor, control: torch.Tensor, *, groups: Groups | None = None, seed: int = 0
    ) -> Fitted[Any]:
        """As `fit`, with evidence from fitting again without a fifth of the prompts, five times.

        Args:
            groups: the prompt of each source and each control row, so that a prompt's rows share a fold; by default
                every row is its own.
            seed: of the folds.
        """
        positive, negative = checked("source", source), checked("control", control, source.shape[-1])
        rows, labels, prompts, folds = folded(positive, negative, groups, seed)
        held_out = torch.zeros(len(rows), dtype=torch.float64)
        parts: list[tuple[Probe, torch.Tensor, torch.Tensor]] = []  # probe, places in control, its evidence there
        for train, test in folds:
            probe = self._fit(rows[train[labels[train] == 1]], rows[train[labels[train] == 0]])
            z = probe.logit(rows[test])
            held_out[test] = logit_of(probe.link(z))
            kept = labels[test] == 0
            parts.append((probe, torch.from_numpy(test[kept] - len(positive)), z[torch.from_numpy(kept)]))

        def control_h(shift: float) -> torch.Tensor:
            said = torch.cat([probe.link(z - shift) for probe, _, z in parts])
            return torch.empty_like(said).index_copy_(0, torch.cat([places for _, places, _ in parts]), said)

        logits = held_out[: len(positive)], held_out[len(positive) :]
        means = [
            by_prompt(side.sigmoid(), prompts[labels == label]) for side, label in zip(logits, (1, 0), strict=True)
        ]
        probe = _stored(self._fit(positive, negative), source.dtype)
        return Fitted(probe, evidence_of(*means), *logits, control_h)

    def weight(self, evidence: Evidence, rule: str) -> float:
        """The site's weight, see `Evidence.weight`; 1 for a gate that does not look."""
        if not self.looks:
            return 1.0
        if self.settled and rule == "soft":
            error = evidence.balanced_accuracy - evidence.lower
            return float(evidence.balanced_accuracy - 3 * error > 0.5)
        return evidence.weight(rule)


def folded(
    source: torch.Tensor, control: torch.Tensor, groups: Groups | None, seed: int
) -> tuple[torch.Tensor, np.ndarray, np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Rows of both sides, their labels (1 for source), their prompts, and folds that keep a prompt's rows together.

    Raises:
        DSASError: fewer prompts than folds.
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
        raise DSASError(
            f"a gate needs at least {FOLDS} prompts a side to cross-validate, found {sizes[0]} and {sizes[1]}"
        )
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    return rows, labels, prompts, list(splitter.split(rows, labels, prompts))


def judged(
    scores: np.ndarray, hits: np.ndarray, labels: np.ndarray, sizes: Sequence[int], rank: int | str, scaler: str
) -> Evidence:
    """The evidence of held-out scores, and of whether each was told; `sizes` are the prompts of source and control."""
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
    """The evidence of held-out scores of prompts, [n] and [m]: their mean h, the dose that each would be given.

    A gate that is no classifier has no threshold in dose; each prompt is told by the one that divides the others best.
    """
    scores = torch.cat([source, control]).double().numpy()
    labels = np.repeat([1, 0], [len(source), len(control)])
    left_out = np.concatenate([np.arange(len(source)), np.arange(len(control))]) % THRESHOLDS
    hits = np.zeros(len(scores), bool)
    for part in np.unique(left_out):
        here = left_out == part
        hits[here] = (scores[here] > _threshold(scores[~here], labels[~here])) == (labels[here] == 1)
    return judged(scores, hits, labels, (len(source), len(control)), 0, "none")


def by_prompt(values: torch.Tensor, prompts: Any) -> torch.Tensor:
    """The mean of values [n] of each prompt's rows, in the order of the prompts' numbers."""
    _, places = np.unique(np.asarray(prompts), return_inverse=True)
    where = torch.from_numpy(places)
    sums = torch.zeros(int(where.max()) + 1, dtype=torch.float64).index_add_(0, where, values.double())
    return sums / torch.bincount(where)


def logit_of(h: torch.Tensor) -> torch.Tensor:
    """The logit of h [n, 1 or width], of its mean over dimensions: [n]."""
    return h.mean(-1).double().logit().clamp(-LOGIT_LIMIT, LOGIT_LIMIT)


def _stored(probe: Probe, dtype: torch.dtype) -> Probe:
    return probe.map_tensors(lambda tensor: tensor.to(dtype))


def _threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    """The score above which to say source, of the best balanced accuracy; between two scores, or infinite."""
    order = np.argsort(scores)
    ordered, shown = scores[order], labels[order] == 1
    below = np.cumsum(~shown) / max(1, (~shown).sum()) - np.cumsum(shown) / max(1, shown.sum())
    below[:-1][ordered[:-1] == ordered[1:]] = -np.inf  # no threshold goes between equal scores
    best = int(below.argmax())
    return float(ordered[best : best + 2].mean()) if below[best] > 0 and best + 1 < len(ordered) else np.inf
