"""Fronts, hypervolumes and intervals, against counting, closed forms and definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsas_core import DSASError
from dsas_core.evaluation.fronts import at_equal_gain, cost_at, gain_at, hypervolume, pareto_front
from dsas_core.evaluation.intervals import bootstrap_indices, bootstrap_interval

POINTS = st.lists(st.tuples(st.floats(0, 1.2), st.floats(-0.2, 1)), max_size=8)


@given(POINTS)
def test_the_pareto_front_holds_what_nothing_dominates(points: list[tuple[float, float]]) -> None:
    front = pareto_front(points)
    costs = [points[i][0] for i in front]
    assert costs == sorted(costs)
    for cost, gain in points:
        beaten = any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points)
        assert ((cost, gain) in [points[i] for i in front]) != beaten


@given(POINTS)
def test_a_hypervolume_is_the_share_of_the_square_that_is_dominated(points: list[tuple[float, float]]) -> None:
    side = (np.arange(200) + 0.5) / 200
    cost, gain = np.meshgrid(side, side)
    dominated = np.zeros(cost.shape, bool)
    for c, g in points:
        dominated |= (cost >= c) & (gain <= g)
    assert hypervolume(points) == pytest.approx(dominated.mean(), abs=0.04)


@pytest.mark.parametrize(
    ("points", "area"),
    [([], 0), ([(0, 1)], 1), ([(0.5, 0.5)], 0.25), ([(0.2, 0.5), (0.6, 1.0)], 0.6), ([(1.5, 1.0), (0.5, -1.0)], 0)],
)
def test_hypervolumes_by_hand(points: list[tuple[float, float]], area: float) -> None:
    assert hypervolume(points) == pytest.approx(area)


def test_costs_are_linear_between_strengths() -> None:
    curve = [(0.1, 0.5), (0.3, 0.7), (0.9, 0.6)]
    assert [cost_at(curve, gain) for gain in (0, 0.25, 0.5, 0.6, 0.7, 0.8)] == [
        0.0,
        *(pytest.approx(cost) for cost in (0.05, 0.1, 0.2, 0.3)),
        None,
    ]


def test_gains_of_a_front_are_linear_between_its_points() -> None:
    curve = [(0.1, 0.5), (0.3, 0.7), (0.4, 0.6)]  # the last is beaten
    assert [gain_at(curve, cost) for cost in (0, 0.05, 0.1, 0.2, 0.3, 0.9)] == pytest.approx(
        [0, 0.25, 0.5, 0.6, 0.7, 0.7]
    )
    assert gain_at([(0.0, 0.5), (0.2, 1.0)], 0.0) == 0.5
    assert gain_at([], 0.3) == 0
    assert gain_at([(0.2, -0.5)], 0.1) == gain_at([(0.2, -0.5)], 0.5) == 0, "not steering is a point as well"


def test_equal_gains_are_those_that_both_reach() -> None:
    result = at_equal_gain([(0.1, 1.0)], [(0.4, 0.5)], 0.9)
    assert (result.gain, result.lowered) == (0.5, True)
    assert (result.cost, result.other_cost, result.ratio) == pytest.approx((0.05, 0.4, 0.125))
    assert not at_equal_gain([(0.1, 1.0)], [(0.4, 1.0)], 0.9).lowered
    assert at_equal_gain([(0.1, 1.0)], [(0.4, 0.0)], 0.9).gain == 0


def test_resamples_draw_seeds_and_prompts() -> None:
    labels = [(seed, prompt) for seed in ("x", "y") for prompt in "abcd"]
    for at in bootstrap_indices(labels, 100):
        seeds = {name: [labels[i][1] for i in at if labels[i][0] == name] for name in "xy"}
        assert len(at) == 8
        drawn = [sorted(prompts) for prompts in seeds.values() if prompts]
        assert len(drawn) == 1 or drawn[0] == drawn[1], "a prompt goes with every seed that was drawn"
    assert [at.tolist() for at in bootstrap_indices(labels, 3, 1)] == [
        at.tolist() for at in bootstrap_indices(labels, 3, 1)
    ]


def test_seeds_are_no_further_prompts() -> None:
    works = np.array([1.0, 1, 1, 1, 0, 0, 0, 0])
    once = bootstrap_interval(lambda at: float(works[at].mean()), [(0, i) for i in range(8)], rounds=2000)
    twice = np.tile(works, 2)
    labels = [(seed, i) for seed in (0, 1) for i in range(8)]
    again = bootstrap_interval(lambda at: float(twice[at].mean()), labels, rounds=2000)
    assert (again.low, again.high) == pytest.approx((once.low, once.high), abs=0.13), "they come in eighths"
    assert again.high - again.low > 0.6, "sixteen prompts would have 0.5"


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    hits = 0
    for trial in range(120):
        values = random.normal(size=40)

        def mean(at: np.ndarray, values: np.ndarray = values) -> float:
            return float(values[at].mean())

        result = bootstrap_interval(mean, [(0, i) for i in range(40)], rounds=200, seed=trial)
        hits += result.low <= 0 <= result.high
        assert result.low <= result.value <= result.high
    assert 0.87 <= hits / 120 <= 1


def test_bad_intervals() -> None:
    with pytest.raises(DSASError, match="0 items"):
        bootstrap_interval(lambda at: 0.0, [])
    with pytest.raises(DSASError, match="level 1"):
        bootstrap_interval(lambda at: 0.0, [(0, 0)], level=1)
