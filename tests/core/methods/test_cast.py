"""CAST: the first component, the condition, and one decision at one site."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from dsas_core import DSASError, Recipe, methods
from dsas_core.learning.fit import fit_sites
from dsas_core.methods.gated_maps.cast import best_threshold, first_component
from dsas_core.probes import ConditionLatch, ConditionProbe, PooledConditionProbe
from tests.fixtures.checks import vector
from tests.fixtures.synthetic import PLANTED, gaussian, several


def condition(direction: torch.Tensor, threshold: float = 0.0, side: float = 1.0) -> ConditionProbe:
    return ConditionProbe(direction, vector(threshold)[0], vector(side)[0])


def test_golden_cast() -> None:
    probe, x = condition(vector(1, 2, 0)), vector(2, 1, 1)
    assert probe.similarity(x).item() == pytest.approx(0.8085221908, abs=1e-10)
    assert torch.cosine_similarity(x, vector(1, 2, 0), dim=0).item() == pytest.approx(0.7302967433, abs=1e-10)
    torch.testing.assert_close(condition(-3 * vector(1, 2, 0)).similarity(x), probe.similarity(x))
    fires = [condition(vector(1, 2, 0), t, side).score(x).item() for t in (0.8, 0.82) for side in (1.0, -1.0)]
    assert fires == [1, 0, 0, 1]
    assert probe.score(torch.zeros(2, 3)).tolist() == [[0], [0]]


def test_the_first_component_is_that_of_all_pairs_centred_on_their_middle() -> None:
    first, second = gaussian(7, 2, 0), gaussian(9, -1, 1)
    pairs = [(a, b) for a in first for b in second]
    centred = torch.stack([side - (a + b) / 2 for a, b in pairs for side in (a, b)])
    expected = torch.linalg.svd(centred, full_matrices=False).Vh[0]
    found = first_component(first, second)
    assert abs(float(found @ expected)) == pytest.approx(1, abs=1e-9)
    assert float(found.norm()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("sign", [1, -1])
def test_cast_finds_what_was_planted_and_points_to_the_target(sign: int) -> None:
    rows = gaussian(500, 0, 0), gaussian(400, 6 * sign, 1)
    unit, apart = (methods.get("cast", "map").fit(*rows, length=length).shift for length in ("unit", "apart"))
    assert float(unit.norm()) == pytest.approx(1)
    assert float(unit @ PLANTED) * sign > 0.99
    torch.testing.assert_close(apart, unit * (unit @ (rows[1].mean(0) - rows[0].mean(0))))
    assert float(apart @ PLANTED) == pytest.approx(6 * sign, abs=0.2)


def test_the_threshold_is_that_of_the_highest_f1() -> None:
    for seed in range(8):
        random = torch.Generator().manual_seed(seed)
        shown, kept = (
            torch.randn(9, generator=random).double() + (-1) ** seed,
            torch.randn(14, generator=random).double(),
        )
        threshold, side = best_threshold(shown, kept)
        labels, values = np.repeat([1, 0], [9, 14]), torch.cat([shown, kept])
        middles = (values.sort().values[1:] + values.sort().values[:-1]) / 2
        best = max(f1_score(labels, s * (values - t) > 0) for s in (1, -1) for t in middles)
        assert f1_score(labels, side * (values - threshold) > 0) == pytest.approx(best)
    threshold, side = best_threshold(vector(1, 2, 3), vector(5, 6))
    assert (threshold.item(), side.item()) == (4, -1), "in the middle of the room between"


@pytest.mark.parametrize("along", [3.0, 12.0])
def test_the_condition_tells_planted_classes(along: float) -> None:
    """sim is |cos| to the direction where tanh is nearly linear, and saturates where it is not."""
    fitted = methods.get("cast", "gate").fit(gaussian(400, along, 0), gaussian(400, 0, 1))
    assert abs(float(torch.nn.functional.normalize(fitted.direction, dim=0) @ PLANTED)) > 0.95
    told = [float(fitted.score(gaussian(400, shown, 2)).mean()) for shown in (along, 0.0)]
    assert told[0] > (0.7 if along == 3 else 0.99)
    assert told[1] < (0.3 if along == 3 else 0.01)


def test_a_condition_of_all_positions_is_that_of_their_mean() -> None:
    x, mask = torch.randn(2, 5, 3, dtype=torch.float64), torch.ones(2, 5)
    mask[0, 3:] = 0
    inner = condition(vector(1, 2, 0), 0.5)
    h = PooledConditionProbe(inner).score(x, mask)
    expected = torch.stack([inner.score(x[0, :3].mean(0)), inner.score(x[1].mean(0))])[:, None]
    assert torch.equal(h, expected)
    latch = ConditionLatch(inner.map_tensors(torch.Tensor.float))
    prompt = torch.tensor([[1.0] * 5, [1.0] * 4 + [0.0]])
    first, state = latch.step(x[:, :2].float(), mask[:, :2], prompt[:, :2], torch.zeros(2, latch.state_size))
    rest, _ = latch.step(x[:, 2:].float(), mask[:, 2:], prompt[:, 2:], state)
    decided = torch.stack([inner.score(x[0, :3].mean(0)), inner.score(x[1, :4].mean(0))]).float()
    assert torch.equal(rest[0, :, 0], torch.tensor([1.0, 0, 0]) * decided[0]), "from the prompt's last token on"
    assert torch.equal(rest[1, :, 0], torch.tensor([0.0, 1, 1]) * decided[1])


# ---- one decision, at one site ---------------------------------------------------------------------------------------


def test_a_condition_is_read_where_it_tells_best_and_gates_what_comes_behind() -> None:
    capture = several({"a.0": 0.0, "a.1": 0.5, "a.2": 30.0, "a.3": 60.0, "a.4": 90.0, "b.0": 60.0, "b.1": 60.0})
    interventions, evidence = fit_sites(capture, Recipe(method="cast", site_weight="threshold"))
    reads = {item.site.path: (item.probe_site or item.site).path for item in interventions}
    assert reads == {"a.2": "a.2", "a.3": "a.2", "a.4": "a.2", "b.0": "b.0", "b.1": "b.0"}, (
        "of the first half, the best"
    )
    assert [item.weights for item in interventions] == [(1.0,)] * 5
    probes = {item.site.path: item.probes[0] for item in interventions}
    assert probes["a.3"] is not None
    assert all(torch.equal(a, b) for a, b in zip(probes["a.3"].tensors(), probes["a.2"].tensors(), strict=True))
    weights = {found.site: found.weight for found in evidence}
    assert weights == {"a.0": 0, "a.1": 0, **dict.fromkeys(reads, 1)}


def test_where_no_condition_tells_nothing_is_steered() -> None:
    with pytest.raises(DSASError, match="no site tells source from control"):
        fit_sites(several({"a.0": 0.0, "a.1": 90.0}), Recipe(method="cast"))


def test_in_a_combination_each_site_asks_for_itself() -> None:
    capture = several({"a.0": 60.0, "a.1": 60.0})
    interventions, _ = fit_sites(capture, Recipe(gate="all(dsas, cast)", form="token"))
    assert [item.probe_site for item in interventions] == [None, None]
    parts = {tuple(part.kind for part in probe.parts) for item in interventions for probe in item.probes}  # type: ignore[attr-defined]
    assert parts == {("linear", "pooled-condition")}
