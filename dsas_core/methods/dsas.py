"""The DSAS gate: standardise or not -> project -> logistic regression, folded into one weight and bias.

"Dynamically Scaled Activation Steering", arXiv 2512.03661, in our implementation: the paper projects on 5 principal
components (`rank=5, scaler="none"`); here scaler and projection are chosen per site by cross-validation, because few
components lose a concept that other variation outweighs. Accuracy is always of held-out prompts, never in-sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..errors import DSASError
from ..probes import LinearProbe, fold
from ._gate import Evidence, Fitted, Gate, Groups, folded, judged
from ._rows import checked

#: projections to choose among: ranks of principal components, and "lda", the shrunken discriminant (uses the labels)
CANDIDATE_RANKS: tuple[int | str, ...] = (5, 16, 48, "lda")
CANDIDATE_SCALERS = ("none", "std")


class DSAS(Gate):
    """The logistic gate of DSAS."""

    rows = "pooled"
    line = "logistic regression of source against control activations, folded (arXiv 2512.03661)"

    def fit(
        self,
        source: torch.Tensor,
        control: torch.Tensor,
        *,
        rank: int | str = "auto",
        scaler: str = "auto",
        groups: Groups | None = None,
        seed: int = 0,
    ) -> LinearProbe:
        """Fit on rows [n, width] of source (h = 1) and control (h = 0).

        Args:
            rank: principal components to keep, "lda", or "auto": chosen by cross-validation.
            scaler: "std", "none", or "auto".
            groups: the prompt of each source and each control row, so that a prompt's rows share a fold; by default
                every row is its own.
            seed: of the folds.

        Returns:
            A LinearProbe, `weight` [width] and `bias` [], in the dtype of the source. With both rank and scaler given
            there is nothing to choose, and nothing is cross-validated.
        """
        if rank != "auto" and scaler != "auto":
            positive, negative = checked("source", source), checked("control", control, source.shape[-1])
            labels = np.repeat([1, 0], [len(positive), len(negative)])
            weight, bias = _fit_folded(torch.cat([positive, negative]).numpy(), labels, rank, scaler)
            return LinearProbe(weight.to(source.dtype), bias.to(source.dtype))
        return self.cross_fit(source, control, rank=rank, scaler=scaler, groups=groups, seed=seed).probe

    def cross_fit(
        self,
        source: torch.Tensor,
        control: torch.Tensor,
        *,
        rank: int | str = "auto",
        scaler: str = "auto",
        groups: Groups | None = None,
        seed: int = 0,
    ) -> Fitted[LinearProbe]:
        """As `fit`, with the cross-validated evidence and the held-out logits that it comes from."""
        positive, negative = checked("source", source), checked("control", control, source.shape[-1])
        both, labels, prompts, folds = folded(positive, negative, groups, seed)
        rows = both.numpy()
        ranks = CANDIDATE_RANKS if rank == "auto" else (rank,)
        scalers = CANDIDATE_SCALERS if scaler == "auto" else (scaler,)
        chosen, evidence, logits = _choose(rows, labels, prompts, folds, ranks, scalers)
        weight, bias = _fit_folded(rows, labels, *chosen)
        probe = LinearProbe(weight.to(source.dtype), bias.to(source.dtype))
        shown, kept = torch.from_numpy(logits).split([len(positive), len(negative)])
        return Fitted(probe, evidence, shown, kept, lambda shift: (kept - shift).sigmoid()[:, None])


def _choose(
    rows: np.ndarray,
    labels: np.ndarray,
    prompts: np.ndarray,
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    ranks: Sequence[int | str],
    scalers: Sequence[str],
) -> tuple[tuple[int | str, str], Evidence, np.ndarray]:
    """The (rank, scaler) whose held-out logits separate best, its evidence, and those logits."""
    candidates = [(rank, scaler) for scaler in scalers for rank in ranks]
    logits = {candidate: np.zeros(len(rows)) for candidate in candidates}
    for train, test in folds:
        bases: dict[str, Any] = {}
        for rank, scaler in candidates:
            weight, bias = _fit_folded(rows[train], labels[train], rank, scaler, bases)
            logits[rank, scaler][test] = rows[test] @ weight.numpy() + bias.item()

    def loss(candidate: tuple[int | str, str]) -> float:
        signed = np.where(labels == 1, logits[candidate], -logits[candidate])
        share = np.where(labels == 1, 0.5 / (labels == 1).sum(), 0.5 / (labels == 0).sum())
        return float((share * np.logaddexp(0, -signed)).sum())

    best = min(candidates, key=loss)
    hits = (logits[best] > 0) == (labels == 1)
    sizes = [len(np.unique(prompts[labels == label])) for label in (1, 0)]
    evidence = judged(logits[best], hits, labels, sizes, *best)
    return best, evidence, logits[best]


def _fit_folded(
    rows: np.ndarray, labels: np.ndarray, rank: int | str, scaler: str, bases: dict[str, Any] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [width] and bias [] in float64. `bases` remembers the decomposition that several ranks share."""
    from sklearn.linear_model import LogisticRegression

    bases = {} if bases is None else bases
    if scaler not in CANDIDATE_SCALERS:
        raise DSASError(f"gate scaler {scaler!r}: expected auto, {' or '.join(CANDIDATE_SCALERS)}")
    if scaler not in bases:
        mean = rows.mean(0)
        scale = np.maximum(rows.std(0), 1e-6) if scaler == "std" else np.ones(rows.shape[1])
        standard = (rows - mean) / scale
        bases[scaler] = mean, scale, standard, principal(standard)
    mean, scale, standard, vectors = bases[scaler]
    if rank == "lda":
        components = (_discriminant(standard @ vectors.T, labels) @ vectors)[None]
    elif isinstance(rank, int) and rank > 0:
        components = vectors[:rank]
    else:
        raise DSASError(f"gate rank {rank!r}: expected a positive number, lda or auto")
    projected = standard @ components.T
    spread = np.maximum(projected.std(0), 1e-12)
    model = LogisticRegression(C=1.0, class_weight="balanced", solver="newton-cholesky").fit(projected / spread, labels)
    arrays = (mean, scale, np.zeros_like(mean), components, model.coef_[0] / spread)
    center, deviation, pca_mean, basis, coef = (torch.from_numpy(np.array(array)) for array in arrays)
    return fold(center, deviation, pca_mean, basis, coef, float(model.intercept_[0]))


def principal(rows: np.ndarray) -> np.ndarray:
    """Principal components [k, width] of centred rows, largest first, without those of no variance."""
    if len(rows) < rows.shape[1]:
        _, deviations, vectors = np.linalg.svd(rows, full_matrices=False)
        values = deviations**2 / len(rows)
    else:
        values, columns = np.linalg.eigh(rows.T @ rows / len(rows))
        values, vectors = values[::-1], columns.T[::-1]
    kept = max(1, int((values > 1e-12 * max(float(values[0]), 1e-300)).sum()))
    return vectors[:kept]


def _discriminant(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The direction of linear discriminant analysis with Ledoit-Wolf shrinkage, unit length."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    fitted = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=[0.5, 0.5]).fit(rows, labels)
    direction = fitted.coef_[0]
    return direction / max(float(np.linalg.norm(direction)), 1e-300)
