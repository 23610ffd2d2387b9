"""CASteer and FairSteer: what is taken away, what is added, and when."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from dsas_core import Concept, Recipe, methods
from dsas_core.evaluation.arms import build_arm
from dsas_core.learning.fit import fit_sites
from dsas_core.maps import ProjectionMap, TurnMap
from dsas_core.steering.interpolation import interpolate
from tests.fixtures.checks import vector
from tests.fixtures.synthetic import PLANTED, captured, gaussian


def test_golden_casteer() -> None:
    erase, c = ProjectionMap(vector(0.6, 0.8, 0), vector(0)[0]), vector(1, 2, 3)
    expected = {0.0: (1, 2, 3), 1.0: (-0.32, 0.24, 3), 2.0: (-1.64, -1.52, 3)}
    for beta, values in expected.items():
        assert erase.apply(c, beta).tolist() == pytest.approx(values, abs=1e-9)
    assert erase.apply(c, 2.0).norm().item() == pytest.approx(3.7416573868, abs=1e-9)
    assert torch.equal(erase.apply(-c, 2.0), -c), "clipped"


def test_addition_keeps_the_length() -> None:
    turn, x = TurnMap(vector(0, 3, 4)), torch.randn(2, 5, 3, dtype=torch.float64)
    moved = turn.apply(x, 0.7)
    torch.testing.assert_close(moved.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(torch.cosine_similarity(moved, x + 0.7 * turn.shift, dim=-1), torch.ones(2, 5).double())
    assert torch.equal(turn.apply(x, 0.0), x)
    assert torch.equal(turn.apply(torch.zeros(1, 3), 1.0), torch.zeros(1, 3))
    h = torch.tensor([1.0, 0.0]).double()[:, None, None]
    half = interpolate(x, [(turn, 0.7, h)])
    torch.testing.assert_close(half[0], moved[0])
    assert torch.equal(half[1], x[1])


def test_casteer_takes_away_what_was_planted() -> None:
    source, target = gaussian(3000, 4, 0), gaussian(3000, 0, 1)
    erase, reflect = (methods.get("casteer", "map").fit(source, target, mode=mode) for mode in ("erase", "reflect"))
    assert float(erase.direction @ PLANTED) > 0.99
    x, u = gaussian(100, 1, 2), erase.direction
    torch.testing.assert_close(erase.apply(x, 1.0) @ u, (x @ u).clamp_max(0))
    torch.testing.assert_close(reflect.apply(x, 1.0) @ u, -(x @ u).abs())
    torch.testing.assert_close(reflect.apply(x, 1.0).norm(dim=1), x.norm(dim=1))
    torch.testing.assert_close(reflect.apply(x, 0.5), erase.apply(x, 1.0))
    add = methods.get("casteer", "map").fit(target, source, mode="add", alpha=3)
    torch.testing.assert_close(add.shift, 3 * u)


def test_the_gate_of_casteer_is_the_clipped_cosine() -> None:
    source, control = gaussian(300, 4, 0), gaussian(300, 0, 1)
    probe, x = methods.get("casteer", "gate").fit(source, control), gaussian(50, 1, 2)
    u = torch.nn.functional.normalize(source.mean(0) - control.mean(0), dim=0)
    torch.testing.assert_close(probe.score(x)[:, 0], (x @ u).clamp_min(0) / x.norm(dim=1))


@pytest.mark.parametrize("mode", ["erase", "add"])
def test_a_random_direction_is_as_long(mode: str) -> None:
    recipe = Recipe(method="casteer", options={"mode": mode})
    concept = Concept("it", tuple(fit_sites(captured(), recipe)[0]))
    other, _ = build_arm(concept, "random_direction")
    (own, turned) = (item.interventions[0].maps[0].tensors() for item in (concept, other))
    torch.testing.assert_close(own[0].norm(), turned[0].norm())
    assert abs(float(torch.cosine_similarity(own[0], turned[0], dim=0))) < 0.8
    assert all(torch.equal(a, b) for a, b in zip(own[1:], turned[1:], strict=True))


def test_fairsteer_is_the_word_of_logistic_regression() -> None:
    source, control = gaussian(60, 3, 0), gaussian(90, 0, 1)
    labels = np.repeat([1, 0], [60, 90])
    reference = LogisticRegression(max_iter=10000, tol=1e-10).fit(torch.cat([source, control]).numpy(), labels)
    probe, x = methods.get("fairsteer", "gate").fit(source, control), gaussian(500, 1.5, 2)
    logits = reference.decision_function(x.numpy())
    np.testing.assert_allclose(probe.logit(x)[:, 0].numpy(), logits, atol=1e-3)
    assert set(probe.score(x).unique().tolist()) == {0, 1}
    clear = abs(logits) > 1e-3
    assert ((probe.score(x)[:, 0].numpy() > 0) == (logits > 0))[clear].all()
    assert torch.equal(probe.with_lower_bias(1.0).score(x), probe.link(probe.logit(x) - 1))
