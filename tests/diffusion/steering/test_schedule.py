"""Schedules: linear between their points, constant beyond them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsas_core import DSASError
from dsas_diffusion import Schedule

times = st.floats(0, 1000, width=32)
factors = st.floats(-5, 5, width=32)
points = st.lists(st.tuples(times, factors), min_size=1, max_size=6, unique_by=lambda point: point[0])


def at(schedule: Schedule, timestep: float) -> float:
    value = schedule(torch.tensor(timestep))
    assert value.shape == ()
    return float(value)


@given(points=points, timestep=times)
def test_it_is_linear_interpolation(points: list[tuple[float, float]], timestep: float) -> None:
    ordered = sorted(points)
    expected = np.interp(timestep, [t for t, _ in ordered], [factor for _, factor in ordered])
    if len(points) > 1 and min(np.diff([t for t, _ in ordered])) < 1e-2:
        low, high = min(f for _, f in points), max(f for _, f in points)
        assert low - 1e-5 <= at(Schedule(points), timestep) <= high + 1e-5  # steeper than float32 can tell
    else:
        assert at(Schedule(points), timestep) == pytest.approx(expected, abs=5e-3)


@given(points=points)
def test_it_is_exact_at_its_points_and_beyond(points: list[tuple[float, float]]) -> None:
    schedule, ordered = Schedule(points), sorted(points)
    for timestep, factor in points:
        assert at(schedule, timestep) == factor
    assert at(schedule, 0.0) == ordered[0][1]
    assert at(schedule, 1000.0) == ordered[-1][1]


@given(points=points, timestep=times)
def test_the_order_of_the_points_does_not_matter(points: list[tuple[float, float]], timestep: float) -> None:
    assert at(Schedule(points), timestep) == at(Schedule(points[::-1]), timestep)


@given(
    edges=st.tuples(st.integers(0, 999), st.integers(1, 1000)).filter(lambda pair: pair[0] < pair[1]), timestep=times
)
def test_between_is_one_inside_and_zero_outside(edges: tuple[int, int], timestep: float) -> None:
    stop, start = edges
    inside = stop <= timestep <= start
    if inside or timestep < stop - 0.01 or timestep > start + 0.01:
        assert at(Schedule.between(start, stop), timestep) == float(inside)


@pytest.mark.parametrize(
    "bad",
    [
        [],
        [(500, 1.0), (500, 0.0)],
        [(-1, 1.0)],
        [(1001, 1.0)],
        [(float("nan"), 1.0)],
        [(500, float("nan"))],
        [(500, 1.0), (600, float("inf"))],
    ],
    ids=repr,
)
def test_bad_points(bad: Any) -> None:
    with pytest.raises(DSASError, match=r"expected \(timestep, factor\) pairs"):
        Schedule(bad)


@pytest.mark.parametrize(("start", "stop"), [(500, 500), (200, 800), (1100, 0), (500, -1), (float("nan"), 0)])
def test_bad_bounds(start: float, stop: float) -> None:
    with pytest.raises(DSASError, match=r"expected (1000 >= start > stop >= 0|a number from 0 to 1000)"):
        Schedule.between(start, stop)


@given(timestep=times, first=factors, last=factors)
def test_kinds_of_schedules(timestep: float, first: float, last: float) -> None:
    p = 1 - timestep / 1000
    assert at(Schedule.constant(first), timestep) == pytest.approx(first, abs=1e-5)
    assert at(Schedule.linear(first, last), timestep) == pytest.approx(first + (last - first) * p, abs=1e-3)
    cosine = first + (last - first) * (1 - np.cos(np.pi * p)) / 2
    assert at(Schedule.cosine(first, last), timestep) == pytest.approx(cosine, abs=2e-3 * abs(last - first) + 1e-4)
