"""The ends of a slider: known answers on functions that are constructed, whatever their form."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsas_core import Concept, DSASError, Site
from dsas_core.learning.calibration.slider_range import (
    MAX_EFFECT_LOSS,
    MAX_TRIALS,
    MAX_UNITS,
    SATURATION_TOL,
    STEP,
    VISIBLE,
    Trial,
    find_range,
    prompts_of,
)
from dsas_core.learning.calibration.unit import UNITS
from dsas_core.learning.prompts.held_out import split_held_out
from tests.fixtures.concepts import random_concept

CONCEPT = random_concept({Site("model"): 4})
UNIT = UNITS[8]
DRIFT = 0.05


def line(strength: float, slope: float = 0.25) -> Trial:
    """The effect is 1 at UNIT, controls stay, and results move evenly and for ever, within the limit up to MOST."""
    units = strength / UNIT
    return Trial(max(0.0, units), 0.0, slope * abs(units), 1.0)


def test_ends_are_found_to_a_quarter_of_a_unit() -> None:
    def attempt(strength: float) -> Trial:
        units = strength / UNIT
        return line(strength)._replace(drift=float(units > 2.6 or units < -1.3))

    found = find_range(CONCEPT, attempt, DRIFT)
    assert (found.unit, found.range) == (UNIT, (-1.25, 2.5))


@given(
    low=st.floats(0, 5),
    high=st.floats(1, 5),
    by=st.sampled_from(["drift", "displacement", "novelty"]),
    seed=st.integers(0, 99),
)
def test_the_end_is_useful_and_a_quarter_further_out_is_not(low: float, high: float, by: str, seed: int) -> None:
    """Where usefulness ends at one place the answer is that place; `seed` adds holes, and the promise still holds."""
    holes = {seed % 7 - 3.0, seed % 5 + 1.5} if seed % 2 else set()
    tried: dict[float, bool] = {}

    def attempt(strength: float) -> Trial:
        units = strength / UNIT
        bad = not -low <= units <= high or round(units, 6) in holes - {1.0, 0.0}
        tried[round(units, 6)] = not bad
        return line(strength)._replace(**{by: 10.0 * bad} if bad else {})

    done: list[None] = []
    found = find_range(CONCEPT, attempt, DRIFT, lambda: done.append(None))
    ends = found.range or (0.0, 0.0)
    if not holes:
        assert found.unit == UNIT
        expected = -min(MAX_UNITS, math.floor(low / STEP) * STEP), min(MAX_UNITS, math.floor(high / STEP) * STEP)
        assert ends == expected
    for end in ends:
        sign = math.copysign(1, end)
        inside = [useful for units, useful in tried.items() if 0 < units * sign <= abs(end)]
        assert all(inside), "nothing that was tried between 0 and an end had failed"
    assert len(done) == len(tried) <= MAX_TRIALS
    places = [trial["strength"] for trial in found.evidence["range"]["trials"]]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        # beyond 1.4 units results go on as they were
        (lambda u, t: t._replace(effect=min(t.effect, 1.4), displacement=min(t.displacement, 0.35)), (-2.0, 2.0)),
        # a negative strength does nothing that is to be seen
        (lambda u, t: t._replace(displacement=0.9 * VISIBLE) if u < 0 else t, (0.0, 4.0)),
        # turned too far, a dog is no cat
        (lambda u, t: t._replace(effect=1.0 - 1.01 * MAX_EFFECT_LOSS) if u > 1.7 else t, (-4.0, 1.5)),
        (
            lambda u, t: t._replace(effect=1.0 - 0.5 * MAX_EFFECT_LOSS, displacement=abs(u) / 4) if u > 1.7 else t,
            (-4.0, 4.0),
        ),
        # 1 unit itself moves results farther than asking in words: that is no reason to end below it
        (lambda u, t: t._replace(displacement=2 * abs(u)), (-1.0, 1.0)),
        # nor is it that 1 unit itself is stranger than what is unsteered
        (lambda u, t: t._replace(novelty=1.0 + abs(u) / 4), (-1.5, 1.5)),
        # the steered model overflows
        (lambda u, t: t._replace(effect=math.nan, displacement=math.inf) if abs(u) > 2 else t, (-2.0, 2.0)),
        # nothing is useful
        (lambda u, t: t._replace(drift=1.0), None),
    ],
    ids=["plateau", "invisible", "turned", "kept", "far", "strange", "overflow", "harm"],
)
def test_what_ends_a_range(change: Any, expected: tuple[float, float] | None) -> None:
    found = find_range(CONCEPT, lambda strength: change(strength / UNIT, line(strength)), DRIFT)
    assert found.range == expected
    json.dumps(found.evidence, allow_nan=False)


def test_a_harm_of_nothing_is_told_whatever_the_drift() -> None:
    drifting = lambda s: line(s)._replace(drift=2 * DRIFT)  # noqa: E731 - two of one form
    unranged = find_range(CONCEPT, drifting, DRIFT)
    ranged = find_range(CONCEPT, lambda s: drifting(s)._replace(harm=0.0), DRIFT, choose_unit=lambda _: (UNIT, {}))
    assert (unranged.range, ranged.range) == (None, (-4.0, 4.0))


def test_the_smallest_of_equal_strengths_that_were_tried_is_the_end() -> None:
    """The plateau begins at 1 unit, which choosing the unit has tried: no trial is spent on finding it."""
    found = find_range(
        CONCEPT, lambda s: Trial(min(1.0, s / UNIT), 0.0, 1.0 - SATURATION_TOL * (abs(s) < UNIT), 1.0), DRIFT
    )
    assert found.range is not None
    assert found.range[1] == 1.0


@pytest.mark.parametrize("unit", UNITS)
def test_ends_are_among_the_strengths_that_were_tried(unit: float) -> None:
    """Whatever the unit: 1.75 of it, divided by it, is 1.75."""

    def attempt(strength: float) -> Trial:
        return line(strength * UNIT / unit)._replace(drift=float(abs(strength / unit) > 1.9))

    found = find_range(CONCEPT, attempt, DRIFT, choose_unit=lambda _: (unit, {}))
    assert found.range == (-1.75, 1.75)
    assert {-1.75, 1.75} <= {trial["strength"] for trial in found.evidence["range"]["trials"]}


def test_a_range_is_kept_in_files_and_old_ones_have_none(tmp_path: Path) -> None:
    ranged = replace(CONCEPT, range=(-0.75, 2.5))
    assert "range" not in json.loads((CONCEPT.save_pretrained(tmp_path / "old") / "config.json").read_text())
    assert Concept.from_pretrained(tmp_path / "old").range is None
    loaded = Concept.from_pretrained(ranged.save_pretrained(tmp_path / "new"))
    assert loaded == ranged != CONCEPT
    assert loaded.range == (-0.75, 2.5)
    assert "range -0.75 to 2.5" in (tmp_path / "new" / "README.md").read_text()
    assert replace(ranged, unit=1.0).with_unit(0.5).range == (-1.5, 5.0), "the same ends, in other units"


@pytest.mark.parametrize("damaged", [[1, 2], [-1], [0, 0], ["a", "b"], "wide", 3, [-1, math.inf], [-math.inf, 1]])
def test_a_damaged_range_is_told_of(damaged: Any, tmp_path: Path) -> None:
    file = CONCEPT.save_pretrained(tmp_path / "c") / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "range": damaged}))
    with pytest.raises(DSASError, match=r"config\.json is damaged"):
        Concept.from_pretrained(tmp_path / "c")


def test_prompts_are_drawn_as_learning_drew_them() -> None:
    sides = {side: [f"{side} {{n}}"] for side in ("source", "target", "control")}
    content = {"name": "c", "placeholders": {"n": [str(n) for n in range(30)]}, **sides}
    learned = replace(CONCEPT, provenance={"prompts": content, "count": 10, "seed": 3})
    drawn, seed = prompts_of(learned, None, None, None)
    assert ({side: len(texts) for side, texts in drawn.items()}, seed) == (
        {"source": 10, "target": 10, "control": 20},
        3,
    )
    assert prompts_of(learned, None, 12, 5) == (drawn, 5), "another seed is one of noise; the same quarter is held back"
    assert prompts_of(learned, content, None, None) == (drawn, 3)
    others = prompts_of(learned, content, 12, 5)[0]
    fitted = {text for texts in split_held_out(drawn)[0].values() for text in texts}
    assert not fitted & {text for texts in others.values() for text in texts}, "what was fitted on tells nothing"
    assert len(prompts_of(CONCEPT, content, None, None)[0]["source"]) == 30
    for lacking in ("prompts", "count", "seed"):
        kept = {key: value for key, value in learned.provenance.items() if key != lacking}
        with pytest.raises(DSASError, match="does not tell from which prompts it was learned"):
            prompts_of(replace(learned, provenance=kept), None, None, None)
