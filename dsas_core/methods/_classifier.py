"""The logistic regression of ITI and ITI-c: on raw rows, ridge penalty 1, as scikit-learn has it by default."""

from __future__ import annotations

import numpy as np
import torch


def normal(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The normal [width] of the plane between the classes, not normalised; it points to the target. float64.

    The penalised solution lies in the span of the rows, so with fewer rows than dimensions it is sought there.
    """
    from sklearn.linear_model import LogisticRegression

    rows = torch.cat([source, target])
    rows = rows - rows.mean(0)  # changes the intercept alone, which is not penalised
    labels = np.repeat([0, 1], [len(source), len(target)])
    if len(rows) < rows.shape[1]:
        left, deviations, basis = torch.linalg.svd(rows, full_matrices=False)
        rows = left * deviations
    else:
        basis = torch.eye(rows.shape[1], dtype=rows.dtype)
    model = LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-8, max_iter=1000).fit(rows.numpy(), labels)
    found: torch.Tensor = torch.from_numpy(model.coef_[0]) @ basis
    return found
