"""Choosing the unit: the smallest strength that does enough and harms little."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsas_core.learning.calibration.unit import (
    FIXED_UNIT,
    KNEE,
    TEXT_UNITS,
    TRIALS,
    UNITS,
    Trial,
    choose,
    choose_knee,
)


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


@given(enough=st.floats(0.05, 15), limit=st.floats(0.05, 15), relative=st.booleans())
def test_the_knee_is_the_smallest_unit_with_nearly_the_effect_of_the_largest_harmless_one(
    enough: float, limit: float, relative: bool
) -> None:
    tried: list[float] = []

    def attempt(unit: float) -> Trial:
        tried.append(unit)
        return Trial(effect=unit / enough, drift=0.0, harm=unit / limit)

    unit, summary = choose_knee(attempt, relative=relative)
    harmless = [u for u in TEXT_UNITS if u <= limit]
    wanted = KNEE * (min(1.0, max(harmless, default=0.0) / enough) if relative else 1.0)
    fine = [u for u in harmless if u / enough >= wanted]
    assert unit == min(fine or harmless[-1:] or TEXT_UNITS[:1])
    assert summary["reached"] == any(u / enough >= KNEE for u in harmless)
    assert len(tried) == len(set(tried)) <= TRIALS
    assert [trial["unit"] for trial in summary["trials"]] == sorted(tried)


def test_what_the_search_for_harm_has_tried_narrows_that_for_the_effect() -> None:
    tried: list[float] = []

    def attempt(unit: float) -> Trial:
        tried.append(unit)
        return Trial(effect=unit / TEXT_UNITS[14], drift=0.0, harm=unit / TEXT_UNITS[14])

    unit, _ = choose_knee(attempt, units=TEXT_UNITS[:20], relative=True)
    assert unit == TEXT_UNITS[14]
    assert tried == [TEXT_UNITS[place] for place in (10, 15, 13, 14)], "13 is not enough, which ends the second search"


def test_harm_that_is_not_told_is_not_none() -> None:
    trial = Trial(1.0, drift=0.5)
    assert trial.harm is None
    assert (trial.is_harmless(0.5), trial.is_harmless(0.4), trial.is_harmless()) == (True, False, True)
    assert trial._replace(harm=0.0).is_harmless(0.4), "a harm of 0 is told"


@pytest.mark.parametrize(("harm", "unit"), [(2.0, TEXT_UNITS[0]), (0.0, TEXT_UNITS[-1])])
def test_where_all_units_do_harm_it_is_the_smallest_and_where_none_do_effect_decides(harm: float, unit: float) -> None:
    found, summary = choose_knee(lambda tried: Trial(effect=tried / 100, drift=0.0, harm=harm), relative=False)
    assert found == unit
    assert not summary["reached"]


def test_the_unit_of_a_method_that_fixes_it_is_tried_all_the_same() -> None:
    unit, summary = choose_knee(lambda unit: Trial(0.5, 0.0, harm=3.0), units=FIXED_UNIT)
    assert unit == 1
    assert summary["trials"] == [{"unit": 1.0, "effect": 0.5, "harm": 3.0}]


def test_a_knee_before_a_model_overflows() -> None:
    unit, summary = choose_knee(lambda unit: Trial(unit, 0.0) if unit < 0.5 else Trial(float("nan"), 0.0))
    assert unit == max(u for u in TEXT_UNITS if u < 0.5)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
