"""Gates that are told which positions show the concept, on activations whose truth is known."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score

from dsas_core import DSASError, Recipe
from dsas_core.learning.capture import Capture
from dsas_core.learning.fit import fit_sites
from dsas_core.probes import Probe
from tests.fixtures.synthetic import POSITIONS, SHOWN, SITE, WIDTH, activations, captured

#: what stands beside the concept in source prompts and nowhere else: a giveaway that is not the concept
BESIDE = 8 * torch.nn.functional.one_hot(torch.tensor(1), WIDTH).float()


def tempting(marks: bool = True) -> Capture:
    """Source prompts whose positions behind the concept show something else that gives the prompt away."""
    capture = captured(strength=3.0)
    rows = capture.rows[SITE, 0, "source"]
    shown = [places < SHOWN for places in rows.places]
    rows.positions = [x + BESIDE * ~mask[:, None] for x, mask in zip(rows.positions, shown, strict=True)]
    rows.pooled = [x + BESIDE * (POSITIONS - SHOWN) / POSITIONS for x in rows.pooled]
    if marks:
        capture.mark("source", lambda prompt, count: [place < SHOWN for place in range(count)])
    return capture


def found(probe: Probe) -> float:
    """AUROC of h against where the concept is, in fresh source prompts of the same kind."""
    x = activations("source", 60, 3.0, 77)
    x[:, SHOWN:] += BESIDE
    h = probe.score(x).mean(-1).expand(len(x), POSITIONS)
    truth = torch.arange(POSITIONS).expand(len(x), -1) < SHOWN
    return float(roc_auc_score(truth.flatten(), h.flatten()))


@pytest.mark.parametrize("gate", ["dsas", "mlp(accept=true)", "gaps", "product(dsas, gaps)"])
def test_what_is_told_need_not_be_guessed(gate: str) -> None:
    """Left alone, a gate takes the giveaway for the concept; told, it does not."""
    guessed, told = (
        fit_sites(tempting(), Recipe(gate=gate, form="token", supervision=how))[0][0].probes[0]
        for how in ("prompts", "positions")
    )
    assert found(guessed) < 0.5
    assert found(told) > 0.9


@pytest.mark.parametrize("form", ["token", "product"])
def test_controls_stay_within_their_budget(form: str) -> None:
    """Unmarked positions teach the gate, but the budget is that of control prompts alone."""
    intervention, evidence = (part[0] for part in fit_sites(tempting(), Recipe(form=form, supervision="positions")))
    assert evidence.control_h <= 0.01 + 1e-6
    h = intervention.probes[0].score(activations("control", 80, 3.0, 78))
    assert float(h.mean()) < 0.04
    assert evidence.weight == intervention.weights[0] > 0.5


def test_a_prompts_positions_share_a_fold() -> None:
    """Marked and unmarked positions of a prompt are held out together, or evidence would be of known prompts."""
    from dsas_core.methods.base.gate_fit import position_rows

    capture = tempting()
    source, control = (capture.rows[SITE, 0, kind] for kind in ("source", "control"))
    data = position_rows(source, [control], Recipe(form="token", supervision="positions"))
    _, labels, prompts, folds = data.split()
    marked, unmarked = set(prompts[labels == 1]), set(prompts[len(labels) - int((~source.gathered("labels")).sum()) :])
    assert marked & unmarked
    assert not marked & set(prompts[len(data.source) : len(data.source) + len(control.gathered("positions"))])
    for train, test in folds:
        assert not set(prompts[train]) & set(prompts[test])


def test_without_marks_there_is_nothing_to_go_by() -> None:
    for capture in (tempting(marks=False), tempting()):
        if capture.rows[SITE, 0, "source"].labels:
            capture.mark("source", lambda prompt, count: [False] * count)
        with pytest.raises(DSASError, match="no position of a source prompt is marked"):
            fit_sites(capture, Recipe(form="token", supervision="positions"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"supervision": "spans"}, "supervision 'spans', lead 1: expected one of prompts, positions, and a number"),
        ({"lead": -1}, "supervision 'prompts', lead -1"),
        ({"supervision": "positions", "form": "pooled"}, "fitted on means over positions.*choose dsas in form token"),
        ({"supervision": "positions", "form": "token", "gate": "quantile"}, "gate 'quantile' .* fitted on means"),
        ({"supervision": "positions", "form": "paper"}, "fitted on means"),
    ],
)
def test_recipes_that_cannot_be_told(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DSASError, match=message):
        dataclasses.replace(Recipe(), **fields)
