"""Warnings of gates that are weak by their evidence."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from dsas_core import llm
from dsas_core.concept.evidence import SiteEvidence, UnseenEvidence
from dsas_core.llm.learning.weaknesses import find_weaknesses
from tests.fixtures.language_models import PROMPTS, Words, tiny


@pytest.mark.parametrize(
    ("change", "recipe", "match"),
    [
        (
            {"control": [f"user: my {{thing}} is {{place}} {'please ' * 20}"]},
            {},
            r"length alone tells .* \(AUROC 0\.00\)",
        ),
        ({}, {"control_h": None, "rank": 5, "form": "paper"}, "the gate fires on control tokens"),
    ],
)
def test_weak_gates_are_warned_of(tokenizer: Words, change: Any, recipe: Any, match: str) -> None:
    with pytest.warns(UserWarning, match=match):
        llm.learn(tiny("llama"), tokenizer, {**PROMPTS, **change}, count=24, recipe=recipe)


def _site(**fields: Any) -> SiteEvidence:
    dose = dict.fromkeys(("control_h", "control_h_before", "control_fired", "control_fired_before"), 0.0)
    return SiteEvidence("layers.7", 0, 1.0, 0.9, 0.95, 5, "std", **{**dose, **fields})


def _unseen(**fields: float) -> UnseenEvidence:
    dose = dict.fromkeys(("control_h", "control_h_before", "control_fired", "control_fired_before"), 0.0)
    return UnseenEvidence(**{"balanced_accuracy": 0.9, "auroc": 0.95, "missed": 0.1, "touched": 0.02, **dose, **fields})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, []),
        ({"missed": 0.4, "unseen": _unseen(missed=0.5, touched=0.1, auroc=0.75)}, []),
        ({"missed": 0.41}, ["misses 41% of held-out source texts at layers.7: add source prompts.*control_texts"]),
        (
            {"unseen": _unseen(missed=0.83, auroc=0.7)},
            ["another domain.*misses 83% of source.*, has AUROC 0.70: add"],
        ),
        ({"unseen": _unseen(touched=0.2)}, ["touches 20% of controls: add prompts of that kind"]),
        ({"unseen": _unseen(balanced_accuracy=0.66)}, ["has balanced accuracy 0.66"]),
        ({"missed": 0.9, "weight": 0.0, "unseen": _unseen(auroc=0.5)}, []),
    ],
)
def test_gates_that_miss_or_do_not_transfer_are_warned_of(fields: dict[str, Any], expected: list[str]) -> None:
    found = list(find_weaknesses([replace(_site(), **fields)], length_auroc=0.5))
    assert len(found) == len(expected)
    assert all(re.search(pattern, text) and "\n" not in text for pattern, text in zip(expected, found, strict=True))
