"""How strange results are: by what is near, in features of any unit."""

from __future__ import annotations

import pytest
import torch

from dsas_core.learning.calibration.novelty import NearestNeighbourNovelty

WIDTH = 6


def results(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


KNOWN, OWN = results(200, 0), results(50, 1)


def test_what_is_as_usual_is_not_strange_and_what_is_off_is() -> None:
    usual = NearestNeighbourNovelty(KNOWN, OWN)
    assert usual.novelty(OWN) == pytest.approx(1.0)
    assert 0.8 < usual.novelty(results(50, 2)) < 1.2
    away = [usual.novelty(OWN + far * torch.ones(WIDTH)) for far in (1.0, 2.0, 4.0)]
    assert 1.0 < away[0] < away[1] < away[2]


def test_far_from_where_it_was_but_near_to_others_is_not_strange() -> None:
    apart = torch.cat([KNOWN, KNOWN + 50])
    assert NearestNeighbourNovelty(apart, OWN).novelty(OWN + 50) == pytest.approx(1.0)
    assert NearestNeighbourNovelty(KNOWN, OWN).novelty(OWN + 50) > 10


def test_units_of_features_make_no_difference() -> None:
    units = torch.tensor([1e-3, 1.0, 1e3, 5.0, 0.1, 1e5])
    odd = results(20, 3) * 3
    assert NearestNeighbourNovelty(KNOWN * units, OWN * units).novelty(odd * units) == pytest.approx(
        NearestNeighbourNovelty(KNOWN, OWN).novelty(odd)
    )


def test_a_feature_that_never_moves_and_a_lone_result() -> None:
    flat = KNOWN.clone()
    flat[:, 0] = 1.0
    assert NearestNeighbourNovelty(flat, flat[:9] + 0.1).novelty(flat[:9] + 0.1) == pytest.approx(1.0)
    assert NearestNeighbourNovelty(KNOWN[:1].repeat(2, 1), OWN).novelty(OWN) == pytest.approx(1.0)
