"""Probes: the folded link, its forms, its dtypes and masks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsas_core.probes import ConstantProbe, LinearProbe, PooledProbe, ProductProbe, fold
from dsas_core.probes.combine import pool
from tests.fixtures.checks import vector
from tests.fixtures.concepts import FORMS, random_probe


def golden() -> tuple[torch.Tensor, torch.Tensor]:
    return fold(
        mean=vector(1, -2, 0.5),
        scale=vector(2, 0.5, 1),
        pca_mean=vector(0.1, -0.2, 0.3),
        components=torch.tensor([[0.6, 0.8, 0], [0, 0, 1]], dtype=torch.float64),
        coef=vector(1.5, -2),
        intercept=0.25,
    )


def test_fold_gives_the_golden_weight_bias_logit_and_score() -> None:
    weight, bias = golden()
    assert weight.tolist() == pytest.approx([0.45, 2.4, -2.0], abs=1e-12)
    assert bias.item() == pytest.approx(6.35, abs=1e-12)
    probe = LinearProbe(weight, bias)
    x = vector(2, -1, 0)[None]
    assert probe.logit(x).item() == pytest.approx(4.85, abs=1e-12)
    assert probe.score(x).item() == pytest.approx(0.9922324299, abs=1e-10)


@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_folded_equals_unfolded(width: int, rank: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    mean, pca_mean, components, coef = draw(width) * 10, draw(width), draw(rank, width), draw(rank)
    scale = draw(width).abs() + 0.01
    intercept = draw().item()
    x = draw(5, width)
    unfolded = ((x - mean) / scale - pca_mean) @ components.T @ coef + intercept
    weight, bias = fold(mean, scale, pca_mean, components, coef, intercept)
    assert weight.dtype == bias.dtype == torch.float64
    torch.testing.assert_close(x @ weight + bias, unfolded, rtol=1e-9, atol=1e-9 * float(1 + unfolded.abs().max()))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("dtype", "computed"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
    ],
)
def test_scores_are_computed_in_float32_at_least(form: str, dtype: torch.dtype, computed: torch.dtype) -> None:
    probe = random_probe(form, 8, torch.Generator().manual_seed(0))
    h = probe.score(torch.randn(2, 5, 8).to(dtype))
    assert h.dtype == computed
    assert h.shape in ((2, 5, 1), (2, 1, 1))
    assert bool(((h >= 0) & (h <= 1)).all())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_activations_give_the_scores_of_their_float64_values(form: str, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(3)
    probe = random_probe(form, 64, random)
    x = torch.randn(4, 16, 64, generator=random).to(dtype)
    wide = probe.map_tensors(torch.Tensor.double).score(x.double())
    assert float((probe.score(x).double() - wide).abs().max()) < 2e-3


def test_a_large_logit_saturates_without_nan() -> None:
    probe = LinearProbe(torch.tensor([1e30]), torch.tensor(0.0))
    assert probe.score(torch.tensor([[-1e30], [1e30]])).flatten().tolist() == pytest.approx([0, 1], abs=1e-12)


def test_pool_is_the_mean_over_what_the_mask_counts() -> None:
    x = torch.randn(3, 6, 4)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]]).float()
    pooled = pool(x, mask)
    torch.testing.assert_close(pooled[0, 0], x[0].mean(0))
    torch.testing.assert_close(pooled[1, 0], x[1, 1:3].mean(0))
    assert pooled[2, 0].tolist() == [0.0] * 4
    torch.testing.assert_close(pool(x), x.mean(1, keepdim=True))


@pytest.mark.parametrize("form", ["pooled", "product"])
def test_positions_that_the_mask_leaves_out_do_not_reach_the_decision(form: str) -> None:
    probe = random_probe(form, 4, torch.Generator().manual_seed(0))
    x = torch.randn(2, 6, 4)
    mask = torch.tensor([[0.0, 1, 1, 1, 0, 0]] * 2)
    changed = torch.where(mask[..., None] == 1, x, torch.randn_like(x) * 100)
    h = probe.score(x, mask).expand(2, 6, 1)
    torch.testing.assert_close(probe.score(changed, mask).expand(2, 6, 1)[:, 1:4], h[:, 1:4])
    assert not torch.allclose(probe.score(changed).expand(2, 6, 1)[:, 1:4], h[:, 1:4])


def test_pooled_decides_once_per_row() -> None:
    inner = random_probe("linear", 4, torch.Generator().manual_seed(0))
    x = torch.randn(3, 5, 4)
    torch.testing.assert_close(PooledProbe(inner).score(x), inner.score(x.mean(1, keepdim=True)))


def test_product_is_the_product_of_its_factors() -> None:
    random = torch.Generator().manual_seed(0)
    factors = tuple(random_probe(form, 4, random) for form in ("linear", "pooled", "linear"))
    x = torch.randn(3, 5, 4)
    expected = factors[0].score(x) * factors[1].score(x) * factors[2].score(x)
    torch.testing.assert_close(ProductProbe(factors).score(x), expected)
    torch.testing.assert_close(ProductProbe(factors).logit(x).sigmoid(), expected)


@pytest.mark.parametrize("value", [0.0, 0.25, 1.0])
def test_constant_does_not_look(value: float) -> None:
    assert ConstantProbe(value).score(torch.randn(2, 3, 4)).unique().tolist() == [value]
