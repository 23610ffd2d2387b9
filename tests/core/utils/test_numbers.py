"""Numbers that users give: whatever they are, they are within bounds, or refused in one line."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsas_core import Auto, DSASError, Recipe, Site, Steering
from dsas_core.evaluation import Plan
from dsas_core.learning.capture import check_edges
from dsas_core.llm.steering.answer import answer
from dsas_core.utils.numbers import KINDS, accepts, number, python_number
from dsas_diffusion import Schedule
from dsas_diffusion.generation.settings import Settings
from tests.fixtures.concepts import random_concept
from tests.fuzz.campaign import check_message

SITES = {Site("layer"): 4}
#: what is no finite number of any kind
HOSTILE = [
    *(math.nan, math.inf, -math.inf, 10**400, -(10**400), 1e39, 1e308, Decimal("1e999"), Decimal("sNaN")),
    *(Fraction(10**400, 3), np.float16("inf"), np.float32("nan"), np.array(np.inf), np.int64(-(2**63))),
    *(torch.tensor(math.nan), torch.ones((), device="meta"), torch.ones(2, 2)),
    *(True, np.True_, torch.tensor(True), None, "", "much", "1", b"1", [], ["1"], {}, {1}, object, 1j, lambda: 1),
]
#: the wrappers in which a number of Python may come
WRAPPERS: list[Callable[[float], Any]] = [
    *(float, np.float64, np.array, torch.tensor, Fraction, Decimal, lambda x: np.array(x, np.float64)[()]),
    *(lambda x: torch.tensor(x, dtype=torch.float64), lambda x: np.longdouble(x)),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value).split(" at 0x")[0][:30])
def test_what_is_no_number_within_bounds_is_refused_in_one_line(kind: str, value: Any) -> None:
    with pytest.raises(DSASError, match=r"a knob: expected a (whole )?number from .* to .*, found") as error:
        number(kind, value, "a knob")
    check_message(str(error.value))


@given(kind=st.sampled_from(sorted(KINDS)), value=st.floats() | st.integers(), wrap=st.sampled_from(WRAPPERS))
def test_a_number_is_taken_as_it_is_or_refused(kind: str, value: float, wrap: Callable[[float], Any]) -> None:
    bounds = KINDS[kind]
    fits = math.isfinite(value) and bounds.low <= value <= bounds.high
    assert accepts(kind, value) == (fits and (not bounds.whole or isinstance(value, int)))
    try:
        wrapped = wrap(value)
    except (OverflowError, ValueError, RuntimeError, TypeError):  # the wrapper cannot hold it
        return
    if accepts(kind, wrapped):
        found = number(kind, wrapped)
        assert type(found) is (int if bounds.whole else float)
        assert bounds.low <= found <= bounds.high
        assert found == pytest.approx(value, rel=1e-6)  # of torch, float32
    else:
        assert python_number(wrapped) is None or not fits or bounds.whole


#: what takes numbers in Python, by kind, as a function of one of them
TAKERS: dict[str, Callable[[Any], Any]] = {
    "strength": lambda x: Steering({random_concept(SITES): x}),
    "strength of several": lambda x: Steering({random_concept(SITES): [1.0, x]}),
    "auto target": Auto,
    "auto cap": lambda x: Auto(0.5, x),
    "schedule timestep": lambda x: Schedule([(x, 1.0)]),
    "schedule factor": lambda x: Schedule([(0, 1.0), (500, x)]),
    "schedule linear": lambda x: Schedule.linear(0, x),
    "schedule cosine": lambda x: Schedule.cosine(x, 0),
    "schedule constant": Schedule.constant,
    "schedule between": lambda x: Schedule.between(1000, x),
    "steps": lambda x: Settings(x, 1.0),
    "guidance": lambda x: Settings(1, x),
    "size": lambda x: Settings(1, 1.0, size=x if x is not None else "none"),
    "edge": lambda x: check_edges([x]),
    "plan count": lambda x: Plan(count=x),
    "plan seeds": lambda x: Plan(seeds=x),
    "plan strengths": lambda x: Plan(strengths=(1.0, x)),
    "plan targets": lambda x: Plan(targets=(x,)),
    "recipe rounds": lambda x: Recipe(rounds=x),
    "recipe top_share": lambda x: Recipe(top_share=x),
    "recipe control_texts": lambda x: Recipe(control_texts=x),
    "recipe lead": lambda x: Recipe(lead=x),
    "recipe cloud": lambda x: Recipe(cloud=x),
    "recipe keep": lambda x: Recipe(keep="none" if x is None else x),
    "recipe control_h": lambda x: Recipe(control_h="none" if x is None else x),
    "recipe seed": lambda x: Recipe(seed=x),
    "answer length": lambda x: answer(None, None, None, x),
    "answer temperature": lambda x: answer(None, None, None, 1, x),
    "answer seed": lambda x: answer(None, None, None, 1, 0.0, x),
}


@pytest.mark.parametrize("taker", TAKERS)
def test_python_takes_the_numbers_that_commands_take(taker: str) -> None:
    for value in HOSTILE:
        with pytest.raises(DSASError) as error:
            TAKERS[taker](value)
        check_message(str(error.value))


@pytest.mark.parametrize(
    "one", [1, 1.0, np.float16(1), np.array(1.0), torch.tensor(1), Fraction(1), Decimal(1)], ids=repr
)
def test_numbers_of_other_libraries_are_numbers(one: Any) -> None:
    assert dict(Steering({random_concept(SITES): one}).strengths) == {"random": 1.0}
    assert Schedule.constant(one).points == [(1000.0, 1.0)]
    assert Settings(3, one).guidance == 1.0
