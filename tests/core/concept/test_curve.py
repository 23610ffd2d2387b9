"""What people are told of gates and of the curve that a unit was chosen from."""

from __future__ import annotations

import re
from typing import Any

import pytest

from dsas_core import Site
from dsas_core.concept.card import render_card
from dsas_core.concept.curve import broken_limits, trial_rows
from dsas_core.concept.evidence import describe_reading, describe_unit
from dsas_diffusion.cli.concept_report import report_evidence
from tests.fixtures.concepts import random_concept

LIMITS = {"unlikely": 0.4, "always_on": 0.3, "repeats": 0.1}


def trial(unit: float, effect: float, **costs: float) -> dict[str, float]:
    """A trial of texts, whose harm leaves drift out."""
    costs = {"drift": 0.5, "unlikely": 0.1, "always_on": 0.1, "repeats": 0.0, **costs}
    return {"unit": unit, "effect": effect, "harm": max(costs[name] / limit for name, limit in LIMITS.items()), **costs}


def evidence(*trials: dict[str, float], reached: bool = True) -> dict[str, Any]:
    return {
        "trials": list(trials),
        "limits": LIMITS,
        "drift_limit": 0.01,
        "reached": reached,
        "eyes_accuracy": 0.9,
    }


TRIALS = trial(0.5, 0.4), trial(1.0, 0.8, unlikely=0.39), trial(2.0, 1.0, unlikely=0.7, repeats=0.2)
EARLY = [
    {"site": f"layers.{i}", "bin": 0, "weight": 0.0, "balanced_accuracy": 0.8, "auroc": 0.8 + i / 10, "candidate": True}
    for i in range(2)
]
STEERED = {
    "site": "layers.7",
    "bin": 0,
    "weight": 1.0,
    "balanced_accuracy": 0.9,
    "auroc": 0.9,
    "missed": 0.25,
    "touched": 0.125,
    "reads": "layers.1",
    "unseen": {"balanced_accuracy": 0.6, "auroc": 0.7, "missed": 0.75, "touched": 0.0625, "control_h": 0.5},
}


def test_each_limit_that_is_broken_is_named() -> None:
    rows = trial_rows(1.0, evidence(*TRIALS))
    assert [row["breaks"] for row in rows] == ["", "", "unlikely, repeats"]
    assert [row["chosen"] for row in rows] == [False, True, False]
    assert [len(row["bar"]) for row in rows] == [4, 8, 10]


def test_drift_is_a_limit_where_it_took_part() -> None:
    drifting = trial(1.0, 1.0)
    assert broken_limits(drifting, evidence()) == []
    assert broken_limits({**drifting, "harm": 50.0}, evidence()) == ["drift"]
    picture = {"unit": 1.0, "effect": 1.0, "drift": 0.2}
    assert broken_limits(picture, {"drift_limit": 0.1}) == ["drift"]
    assert broken_limits(trial(1.0, 1.0) | {"harm": 9.0, "drift": float("nan")}, evidence()) == ["not finite"]


@pytest.mark.parametrize(
    ("unit", "reached", "words"),
    [
        (1.0, True, "the smallest that does what is wanted"),
        (1.0, False, "the largest that does no harm, though it does less than is wanted"),
        (0.5, False, "the smallest that does nearly as much as the largest harmless one"),
        (2.0, False, r"more harm than the limits allow \(unlikely, repeats\)"),
    ],
)
def test_why_a_unit_was_chosen_is_told(unit: float, reached: bool, words: str) -> None:
    text = describe_unit(unit, evidence(*TRIALS, reached=reached))
    assert re.search(words, text)
    assert "nats a token less likely than the model's own writing (limit 0.4)" in text
    assert "\n\n" not in text


def test_a_site_that_is_only_read_is_not_taken_for_one_that_steers() -> None:
    line = "gate read at layers.1, the best of 2 early sites (AUROC 0.80 to 0.90); nothing is steered at these"
    assert describe_reading([*EARLY, STEERED]) == line
    assert describe_reading([*EARLY, {**STEERED, "reads": ""}]).startswith("gate read where it steers, no worse than")
    assert describe_reading([STEERED]) == ""


def test_the_card_shows_gates_and_curve() -> None:
    sites = [*EARLY, STEERED]
    concept = random_concept(
        {Site("model.layers.7"): 4}, evidence={"sites": sites, "unit": evidence(*TRIALS)}, unit=1.0
    )
    text = render_card(concept)
    for expected in (
        "| site | balanced accuracy | AUROC | misses | touches | weight | reads |",
        "| `layers.7` | 0.900 | 0.900 | 0.250 | 0.125 | 1.000 | `layers.1` |",
        "Gate read at layers.1, the best of 2 early sites",
        "| `layers.7` | 0.600 | 0.700 | 0.750 | 0.062 | 0.5000 |",
        "| unit | effect | drift | unlikely | always on | repeats | breaks limit of |",
        "| **1** | 0.8 | 0.5 | 0.39 | 0.1 | 0 | – |",
        "| 2 | 1 | 0.5 | 0.7 | 0.1 | 0.2 | unlikely, repeats |",
    ):
        assert expected in text
    assert "`layers.0`" not in text
    assert "\n\n\n" not in text


def test_the_terminal_shows_gates_and_curve(capsys: pytest.CaptureFixture[str]) -> None:
    document = {"sites": [*EARLY, STEERED], "edges": [], "unit": 1.0, "unit_evidence": evidence(*TRIALS)}
    report_evidence({**document, "range": None, "range_evidence": None, "mask_evidence": None, "cost": None})
    text = capsys.readouterr().out
    for expected in (
        "misses",
        "touches",
        "reads",
        "gate read at layers.1",
        "another domain",
        "████████ ",
        "→",
        "0.750",
    ):
        assert expected in text
    assert "layers.0" not in text
    (chosen,) = (line for line in text.splitlines() if line.startswith("→"))
    assert chosen.split()[1] == "1"


def test_what_was_learned_before_shows_as_before(capsys: pytest.CaptureFixture[str]) -> None:
    site = {"site": "unet.mid", "bin": 0, "weight": 1.0, "balanced_accuracy": 0.9, "auroc": 0.9, "missed": None}
    unit = {"trials": [{"unit": 1.0, "effect": 1.0, "drift": 0.2}], "drift_limit": 0.1, "reached": True}
    document = {"sites": [site], "edges": [], "unit": 1.0, "unit_evidence": {**unit, "eyes_accuracy": 0.9}}
    report_evidence({**document, "range": None, "range_evidence": None, "mask_evidence": None, "cost": None})
    text = capsys.readouterr().out
    assert "drift" in text
    for absent in ("misses", "touches", "reads", "unlikely", "repeats", "another domain"):
        assert absent not in text
    card = render_card(random_concept({Site("unet.mid"): 4}, evidence={"sites": [site]}))
    for absent in ("misses", "Misses", "Units that were tried", "another domain"):
        assert absent not in card
