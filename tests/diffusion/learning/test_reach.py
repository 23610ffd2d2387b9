"""How far a change reaches beyond the thing: on changes whose reach is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsas_diffusion.learning.reach import RINGS, WIDEST, reach_of

SIDE = 64


def thing() -> np.ndarray:
    """The mask of a square of 16 pixels in the middle."""
    mask = np.zeros((SIDE, SIDE), np.float32)
    mask[24:40, 24:40] = 1
    return mask


def change(beyond: int, inside: float = 40.0, elsewhere: float = 0.0) -> np.ndarray:
    """A change of the square and of so many pixels around it."""
    changed = np.full((SIDE, SIDE, 3), elsewhere)
    changed[24 - beyond : 40 + beyond, 24 - beyond : 40 + beyond] = inside
    return changed


@pytest.mark.parametrize("beyond", [0, 1, 2, 4, 6, 8])
def test_it_is_the_width_of_what_changes_around_the_thing(beyond: int) -> None:
    assert reach_of([change(beyond)], [thing()]) == pytest.approx(beyond / SIDE, abs=WIDEST / RINGS)


def test_far_changes_are_of_the_whole_picture() -> None:
    """As far as is looked, and no farther; what changes everywhere alike reaches nowhere."""
    assert reach_of([change(12)], [thing()]) == WIDEST
    assert reach_of([change(4, elsewhere=15.0)], [thing()]) == reach_of([change(4)], [thing()])
    assert reach_of([change(0, inside=9.0, elsewhere=9.0)], [thing()]) == 0
    assert reach_of([change(0, inside=1.0, elsewhere=5.0)], [thing()]) == 0


@pytest.mark.parametrize("seed", range(4))
def test_noise_reaches_nowhere(seed: int) -> None:
    assert reach_of([np.random.default_rng(seed).normal(0, 5, (SIDE, SIDE, 3))], [thing()]) == 0


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(0.5, 4), sign=st.sampled_from([-1, 1]), beyond=st.integers(0, 8), copies=st.integers(1, 3))
def test_neither_the_size_of_a_change_nor_its_sign_matters(scale: float, sign: int, beyond: int, copies: int) -> None:
    assert reach_of([sign * scale * change(beyond)] * copies, [thing()] * copies) == reach_of(
        [change(beyond)], [thing()]
    )


@pytest.mark.parametrize("mask", [np.zeros((SIDE, SIDE)), np.ones((SIDE, SIDE))], ids=["nothing", "everything"])
def test_pictures_without_an_outline_do_not_count(mask: np.ndarray) -> None:
    assert reach_of([change(4), change(8)], [thing(), mask]) == reach_of([change(4)], [thing()])
    assert reach_of([change(8)], [mask]) == 0


def test_no_pictures_reach_nowhere() -> None:
    assert reach_of([], []) == 0
