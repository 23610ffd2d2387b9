"""From which timestep on a concept steers: as late as it has the effect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dsas_core import Concept, Intervention, Site
from dsas_core.learning.recipe import Recipe
from dsas_core.maps import AffineMap
from dsas_core.probes import ConstantProbe
from dsas_diffusion.learning.learn import Lesson
from dsas_diffusion.learning.trial.held_out_trial import PROBED, PictureTrial

EDGES = (500.0, 750.0)
ITEM = Intervention(Site("unet.mid"), (ConstantProbe(1.0),) * 3, (AffineMap(torch.ones(4)),) * 3, (1.0,) * 3)


class Trial(PictureTrial):
    """One whose effects by first steps are known, and whose unit is 1 with nine tenths of them."""

    def __init__(self, effects: dict[float | None, float]) -> None:
        self.effects, self.asked = effects, list[float | None]()

    def measure_effect(self, concept: Concept, strength: float) -> float:
        assert strength == PROBED
        return self.effects[concept.steps_below]

    def choose_unit(
        self, concept: Concept, drift: float, done: Callable[[], object] = lambda: None
    ) -> tuple[float, dict[str, Any]]:
        self.asked.append(concept.steps_below)
        return 1.0, {"trials": [{"unit": 1.0, "effect": 0.9 * self.effects[concept.steps_below]}]}


@pytest.mark.parametrize(
    ("effects", "below", "asked"),
    [
        ((1.00, 1.02, 1.04), 500.0, [500.0]),  # a look
        ((0.95, 1.05, 1.07), 750.0, [750.0]),  # a shape: much of the effect late, but not as much as with earlier steps
        ((0.84, 0.92, 1.05), None, [None]),
        ((0.87, 0.88, 0.89), None, [500.0, 750.0, None]),  # the most effective, where none has enough
        ((0.70, 0.70, 0.70), None, [None]),  # nor is any worth the search
    ],
)
def test_steering_begins_as_late_as_it_has_the_effect(
    effects: tuple[float, ...], below: float | None, asked: list[float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    trial, lesson = Trial(dict(zip((*EDGES, None), effects, strict=True))), object.__new__(Lesson)
    for name, value in (("_trial", trial), ("edges", EDGES), ("_at_embeddings", True)):
        monkeypatch.setattr(Lesson, name, value, raising=False)
    concept = Concept("shape", (ITEM,), edges=EDGES)
    chosen = lesson._choose_unit(concept, Recipe(), 0.1, lambda: None)
    assert trial.asked == asked
    assert chosen.steps_below == below
