"""How far a change reaches beyond the thing: on changes whose reach is known, and on a tiny pipeline."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsas_diffusion.generation.settings import settings_of
from dsas_diffusion.learning import reach
from dsas_diffusion.learning.reach import RINGS, WIDEST, measure_reach, reach_of
from dsas_diffusion.pipelines.adapter import adapt
from dsas_diffusion.steering.concept_masks import MaskRule, rule_as_evidence
from tests.diffusion.steering.test_identities_by_family import BANANA, DOG, concept_of, pipe_of

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


def test_it_is_measured_on_pictures_unsteered_and_at_strength_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the prompts; the growth that the concept has so far does not count."""
    pipe, concept = pipe_of("sd"), concept_of("sd", "cross").with_unit(4.0)
    reader = concept.interventions[-1].as_read_only()
    rule = MaskRule((str(reader.site),), margin=0.0)
    compared: list[tuple[Any, Any]] = []

    def noted(changes: Any, masks: Any) -> float:
        compared.append((np.stack(changes), np.stack(masks)))
        return reach_of(changes, masks)

    monkeypatch.setattr(reach, "reach_of", noted)

    def measured(growth: float, unit: float, prompts: list[str], batch: int) -> float:
        grown = rule_as_evidence(replace(rule, growth=growth))
        readable = replace(concept, interventions=(*concept.interventions, reader), evidence={"mask": grown}, base={})
        adapter = adapt(pipe)
        how = settings_of(adapter, 2, 3.0, 32)
        return measure_reach(adapter, readable.with_unit(unit), prompts, [3, 4][: len(prompts)], how, batch)

    prompts = [BANANA, DOG]
    widths = [measured(growth, 4.0, prompts, batch) for growth, batch in ((0.0, 2), (0.3, 2), (0.0, 1))]
    assert len(set(widths)) == 1
    assert 0 <= widths[0] <= WIDEST
    first, grown, singly = compared
    assert first[0].shape == (2, *first[1].shape[1:], 3)
    assert np.array_equal(first[1], grown[1])
    assert np.array_equal(first[0], grown[0])
    assert np.abs(first[0] - singly[0]).max() <= 2  # up to float noise before rounding
    assert np.abs(first[0]).mean() > 1
    assert measured(0.0, 1e-6, prompts, 2) == 0
    assert not compared[-1][0].any()
