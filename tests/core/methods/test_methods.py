"""Published methods: what they fit, and what they refuse."""

from __future__ import annotations

import pytest
import torch

from dsas_core import DSASError, methods
from dsas_core.methods.base.cross_validation import Evidence
from dsas_core.probes import ConstantProbe

WIDTH = 16


def clouds(apart: float, count: int = 48, seed: int = 0, loud: float = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Source and control rows whose means are `apart` standard deviations from each other, on a loud background."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(2, count, WIDTH, generator=random, dtype=torch.float64)
    rows[..., :2] *= loud  # what other variation does
    rows[0, :, 5:9] += apart / 2  # along four channels: a length of `apart`
    return rows[0], rows[1]


def test_caa_is_the_difference_of_means() -> None:
    source, target = torch.randn(7, WIDTH), torch.randn(9, WIDTH) + 3
    fitted = methods.get("caa").fit(source, target)
    torch.testing.assert_close(fitted.shift, target.mean(0) - source.mean(0))
    assert fitted.slope is None
    assert fitted.shift.dtype == torch.float32
    assert methods.get("caa").fit(source.double(), target.double()).shift.dtype == torch.float64
    x = torch.randn(4, WIDTH)
    torch.testing.assert_close(fitted.apply(x, 2.0), x + 2 * fitted.shift)


@pytest.mark.parametrize("scaler", ["none", "std"])
@pytest.mark.parametrize("rank", [5, 16, "lda"])
def test_dsas_finds_what_is_separable(rank: int | str, scaler: str) -> None:
    source, control = clouds(apart=12)
    fitted = methods.get("dsas").cross_fit(source, control, rank=rank, scaler=scaler)
    assert (fitted.evidence.rank, fitted.evidence.scaler) == (rank, scaler)
    assert fitted.evidence.balanced_accuracy > 0.95
    assert fitted.evidence.auroc > 0.99
    assert fitted.evidence.weight() > 0.8
    unseen_source, unseen_control = clouds(apart=12, seed=1)
    assert float(fitted.probe.score(unseen_source).mean()) > 0.9
    assert float(fitted.probe.score(unseen_control).mean()) < 0.1


def test_the_form_of_the_paper_is_logistic_regression_on_five_components() -> None:
    import numpy as np
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression

    source, control = clouds(apart=12)
    probe = methods.get("dsas").fit(source, control, rank=5, scaler="none")
    rows, labels = torch.cat([source, control]).numpy(), np.repeat([1, 0], len(source))
    projected = PCA(5, svd_solver="full").fit_transform(rows)
    spread = projected.std(0)
    reference = LogisticRegression(class_weight="balanced", tol=1e-10, max_iter=1000).fit(projected / spread, labels)
    ours = probe.logit(torch.from_numpy(rows))[:, 0].numpy()
    np.testing.assert_allclose(ours, reference.decision_function(projected / spread), atol=1e-3)


def test_five_components_lose_what_other_variation_outweighs_and_the_choice_does_not() -> None:
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 60, WIDTH, generator=random, dtype=torch.float64)
    rows[..., :6] *= 20
    rows[0, :, 10] += 6
    paper = methods.get("dsas").cross_fit(*rows, rank=5, scaler="none").evidence
    chosen = methods.get("dsas").cross_fit(*rows).evidence
    assert paper.balanced_accuracy < 0.7
    assert chosen.balanced_accuracy > 0.95


def test_noise_is_told_apart_by_chance_only() -> None:
    evidence = [methods.get("dsas").cross_fit(*clouds(apart=0, seed=seed)).evidence for seed in range(10)]
    accuracies = [found.balanced_accuracy for found in evidence]
    assert sum(accuracies) / len(accuracies) == pytest.approx(0.5, abs=0.08)
    assert sum(found.weight() for found in evidence) / len(evidence) < 0.05


def test_shuffled_labels_leave_a_tenth_of_the_dose_at_most() -> None:
    source, control = clouds(apart=12)
    rows = torch.cat([source, control])

    def dose(first: torch.Tensor, second: torch.Tensor) -> float:
        """What source rows would be given: site weight times mean h."""
        fitted = methods.get("dsas").cross_fit(first, second)
        return fitted.evidence.weight() * float(fitted.probe.score(source).mean())

    shuffled = []
    for seed in range(20):
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        shuffled.append(dose(rows[order[: len(source)]], rows[order[len(source) :]]))
    assert sum(shuffled) / len(shuffled) <= 0.1 * dose(source, control)


def test_rows_of_one_prompt_share_a_fold() -> None:
    """Rows that repeat their prompt's noise must not make evidence out of it."""
    random = torch.Generator().manual_seed(0)
    prompts = torch.randn(2, 12, WIDTH, generator=random, dtype=torch.float64).repeat_interleave(8, 1)
    rows = prompts + 0.01 * torch.randn(prompts.shape, generator=random, dtype=torch.float64)
    owners = [i // 8 for i in range(96)]
    apart = methods.get("dsas").cross_fit(*rows).evidence
    together = methods.get("dsas").cross_fit(*rows, groups=(owners, owners)).evidence
    assert apart.balanced_accuracy > 0.95
    assert together.balanced_accuracy < 0.75
    assert (together.source_prompts, together.control_prompts) == (12, 12)


def test_held_out_logits_are_not_of_the_rows_own_probe() -> None:
    source, control = clouds(apart=0, count=20)
    fitted = methods.get("dsas").cross_fit(source, control, rank=16, scaler="none")
    inside = (fitted.probe.logit(source) > 0).double().mean() - (fitted.probe.logit(control) > 0).double().mean()
    outside = (fitted.source_logits > 0).double().mean() - (fitted.control_logits > 0).double().mean()
    assert float(inside) > float(outside) + 0.2
    assert fitted.source_logits.shape == (20,)


def test_fitting_is_repeatable_and_keeps_the_dtype() -> None:
    source, control = clouds(apart=3)
    first, second = (methods.get("dsas").fit(source.float(), control.float()) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    assert first.weight.dtype == first.bias.dtype == torch.float32


@pytest.mark.parametrize(
    ("rule", "accuracy", "lower", "expected"),
    [
        ("soft", 0.9, 0.85, 0.7),
        ("soft", 0.5, 0.4, 0.0),
        ("threshold", 0.8, 0.1, 1.0),
        ("threshold", 0.7, 0.7, 0.0),
        ("none", 0.1, 0.1, 1.0),
    ],
)
def test_site_weights(rule: str, accuracy: float, lower: float, expected: float) -> None:
    evidence = Evidence(accuracy, 0.5, lower, 5, "none", 10, 10)
    assert evidence.weight(rule) == pytest.approx(expected)


def test_unknown_site_weight() -> None:
    evidence = Evidence(0.9, 0.9, 0.9, 5, "none", 10, 10)
    with pytest.raises(DSASError, match="'best': expected soft, threshold or none"):
        evidence.weight("best")


@pytest.mark.parametrize(("name", "value"), [("on", 1.0), ("off", 0.0)])
def test_constant_gates(name: str, value: float) -> None:
    probe = methods.get(name, "gate").fit(torch.randn(3, 4), torch.randn(3, 4))
    assert isinstance(probe, ConstantProbe)
    assert probe.value == value


def test_every_method_says_what_it_is() -> None:
    described = {method.name: method for method in methods.available()}
    assert {"caa", "dsas", "on", "off"} <= set(described)
    assert all(method.line and method.kind in ("map", "gate", "both") for method in described.values())
    for name, method in described.items():
        for kind in ("map", "gate") if method.kind == "both" else (method.kind,):
            assert callable(methods.get(name, kind).fit)


@pytest.mark.parametrize(
    ("name", "kind", "start", "end"),
    [
        ("dsaas", None, "no method named 'dsaas'; there is caa, ", "; did you mean dsas?"),
        ("dsas", "map", "no map named 'dsas'; there is caa", ""),
        ("caa", "gate", "no gate named 'caa'; there is dsas, on, off", ", and product, any, all, complement of gates"),
        ("zzz", None, "no method named 'zzz'; there is caa", ""),
    ],
)
def test_an_unknown_name_lists_the_known(name: str, kind: str | None, start: str, end: str) -> None:
    with pytest.raises(DSASError) as error:
        methods.get(name, kind)
    message = str(error.value)
    assert message.startswith(start)
    assert message.endswith(end)
    known = [method.name for method in methods.available() if kind is None or method.kind in (kind, "both")]
    assert f"there is {', '.join(known)}" in message


GOOD = torch.zeros(6, 4)


@pytest.mark.parametrize("name", ["caa", "dsas"])
@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (torch.zeros(6), GOOD, r"source: expected floating rows \[n, width\], found torch.float32 \(6,\)"),
        (GOOD, torch.zeros(6, 4).long(), "expected floating rows .* found torch.int64"),
        (torch.zeros(0, 4), GOOD, "source: expected floating rows"),
        (GOOD, torch.zeros(6, 5), "expected width 4 as in the source rows, found 5"),
        (GOOD.index_fill(0, torch.tensor(2), float("nan")), GOOD, "source: rows hold NaN"),
        (GOOD, GOOD.index_fill(0, torch.tensor(2), float("inf")), "rows hold NaN or infinite"),
    ],
)
def test_bad_rows_say_what_is_wrong(name: str, first: torch.Tensor, second: torch.Tensor, message: str) -> None:
    with pytest.raises(DSASError, match=message):
        methods.get(name).fit(first, second)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "gate rank 0"),
        ({"rank": "pca"}, "gate rank 'pca'"),
        ({"scaler": "max"}, "scaler 'max'"),
        ({"rank": 5, "scaler": "max"}, "scaler 'max'"),
        ({"rank": 0, "scaler": "std"}, "gate rank 0"),
    ],
)
def test_bad_settings_of_the_gate(settings: dict[str, object], message: str) -> None:
    with pytest.raises(DSASError, match=message):
        methods.get("dsas").fit(*clouds(apart=3), **settings)


def test_too_few_prompts_to_cross_validate() -> None:
    with pytest.raises(DSASError, match="at least 5 prompts a side to cross-validate, found 3 and 4"):
        methods.get("dsas").fit(torch.randn(3, 4), torch.randn(4, 4))


def test_rows_that_are_all_equal_are_chance() -> None:
    evidence = methods.get("dsas").cross_fit(torch.ones(10, 4), torch.ones(10, 4)).evidence
    assert evidence.balanced_accuracy == pytest.approx(0.5)
    assert evidence.weight() == 0
