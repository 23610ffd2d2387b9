"""The logistic regression of published methods: on raw rows, ridge penalty 1, as scikit-learn has it by default."""

from __future__ import annotations

import numpy as np
import torch


def fit_logistic(negative: torch.Tensor, positive: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit a logistic regression.

    The penalised solution lies in the span of the rows, so with fewer rows than dimensions it is computed there.

    Args:
        negative: [n, width], float64.
        positive: [m, width], float64.

    Returns:
        Weight [width] and bias [] of the logit of `positive`.

    Example:
        >>> weight, bias = fit_logistic(torch.tensor([[0.0], [1.0]]).double(), torch.tensor([[3.0], [4.0]]).double())
        >>> round(float(-bias / weight), 4)  # half-way between
        2.0
    """
    from sklearn.linear_model import LogisticRegression

    rows = torch.cat([negative, positive])
    mean = rows.mean(0)
    rows = rows - mean  # changes the intercept alone, which is not penalised
    labels = np.repeat([0, 1], [len(negative), len(positive)])
    if len(rows) < rows.shape[1]:
        left, deviations, basis = torch.linalg.svd(rows, full_matrices=False)
        rows = left * deviations
    else:
        basis = torch.eye(rows.shape[1], dtype=rows.dtype)
    model = LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-8, max_iter=1000).fit(rows.numpy(), labels)
    weight = torch.from_numpy(model.coef_[0]) @ basis
    return weight, float(model.intercept_[0]) - weight @ mean
