"""MERA: as far as the plane of its probe, at the strength that pays, or not at all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from dsas_core import Call, Concept, DSASError, Recipe, Steering, methods
from dsas_core.learning.fit import fit_sites
from dsas_core.maps import ProjectionMap
from dsas_core.methods.gated_maps.mera import ALPHAS, calibrate_alpha, projection
from dsas_core.probes import LinearProbe, StepProbe
from tests.fixtures.checks import vector
from tests.fixtures.synthetic import PLANTED, SITE, activations, captured, gaussian


def test_golden_mera() -> None:
    probe = LinearProbe(vector(1, 2, -2), vector(0)[0])
    found, h = projection(probe, vector(0.3)[0].logit()), vector(1, 1, 0)
    moved = found.apply(h, 1.0)
    assert (moved - h).tolist() == pytest.approx([-0.4274775, -0.8549551, 0.8549551], abs=1e-7)
    assert probe.logit(moved).item() == pytest.approx(-0.8472978604, abs=1e-9)
    assert torch.equal(found.apply(moved - 0.1 * probe.weight, 1.0), moved - 0.1 * probe.weight), "it is there already"


def test_mera_goes_to_the_plane_of_the_posterior_and_no_further() -> None:
    """Of N(2 u, I) and N(0, I) with equal priors the posterior's logit is 2 u . x - 2."""
    found = methods.get("mera", "map").fit(gaussian(6000, 2, 0), gaussian(6000, 0, 1), alpha=0.2)
    assert float(found.direction @ PLANTED) > 0.99
    x = gaussian(500, 1, 2)
    moved = found.apply(x, 1.0)
    logit, after = (2 * (rows @ PLANTED) - 2 for rows in (x, moved))
    beyond = logit > math.log(0.2 / 0.8) + 0.3
    assert float((after[beyond] - math.log(0.2 / 0.8)).abs().max()) < 0.35
    assert float((moved - x)[logit < math.log(0.2 / 0.8) - 0.3].abs().max()) == 0
    shortest = (moved - x)[beyond]
    assert float(torch.cosine_similarity(shortest, -PLANTED[None]).min()) > 0.99


def test_alpha_is_the_lowest_of_the_largest_gain() -> None:
    """Sources at p = 0.9 and 0.65, controls at 0.35: from 0.4 to 0.6 all are told."""
    source = torch.tensor([0.9, 0.65] * 20).double().logit(), np.arange(40)
    control = torch.full((60,), 0.35).double().logit(), np.arange(60)
    alpha, gain, bound = calibrate_alpha(source, control)
    assert (alpha, gain) == (0.4, 1.0)
    assert bound == pytest.approx(math.sqrt(math.log(18 / 0.05) * (1 / 40 + 1 / 60) / 8))
    repeated = calibrate_alpha((source[0].repeat(3), np.tile(source[1], 3)), control)
    assert repeated == (alpha, gain, bound), "prompts count, not rows"
    assert calibrate_alpha(control, source)[1] == 0


def test_mera_abstains_where_nothing_is_gained() -> None:
    rows = gaussian(40, 0, 0), gaussian(40, 0, 1)
    with pytest.raises(DSASError, match=r"gate mera abstains: at no alpha .* more than 0\.\d\d \(best 0\.\d\d at"):
        methods.get("mera", "gate").fit(*rows)
    still, x = methods.get("mera", "map").fit(*rows), gaussian(9, 0, 2)
    assert torch.equal(still.apply(x, 1.0), x)
    assert not torch.equal(methods.get("mera", "map").fit(*rows, alpha=0.5).apply(x, 1.0), x)
    for gate in (None, "dsas", "on"):
        with pytest.raises(DSASError, match=r"no site is left to steer: at 1 the gate was refused, .*mera abstains"):
            fit_sites(captured(strength=0.0), Recipe(method="mera", gate=gate, form="paper", control_h=None))


@pytest.mark.parametrize("given", [None, 0.3])
def test_the_map_of_mera_is_that_of_its_gate_whatever_is_worn(given: float | None) -> None:
    options = {"alpha": given}
    own = fit_sites(captured(), Recipe(method="mera", form="pooled", options=options))[0][0]
    probe, found = own.probes[0], own.maps[0]
    assert isinstance(probe, StepProbe)
    assert isinstance(found, ProjectionMap)
    torch.testing.assert_close(found.tensors(), projection(probe.inner, probe.threshold).tensors())
    alphas = [given] if given else ALPHAS
    assert float(probe.threshold.sigmoid()) in [pytest.approx(alpha) for alpha in alphas]
    other = fit_sites(captured(), Recipe(method="mera", gate="dsas", form="pooled", options=options))[0][0]
    assert all(torch.equal(a, b) for a, b in zip(found.tensors(), other.maps[0].tensors(), strict=True))
    x = activations("source", 9, 8.0, 5)
    moved = found.apply(x, 1.0)
    assert float(probe.inner.logit(moved).max()) <= float(probe.threshold) + 1e-4
    assert torch.equal((moved != x).any(-1, keepdim=True), probe.score(x) > 0), "the gate is open where it moves"


def steered_by(concept: Concept, strength: Any, x: torch.Tensor) -> torch.Tensor:
    steering = Steering({concept: strength})
    steering.begin(SITE.root, Call(torch.ones(len(x)), torch.arange(len(x))))
    found = steering.visit(SITE, x)
    assert found is not None
    return found


def test_auto_is_mera_and_stays_where_a_step_is_closed() -> None:
    x = activations("source", 9, 8.0, 3)
    (mera,), _ = fit_sites(captured(), Recipe(method="mera", form="token", options={"alpha": 0.5}))
    concept = Concept("it", (mera,))
    torch.testing.assert_close(steered_by(concept, "auto", x), steered_by(concept, 1.0, x), atol=1e-4, rtol=1e-4)
    (hard,), _ = fit_sites(captured(), Recipe(method="mera", gate="fairsteer", form="token", options={"alpha": 0.5}))
    moved = (steered_by(Concept("it", (hard,)), "auto", x) != x).any(-1, keepdim=True)
    assert bool(moved.any())
    assert not bool(moved[hard.probes[0].score(x) == 0].any())
