"""The shrunken discriminant: scikit-learn's, in less time."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from dsas_core.methods.base.discriminant import discriminant, shrunk_covariance


@pytest.mark.parametrize(("count", "width"), [(30, 5), (60, 55), (200, 40), (12, 11), (20, 1)])
def test_it_is_that_of_scikit_learn(count: int, width: int) -> None:
    random = np.random.default_rng(count)
    rows, labels = random.normal(size=(count, width)) * random.exponential(size=width), np.arange(count) % 3 // 2
    rows[labels == 1] += random.normal(size=width)
    fitted = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=[0.5, 0.5]).fit(rows, labels)
    expected = fitted.coef_[0] / np.linalg.norm(fitted.coef_[0])
    np.testing.assert_allclose(discriminant(rows, labels), expected, rtol=1e-8, atol=1e-10)


def test_a_covariance_is_shrunk_as_ledoit_and_wolf_do() -> None:
    rows = np.random.default_rng(0).normal(size=(20, 30))
    rows = (rows - rows.mean(0)) / rows.std(0)
    np.testing.assert_allclose(shrunk_covariance(rows), ledoit_wolf(rows)[0], rtol=1e-10, atol=1e-12)
    assert np.linalg.matrix_rank(shrunk_covariance(rows)) == 30


def test_rows_that_do_not_vary_have_no_direction() -> None:
    labels = np.arange(10) % 2
    assert not discriminant(np.ones((10, 3)), labels).any()
    alike = np.random.default_rng(0).normal(size=(5, 3)).repeat(2, axis=0)
    assert np.isfinite(discriminant(alike, labels)).all()
