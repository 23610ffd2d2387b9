"""Every gate by its name: what it computes, how it is fitted and judged, and that it steers as every gate must."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsas_core import DSASError, Recipe, methods
from dsas_core.methods.base.cross_validation import evidence_of
from dsas_core.methods.base.gate import RefusedError
from dsas_core.methods.maps.aura import auroc
from dsas_core.probes import (
    AnyProbe,
    ComplementProbe,
    ConstantProbe,
    CosineProbe,
    LinearProbe,
    ProductProbe,
    QuadraticProbe,
    QuantileProbe,
    quadratic,
)
from tests.core.methods.test_methods import clouds
from tests.fixtures.checks import vector

#: gates that go by what they were shown
LOOKING = (
    "dsas",
    "gaps",
    "gaps(soft=true)",
    "cosine",
    "mlp(accept=true)",
    "quantile",
    "cast",
    "mera",
    "mera(alpha=0.3)",
    "fairsteer",
    "casteer",
    "product(dsas, gaps)",
    "complement(dsas)",
    "any(dsas, cosine)",
    "all(dsas, gaps)",
    "product(dsas, complement(cosine))",
    "product(dsas, casteer)",
    "any(mera, all(cast, fairsteer))",
)
GATES = (*LOOKING, "on", "off")


# ---- gaps ----------------------------------------------------------------------------------------------------------


def gaussian(m1: float, s1: float, m0: float, s0: float, **settings: Any) -> QuadraticProbe:
    parts = quadratic(*(vector(number) for number in (m1, s1, m0, s0)))
    side = vector(m1 - m0).sign()
    return QuadraticProbe(*parts, vector(m0), side, **settings)


def test_gaps_gives_the_golden_numbers() -> None:
    probe = gaussian(1, 0.5, 0, 1, soft=True)
    parts = [float(part) for part in (probe.curve, probe.slope, probe.offset)]
    assert parts == pytest.approx([-1.5, 4, -1.3068528194400547], abs=1e-9)
    assert probe.score(vector(1.2)[None]).item() == pytest.approx(0.7913607389, abs=1e-9)


@given(st.floats(-5, 5), st.floats(0.1, 5), st.floats(-5, 5), st.floats(0.1, 5), st.floats(-10, 10))
def test_the_posterior_is_that_of_two_gaussians(m1: float, s1: float, m0: float, s0: float, x: float) -> None:
    from scipy.stats import norm

    expected = norm.logpdf(x, m1, s1) - norm.logpdf(x, m0, s0)
    on_its_side = (x - m0) * (m1 - m0) > 0
    probe = gaussian(m1, s1, m0, s0)
    found = probe.logit(vector(x)[None]).item()
    assert found == (pytest.approx(min(max(expected, -30), 30), abs=1e-6) if on_its_side else -torch.inf)
    if abs(expected) > 1e-6:
        assert probe.score(vector(x)[None]).item() == float(on_its_side and expected > 0)


def test_the_other_tail_of_a_broader_source_is_left_alone() -> None:
    probe = gaussian(1, 3, 0, 1)
    tails = vector(-6, 6)[:, None]
    assert bool((probe.curve * tails**2 + probe.slope * tails + probe.offset > 0).all()), "both are likelier source"
    assert probe.score(tails)[:, 0].tolist() == [0, 1]
    assert gaussian(-1, 3, 0, 1).score(tails)[:, 0].tolist() == [1, 0]


def test_dimensions_far_from_zero_are_as_exact_as_others() -> None:
    x = torch.randn(50, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    near, far = gaussian(1, 0.5, 0, 1, soft=True), gaussian(5001, 0.5, 5000, 1, soft=True)
    low = far.map_tensors(torch.Tensor.float).score((x + 5000).float())
    torch.testing.assert_close(low.double(), near.score(x), atol=5e-3, rtol=0)


def test_gaps_keeps_the_dimensions_that_separate() -> None:
    source, control = clouds(apart=12)
    probe = methods.get("gaps").fit(source, control)
    assert probe.side[5:9].tolist() == [1] * 4
    assert probe.side.abs().sum() < 8
    h = probe.score(source)
    assert h.shape == source.shape
    assert float(h[:, 5:9].mean()) > 0.9
    assert float(probe.score(control)[:, 5:9].mean()) < 0.1
    everything = methods.get("gaps(threshold=0)").fit(source, control)
    assert bool((everything.side != 0).all())


def test_auroc_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import roc_auc_score

    source, control = torch.randn(20, 4).round(decimals=1) + 0.5, torch.randn(31, 4).round(decimals=1)
    labels = [1] * 20 + [0] * 31
    expected = [roc_auc_score(labels, column) for column in torch.cat([source, control]).T]
    assert auroc(source, control).tolist() == pytest.approx(expected, abs=1e-12)
    assert auroc(torch.ones(5, 1), torch.ones(6, 1)).item() == 0.5, "dimensions that do not move separate nothing"


def test_dimensions_that_do_not_vary_do_no_harm() -> None:
    source, control = clouds(apart=12)
    source[:, 3] = control[:, 3] = 7.0
    source[:, 4], control[:, 4] = 1.0, 0.0
    probe = methods.get("gaps").fit(source, control)
    assert all(bool(part.isfinite().all()) for part in probe.tensors())
    assert (float(probe.side[3]), float(probe.side[4])) == (0, 1)
    assert bool(probe.score(source)[:, 4].all())


# ---- cosine, mlp, quantile -----------------------------------------------------------------------------------------


def test_the_cosine_gate_is_the_cosine_above_its_threshold() -> None:
    probe = CosineProbe(vector(0.6, 0.8), vector(0.25)[0])
    x = torch.stack([vector(3, 4), vector(4, -3), vector(1, 0), vector(0, 0), vector(-3, -4)])
    assert probe.score(x)[:, 0].tolist() == pytest.approx([0.75, 0, 0.35, 0, 0], abs=1e-12)
    assert probe.with_lower_bias(0.1).score(x)[:, 0].tolist() == pytest.approx([0.65, 0, 0.25, 0, 0], abs=1e-12)


def test_the_direction_of_the_cosine_gate_is_that_of_the_means() -> None:
    source, control = clouds(apart=12)
    probe = methods.get("cosine").fit(source, control)
    apart = source.mean(0) - control.mean(0)
    torch.testing.assert_close(probe.direction, apart / apart.norm())
    usual = torch.cosine_similarity(control, apart[None], dim=1).mean()
    torch.testing.assert_close(probe.threshold, usual)
    assert float(methods.get("cosine(threshold=0.5)").fit(source, control).threshold) == 0.5


def planted_xor(count: int = 200, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Sides that no linear gate tells apart: two channels agree in the source and differ in controls."""
    random = torch.Generator().manual_seed(seed)
    rows = 0.5 * torch.randn(2, count, 16, generator=random, dtype=torch.float64)
    first = 3.0 * (2 * torch.randint(2, (2, count), generator=random) - 1)
    rows[..., 0] += first
    rows[0, :, 1] += first[0]
    rows[1, :, 1] -= first[1]
    return rows[0], rows[1]


def test_an_mlp_is_taken_where_no_linear_gate_will_do() -> None:
    fitted = methods.get("mlp").cross_fit(*planted_xor())
    assert fitted.evidence.balanced_accuracy > 0.9
    assert methods.get("dsas").cross_fit(*planted_xor()).evidence.balanced_accuracy < 0.65
    unseen_source, unseen_control = planted_xor(seed=1)
    assert float(fitted.probe.score(unseen_source).mean()) > 0.8
    assert float(fitted.probe.score(unseen_control).mean()) < 0.2


def test_an_mlp_is_refused_where_a_linear_gate_will_do() -> None:
    with pytest.raises(DSASError, match=r"AUROC on held-out prompts, 0\.\d+, does not beat .* 2 standard errors"):
        methods.get("mlp").fit(*clouds(apart=4))
    assert methods.get("mlp(accept=true)").fit(*clouds(apart=4)).kind == "mlp"


def test_the_folded_network_is_the_network() -> None:
    from sklearn.neural_network import MLPClassifier

    source, control = planted_xor()
    network: list[Any] = []

    class Kept(MLPClassifier):  # type: ignore[misc]
        def fit(self, rows: Any, labels: Any) -> Any:
            network.append((self, rows))
            return super().fit(rows, labels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sklearn.neural_network.MLPClassifier", Kept)
        probe = methods.get("mlp(accept=true, rank=8)").fit(source, control[:100])
    model, rows = network[0]
    p = torch.from_numpy(model.predict_proba(rows)[:, 1])
    assert rows.shape[1] == 8
    ours = probe.logit(torch.cat([source, control[:100]]))[:, 0]
    torch.testing.assert_close(ours, (p.logit() - torch.tensor(2.0).log()).clamp(-30, 30), atol=1e-6, rtol=1e-6)


def test_the_quantile_gate_takes_a_tenth_of_whatever_it_sees() -> None:
    probe = QuantileProbe(LinearProbe(torch.randn(6), torch.tensor(-20.0)), 0.9)
    x = torch.randn(3, 100, 6)
    h = probe.score(x)
    assert h.sum(1).flatten().tolist() == [10, 10, 10]
    assert bool((h.unique() == torch.tensor([0.0, 1.0])).all())
    for z, chosen in zip(probe.inner.logit(x), h == 1, strict=True):
        assert float(z[chosen].min()) > float(z[~chosen].max())
    assert methods.get("quantile(q=0.75)").fit(*clouds(apart=12)).score(x.new_zeros(1, 8, 16)).mean() == 1, "all equal"


def test_masked_positions_are_no_part_of_the_quantile() -> None:
    probe = QuantileProbe(LinearProbe(torch.ones(1), torch.tensor(0.0)), 0.9)
    x = torch.arange(40.0).reshape(2, 20, 1)
    mask = torch.ones(2, 20)
    mask[0, 10:] = 0  # the highest do not count
    mask[1] = 0
    h = probe.score(x, mask)[..., 0]
    assert h[0].nonzero().flatten().tolist() == [9]
    assert h[1].tolist() == [0] * 20


# ---- combinations --------------------------------------------------------------------------------------------------


def test_combinations_are_products_and_the_logic_of_sets() -> None:
    source, control = clouds(apart=12)
    x = torch.cat([source, control])
    dsas, gaps = (methods.get(name).fit(source, control).score(x) for name in ("dsas", "gaps"))
    expected = {
        "product(dsas, gaps)": dsas * gaps,
        "any(dsas, gaps)": torch.maximum(dsas, gaps),
        "all(dsas, gaps)": torch.minimum(dsas, gaps),
        "complement(dsas)": 1 - dsas,
        "product(dsas,complement( any(gaps, off)) )": dsas * (1 - gaps),
    }
    for name, h in expected.items():
        torch.testing.assert_close(methods.get(name, "gate").fit(source, control).score(x), h)


def test_a_product_is_lowered_at_its_first_factor_and_a_complement_is_not() -> None:
    first, second = (LinearProbe(torch.randn(4), torch.tensor(0.5)) for _ in range(2))
    x = torch.randn(3, 5, 4)
    lower = first.with_lower_bias(2.0).score(x)
    torch.testing.assert_close(lower, (first.logit(x) - 2).sigmoid())
    torch.testing.assert_close(ProductProbe((first, second)).with_lower_bias(2.0).score(x), lower * second.score(x))
    both = torch.maximum(lower, second.with_lower_bias(2.0).score(x))
    torch.testing.assert_close(AnyProbe((first, second)).with_lower_bias(2.0).score(x), both)
    for probe in (ComplementProbe(first), ConstantProbe(0.5), QuantileProbe(first)):
        assert probe.with_lower_bias(2.0) is probe


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("product(dsas, gasp)", "no gate named 'gasp'; there is dsas, on, off, .*; did you mean gaps"),
        ("produkt(dsas, gaps)", "no gate named 'produkt'; .* product, any, all, complement of gates"),
        ("product(dsas, caa)", "no gate named 'caa'"),
        ("product(dsas)", "gate product takes two gates or more, found 1"),
        ("complement(dsas, gaps)", "gate complement takes one gate, found 2"),
        ("product(dsas, gaps", "expected name or name.*, stopped at 'the end'"),
        ("product(dsas, gaps))", r"stopped at '\)'"),
        ("product(dsas gaps)", "stopped at 'gaps'"),
        ("product()", r"stopped at '\)'"),
        ("dsas(gaps)", "dsas is no combination of gates"),
        ("dsas(rank=5)", "dsas has no setting 'rank'; it has none"),
        ("gaps(eps=5)", "gaps has no setting 'eps'; there is threshold, soft"),
        ("gaps(soft=1)", "soft of gaps takes bool, found 1"),
        ("gaps(threshold=0.6)", r"threshold 0.6: expected a number in \[0, 0.5\)"),
        ("cosine(threshold=1)", "gate cosine: threshold 1"),
        ("quantile(q=much)", "q of quantile takes float, found 'much'"),
        ("quantile(q=<)", "expected a number, a word, true or false, found '<'"),
        ("quantile(q=1)", "gate quantile: q 1"),
        ("mlp(hidden=0)", "gate mlp: rank 32, hidden 0"),
        ("any(dsas; gaps)", "stopped at ';'"),
    ],
)
def test_what_cannot_be_read_says_why(name: str, message: str) -> None:
    with pytest.raises(DSASError, match=message):
        Recipe(gate=name)


@pytest.mark.parametrize("form", ["prefix", "latch", "text"])
def test_combinations_remember_nothing(form: str) -> None:
    with pytest.raises(DSASError, match=f"form '{form}' goes by the tokens before, no combination does"):
        Recipe(gate="complement(dsas)", form=form)


# ---- what holds for all --------------------------------------------------------------------------------------------


def rows_for(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A background louder than the concept is all that CAST's first component finds, and most of what CASteer sees."""
    return clouds(apart=12, loud=1 if "cast" in name else 20)


@functools.cache
def fitted(name: str) -> Any:
    return methods.get(name, "gate").cross_fit(*rows_for(name))


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_h_is_in_bounds_and_spreads_over_x(name: str, dtype: torch.dtype) -> None:
    x = (20 * torch.randn(2, 5, 16)).to(dtype)
    h = fitted(name).probe.score(x)
    assert h.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.broadcast_shapes(h.shape, x.shape) == x.shape
    assert bool(((h >= 0) & (h <= 1)).all())


@pytest.mark.parametrize("name", GATES)
def test_a_batch_of_two_is_two_singles(name: str) -> None:
    x, probe = torch.randn(2, 5, 16, dtype=torch.float64), fitted(name).probe
    torch.testing.assert_close(probe.score(x), torch.cat([probe.score(x[:1]), probe.score(x[1:])]))


@pytest.mark.parametrize("name", LOOKING)
def test_evidence_is_of_prompts_that_were_not_seen(name: str) -> None:
    found = fitted(name)
    weak = "cosine" in name  # it knows a direction, and not how loud the other channels are
    assert found.evidence.balanced_accuracy > (0.75 if weak else 0.9)
    assert found.evidence.auroc > (0.8 if weak else 0.95)
    assert methods.get(name, "gate").weight(found.evidence, "soft") > (0.4 if weak else 0.8)
    assert (found.evidence.source_prompts, found.evidence.control_prompts) == (48, 48)
    assert found.source_logits.shape == found.control_logits.shape == (48,)
    assert len(found.control_h(0.0)) == 48
    assert float(found.control_h(0.0).mean()) >= float(found.control_h(3.0).mean())


@pytest.mark.parametrize("name", LOOKING[:13])  # gates of gates of gates are no other matter
def test_shuffled_labels_leave_a_tenth_of_the_dose_at_most(name: str) -> None:
    source, control = rows_for(name)
    rows, gate = torch.cat([source, control]), methods.get(name, "gate")

    def dose(first: torch.Tensor, second: torch.Tensor) -> float:
        """What the rows that it is there for would be given: site weight times mean h."""
        try:
            found = gate.cross_fit(first, second)
        except RefusedError:
            return 0.0
        there_for = control if name == "complement(dsas)" else source
        return gate.weight(found.evidence, "soft") * float(found.probe.score(there_for).mean())

    orders = [torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)) for seed in range(6)]
    shuffled = [dose(rows[order[: len(source)]], rows[order[len(source) :]]) for order in orders]
    assert sum(shuffled) / len(shuffled) <= 0.1 * dose(source, control)


@pytest.mark.parametrize("name", ["on", "off"])
def test_a_gate_that_does_not_look_is_trusted_and_tells_nothing(name: str) -> None:
    gate, found = methods.get(name, "gate"), fitted(name)
    assert (found.evidence.balanced_accuracy, found.evidence.auroc) == (0.5, 0.5)
    assert gate.weight(found.evidence, "soft") == 1
    assert float(found.control_h(9.0).mean()) == float(name == "on")


def test_rows_of_one_prompt_share_a_fold() -> None:
    random = torch.Generator().manual_seed(0)
    prompts = torch.randn(2, 12, 16, generator=random, dtype=torch.float64).repeat_interleave(8, 1)
    rows = prompts + 0.01 * torch.randn(prompts.shape, generator=random, dtype=torch.float64)
    owners = [i // 8 for i in range(96)]
    gate = methods.get("mlp(accept=true)")
    assert gate.cross_fit(*rows).evidence.balanced_accuracy > 0.9
    assert gate.cross_fit(*rows, groups=(owners, owners)).evidence.balanced_accuracy < 0.75


def test_evidence_of_scores_that_tell_nothing_is_chance() -> None:
    assert evidence_of(torch.zeros(10), torch.zeros(12)).balanced_accuracy == 0.5
    told = evidence_of(torch.arange(10.0) + 9, torch.arange(5.0))
    assert (told.balanced_accuracy, told.auroc) == (1, 1)
    assert evidence_of(torch.arange(5.0), torch.arange(10.0) + 5).weight() == 0, "the wrong way round"


@pytest.mark.parametrize("name", LOOKING)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.index_fill(0, torch.tensor(2), float("nan")), "source: rows hold NaN"),
        (lambda x: x[:, :4], "expected width 4 as in the source rows, found 16"),
        (lambda x: x[0], "source: expected floating rows"),
        (lambda x: x[:3], "at least 5 prompts a side to cross-validate, found 3 and 48"),
    ],
)
def test_bad_rows_say_what_is_wrong(name: str, change: Any, message: str) -> None:
    source, control = clouds(apart=12)
    with pytest.raises(DSASError, match=message):
        methods.get(name, "gate").cross_fit(change(source), control)


def test_a_refusal_brings_what_was_fitted() -> None:
    with pytest.raises(RefusedError) as error:
        methods.get("mlp").cross_fit(*clouds(apart=4))
    assert error.value.fitted.probe.kind == "mlp"
