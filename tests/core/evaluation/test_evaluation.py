"""What evaluations have in common, on a model that is a table of numbers."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dsas_core.evaluation import Evaluation, Plan, RunStore
from dsas_core.learning.prompts.prompt_file import load_prompts
from dsas_core.model.sites import Site
from dsas_core.steering.strengths import Auto
from tests.fixtures.concepts import random_concept

PROMPTS = {
    "name": "banana",
    "placeholders": {"place": ["on the grass", "on a table", "at night", "in the snow"]},
    "source": ["a banana {place}", "two bananas\n{place}"],
    "target": ["a blurred banana {place}", "two blurred bananas\n{place}"],
    "control": ["a dog {place}", "a cat {place}"],
}


class Judge:
    """Gives its own number where the concept is at work."""

    def __init__(self, name: str, score: float) -> None:
        self.name, self.score = name, score


class Numbers(Evaluation):
    """Outputs are strengths; every control changes by a tenth of it."""

    outputs = "numbers"

    def run_arms(self) -> None:
        self.completed = [*self.grid, ("base", 0.0)]
        self.skip("nothing is really run")
        self.skip("nothing is really run")

    def judge_outputs(self, judge: Judge, arm: str, strength: float | Auto) -> np.ndarray:
        assert arm == "asked" or (arm, strength) in self.completed
        score = {"base": 0.0, "asked": 1.0}.get(arm, judge.score)
        return np.full(len(self.labels("source")), score)

    def preservation(self, arm: str, strength: float | Auto) -> tuple[np.ndarray, dict[str, float]]:
        number = strength.target if isinstance(strength, Auto) else strength
        return np.full(len(self.labels("control")), number / 10), {"unchanged": 0.0}

    def mean_h(self, side: str) -> float:
        return {"source": 0.5, "control": 0.25}[side]

    def baseline_figures(self, arm: str) -> dict[str, float]:
        return {"cost": 0.0}

    def further_figures(self) -> dict[str, Any]:
        return {"further": True}

    def sample(self, side: str, number: int) -> dict[str, str]:
        return {"base": f"{side} {number}"}

    def timed_work(self) -> Any:
        return lambda: None, {"model": "numbers"}, torch.device("cpu")

    def attach(self, gate: str | None = None) -> Any:
        return nullcontext()


def test_an_evaluation_on_a_table_of_numbers(tmp_path: Path) -> None:
    concept = random_concept({Site("text.0"): 8})
    plan = Plan(count=4, strengths=(1.0, 2.0), arms=("dsas", "on"))
    judges = [Judge("half", 0.5), Judge("other", 0.25)]
    found = Numbers(concept, load_prompts(PROMPTS), judges, RunStore(tmp_path / "run", {}), plan).report()
    assert [point["strength"] for point in found["arms"]["on"]["points"]] == [1.0, 2.0]
    point = found["arms"]["dsas"]["points"][1]
    assert (point["effect"]["value"], point["cost"]["value"], point["unchanged"]) == (0.5, pytest.approx(0.2), 0)
    assert found["dose"] == {"dsas": {"source": 0.5, "control": 0.25}, "on": {"source": 1.0, "control": 1.0}}
    assert found["baselines"] == {"no steering": {"shown": 0, "cost": 0}, "asked in words": {"shown": 1, "cost": 0}}
    assert found["judges"] == [{"judge": "other", "base": 0, "dsas": 0.25, "on": 0.25}]
    assert {line["wording"] for line in found["wordings"]} == {"a banana {place}", "two bananas / {place}"}
    assert sum(line["numbers"] for line in found["wordings"]) == 4
    assert (found["oracle"], found["further"], found["skipped"]) == ("prompts", True, ["nothing is really run"])
    assert [row["numbers"] for row in found["samples"] if row["side"] == "control"] == [
        {"base": f"control {number}"} for number in range(4)
    ]
    assert found["cost"]["time_ratio"] > 0


def test_strengths_that_choose_themselves_are_measured_beside_the_grid(tmp_path: Path) -> None:
    concept = random_concept({Site("text.0"): 8})
    plan = Plan(count=4, strengths=(1.0,), arms=("dsas",), targets=(0.25,))
    evaluation = Numbers(concept, load_prompts(PROMPTS), Judge("half", 0.5), RunStore(tmp_path / "run", {}), plan)
    assert evaluation.grid == [("dsas", 1.0), *(("dsas", auto) for auto in evaluation.autos)]
    assert [line["target"] for line in evaluation.report()["auto"]] == [auto.target for auto in evaluation.autos]
