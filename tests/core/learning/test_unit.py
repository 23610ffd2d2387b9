"""Choosing the unit: the smallest strength that does enough and harms little."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsas_core.learning.calibration.unit import TRIALS, UNITS, choose


@given(enough=st.floats(0.1, 15), harm=st.floats(0.1, 15))
def test_the_smallest_that_is_enough_within_the_limit(enough: float, harm: float) -> None:
    tried: list[float] = []

    def attempt(unit: float) -> tuple[float, float]:
        tried.append(unit)
        return unit / enough, 0.0 if unit <= harm else 1.0

    unit, summary = choose(attempt, drift=0.5)
    fine = [u for u in UNITS if enough <= u <= harm]
    assert summary["reached"] == bool(fine)
    if fine:
        assert unit == min(fine)
    elif UNITS[0] <= harm:
        assert unit <= harm, "too little is better than harm"
        assert unit in tried
    else:
        assert unit == UNITS[0]
    assert len(tried) <= TRIALS
    assert [trial["unit"] for trial in summary["trials"]] == sorted(tried)


@pytest.mark.parametrize("overflow", [float("nan"), float("inf")])
def test_a_model_that_overflows_is_steered_too_far(overflow: float) -> None:
    unit, summary = choose(lambda unit: (unit / 20, 0.0) if unit < 2 else (overflow, overflow), drift=0.5)
    assert unit == max(u for u in UNITS if u < 2)
    assert not summary["reached"]
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
