"""What strengths and settings of steering may be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dsas_core import Auto, Concept, DSASError, Site, Steering
from tests.fixtures.concepts import random_concept

SITES = {Site("model.model.layers.0"): 32, Site("model.model.layers.1"): 32}


def named(name: str = "random", **fields: Any) -> Concept:
    return random_concept(SITES, name=name, **fields)


def test_strengths_are_a_mapping_of_fixed_names() -> None:
    steering = Steering({named(name="a"): 1, named(name="b"): [0.5, -2]})
    assert dict(steering.strengths) == {"a": 1.0, "b": [0.5, -2.0]}
    steering.strengths["a"] = [1.0, 2.0]
    assert steering.strengths["a"] == [1.0, 2.0]
    with pytest.raises(DSASError, match="no concept 'c' is attached; there is a, b"):
        steering.strengths["c"] = 1.0
    with pytest.raises(DSASError, match="no concept 'c' is attached"):
        _ = steering.strengths["c"]
    with pytest.raises(DSASError, match="set it to 0"):
        del steering.strengths["a"]


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        [1.0, float("nan")],
        [],
        "much",
        None,
        [None],
        1e39,
        10**400,
        torch.ones(2, 2),
        torch.ones((), device="meta"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_strength_must_be_finite(value: Any) -> None:
    with pytest.raises(DSASError, match="strength of 'random': expected a finite number, or one per prompt"):
        Steering({named(): value})


@pytest.mark.parametrize(
    "value",
    [np.float32(2), np.int64(2), np.array(2.0), torch.tensor(2), torch.tensor(2.0, dtype=torch.bfloat16)],
    ids=repr,
)
def test_numbers_of_numpy_and_torch_are_strengths(value: Any) -> None:
    steering = Steering({named(name="a"): value, named(name="b"): [value, 1]})
    assert dict(steering.strengths) == {"a": 2.0, "b": [2.0, 1.0]}
    assert Auto(0.5, value) == Auto(0.5, 2.0)


@pytest.mark.parametrize("values", [np.array([2.0, 1.0]), torch.tensor([2, 1]), (2, 1)], ids=repr)
def test_arrays_of_numpy_and_torch_are_one_strength_per_prompt(values: Any) -> None:
    assert dict(Steering({named(): values}).strengths) == {"random": [2.0, 1.0]}


def test_bad_settings_of_steering() -> None:
    with pytest.raises(DSASError, match="two concepts are named 'random'"):
        Steering({named(seed=1): 1.0, named(seed=2): 1.0})
    with pytest.raises(DSASError, match="gate 'maybe': expected None"):
        Steering({named(): 1.0}, gate="maybe")
    with pytest.raises(DSASError, match="a schedule for 'other', but attached are random"):
        Steering({named(): 1.0}, schedule={"other": lambda t: t})
