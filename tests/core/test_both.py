"""Methods that bring a map and a gate of their own: golden numbers, planted truths, and how they are learned."""

from __future__ import annotations

import functools
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from dsas_core import Call, Concept, DSASError, Recipe, Site, Steering, llm, methods
from dsas_core.capture import Capture
from dsas_core.evaluate.arms import arm
from dsas_core.fingerprints import fingerprint
from dsas_core.interpolation import interpolate
from dsas_core.learn import fit_sites
from dsas_core.llm.layers import roots_of
from dsas_core.maps import ProjectionMap, TurnMap
from dsas_core.methods.cast import best_threshold, first_component
from dsas_core.methods.mera import ALPHAS, calibrated, projection
from dsas_core.probes import (
    ConditionLatch,
    ConditionProbe,
    LastProbe,
    LinearProbe,
    PooledConditionProbe,
    StepProbe,
)
from dsas_core.strengths import obstacle_to_auto
from tests.core.llm.models import IDS, PROMPTS, Words, close, tiny, written
from tests.core.test_gates_learned import WORDS, seen
from tests.core.test_learn import SITE, activations, captured
from tests.helpers import build_flow_pipe, differ, latents, same, seen_at

BOTH = ("cast", "mera", "fairsteer", "casteer")
WIDTH = 12
PLANTED = torch.nn.functional.normalize(torch.linspace(-1, 2, WIDTH).double(), dim=0)


def vector(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def gaussian(count: int, along: float, seed: int) -> torch.Tensor:
    """Rows of a standard normal whose mean is so far along the planted direction."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, WIDTH, generator=random, dtype=torch.float64) + along * PLANTED


def condition(direction: torch.Tensor, threshold: float = 0.0, side: float = 1.0) -> ConditionProbe:
    return ConditionProbe(direction, vector(threshold)[0], vector(side)[0])


# ---- golden numbers -------------------------------------------------------------------------------------------------


def test_golden_cast() -> None:
    probe, x = condition(vector(1, 2, 0)), vector(2, 1, 1)
    assert probe.similarity(x).item() == pytest.approx(0.8085221908, abs=1e-10)
    assert torch.cosine_similarity(x, vector(1, 2, 0), dim=0).item() == pytest.approx(0.7302967433, abs=1e-10)
    torch.testing.assert_close(condition(-3 * vector(1, 2, 0)).similarity(x), probe.similarity(x))
    fires = [condition(vector(1, 2, 0), t, side).score(x).item() for t in (0.8, 0.82) for side in (1.0, -1.0)]
    assert fires == [1, 0, 0, 1]
    assert probe.score(torch.zeros(2, 3)).tolist() == [[0], [0]]


def test_golden_mera() -> None:
    probe = LinearProbe(vector(1, 2, -2), vector(0)[0])
    found, h = projection(probe, vector(0.3)[0].logit()), vector(1, 1, 0)
    moved = found.apply(h, 1.0)
    assert (moved - h).tolist() == pytest.approx([-0.4274775, -0.8549551, 0.8549551], abs=1e-7)
    assert probe.logit(moved).item() == pytest.approx(-0.8472978604, abs=1e-9)
    assert torch.equal(found.apply(moved - 0.1 * probe.weight, 1.0), moved - 0.1 * probe.weight), "it is there already"


def test_golden_casteer() -> None:
    erase, c = ProjectionMap(vector(0.6, 0.8, 0), vector(0)[0]), vector(1, 2, 3)
    expected = {0.0: (1, 2, 3), 1.0: (-0.32, 0.24, 3), 2.0: (-1.64, -1.52, 3)}
    for beta, values in expected.items():
        assert erase.apply(c, beta).tolist() == pytest.approx(values, abs=1e-9)
    assert erase.apply(c, 2.0).norm().item() == pytest.approx(3.7416573868, abs=1e-9)
    assert torch.equal(erase.apply(-c, 2.0), -c), "clipped"


def test_addition_keeps_the_length() -> None:
    turn, x = TurnMap(vector(0, 3, 4)), torch.randn(2, 5, 3, dtype=torch.float64)
    moved = turn.apply(x, 0.7)
    torch.testing.assert_close(moved.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(torch.cosine_similarity(moved, x + 0.7 * turn.shift, dim=-1), torch.ones(2, 5).double())
    assert torch.equal(turn.apply(x, 0.0), x)
    assert torch.equal(turn.apply(torch.zeros(1, 3), 1.0), torch.zeros(1, 3))
    h = torch.tensor([1.0, 0.0]).double()[:, None, None]
    half = interpolate(x, [(turn, 0.7, h)])
    torch.testing.assert_close(half[0], moved[0])
    assert torch.equal(half[1], x[1])


# ---- cast -----------------------------------------------------------------------------------------------------------


def test_the_first_component_is_that_of_all_pairs_centred_on_their_middle() -> None:
    first, second = gaussian(7, 2, 0), gaussian(9, -1, 1)
    pairs = [(a, b) for a in first for b in second]
    centred = torch.stack([side - (a + b) / 2 for a, b in pairs for side in (a, b)])
    expected = torch.linalg.svd(centred, full_matrices=False).Vh[0]
    found = first_component(first, second)
    assert abs(float(found @ expected)) == pytest.approx(1, abs=1e-9)
    assert float(found.norm()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("sign", [1, -1])
def test_cast_finds_what_was_planted_and_points_to_the_target(sign: int) -> None:
    rows = gaussian(500, 0, 0), gaussian(400, 6 * sign, 1)
    unit, apart = (methods.get("cast", "map").fit(*rows, length=length).shift for length in ("unit", "apart"))
    assert float(unit.norm()) == pytest.approx(1)
    assert float(unit @ PLANTED) * sign > 0.99
    torch.testing.assert_close(apart, unit * (unit @ (rows[1].mean(0) - rows[0].mean(0))))
    assert float(apart @ PLANTED) == pytest.approx(6 * sign, abs=0.2)


def test_the_threshold_is_that_of_the_highest_f1() -> None:
    for seed in range(8):
        random = torch.Generator().manual_seed(seed)
        shown, kept = (
            torch.randn(9, generator=random).double() + (-1) ** seed,
            torch.randn(14, generator=random).double(),
        )
        threshold, side = best_threshold(shown, kept)
        labels, values = np.repeat([1, 0], [9, 14]), torch.cat([shown, kept])
        middles = (values.sort().values[1:] + values.sort().values[:-1]) / 2
        best = max(f1_score(labels, s * (values - t) > 0) for s in (1, -1) for t in middles)
        assert f1_score(labels, side * (values - threshold) > 0) == pytest.approx(best)
    threshold, side = best_threshold(vector(1, 2, 3), vector(5, 6))
    assert (threshold.item(), side.item()) == (4, -1), "in the middle of the room between"


@pytest.mark.parametrize("along", [3.0, 12.0])
def test_the_condition_tells_planted_classes(along: float) -> None:
    """sim is |cos| to the direction where tanh is nearly linear, and saturates where it is not."""
    fitted = methods.get("cast", "gate").fit(gaussian(400, along, 0), gaussian(400, 0, 1))
    assert abs(float(torch.nn.functional.normalize(fitted.direction, dim=0) @ PLANTED)) > 0.95
    told = [float(fitted.score(gaussian(400, shown, 2)).mean()) for shown in (along, 0.0)]
    assert told[0] > (0.7 if along == 3 else 0.99)
    assert told[1] < (0.3 if along == 3 else 0.01)


def test_a_condition_of_all_positions_is_that_of_their_mean() -> None:
    x, mask = torch.randn(2, 5, 3, dtype=torch.float64), torch.ones(2, 5)
    mask[0, 3:] = 0
    inner = condition(vector(1, 2, 0), 0.5)
    h = PooledConditionProbe(inner).score(x, mask)
    expected = torch.stack([inner.score(x[0, :3].mean(0)), inner.score(x[1].mean(0))])[:, None]
    assert torch.equal(h, expected)
    latch = ConditionLatch(inner.map_tensors(torch.Tensor.float))
    prompt = torch.tensor([[1.0] * 5, [1.0] * 4 + [0.0]])
    first, state = latch.follow(x[:, :2].float(), mask[:, :2], prompt[:, :2], torch.zeros(2, latch.columns))
    rest, _ = latch.follow(x[:, 2:].float(), mask[:, 2:], prompt[:, 2:], state)
    decided = torch.stack([inner.score(x[0, :3].mean(0)), inner.score(x[1, :4].mean(0))]).float()
    assert torch.equal(rest[0, :, 0], torch.tensor([1.0, 0, 0]) * decided[0]), "from the prompt's last token on"
    assert torch.equal(rest[1, :, 0], torch.tensor([0.0, 1, 1]) * decided[1])


# ---- mera -----------------------------------------------------------------------------------------------------------


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
    alpha, gain, bound = calibrated(source, control)
    assert (alpha, gain) == (0.4, 1.0)
    assert bound == pytest.approx(math.sqrt(math.log(18 / 0.05) * (1 / 40 + 1 / 60) / 8))
    repeated = calibrated((source[0].repeat(3), np.tile(source[1], 3)), control)
    assert repeated == (alpha, gain, bound), "prompts count, not rows"
    assert calibrated(control, source)[1] == 0


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


# ---- fairsteer, casteer ---------------------------------------------------------------------------------------------


def test_fairsteer_is_the_word_of_logistic_regression() -> None:
    source, control = gaussian(60, 3, 0), gaussian(90, 0, 1)
    labels = np.repeat([1, 0], [60, 90])
    reference = LogisticRegression(max_iter=10000, tol=1e-10).fit(torch.cat([source, control]).numpy(), labels)
    probe, x = methods.get("fairsteer", "gate").fit(source, control), gaussian(500, 1.5, 2)
    logits = reference.decision_function(x.numpy())
    np.testing.assert_allclose(probe.logit(x)[:, 0].numpy(), logits, atol=1e-3)
    assert set(probe.score(x).unique().tolist()) == {0, 1}
    clear = abs(logits) > 1e-3
    assert ((probe.score(x)[:, 0].numpy() > 0) == (logits > 0))[clear].all()
    assert torch.equal(probe.lowered(1.0).score(x), probe.link(probe.logit(x) - 1))


def test_casteer_takes_away_what_was_planted() -> None:
    source, target = gaussian(3000, 4, 0), gaussian(3000, 0, 1)
    erase, reflect = (methods.get("casteer", "map").fit(source, target, mode=mode) for mode in ("erase", "reflect"))
    assert float(erase.direction @ PLANTED) > 0.99
    x, u = gaussian(100, 1, 2), erase.direction
    torch.testing.assert_close(erase.apply(x, 1.0) @ u, (x @ u).clamp_max(0))
    torch.testing.assert_close(reflect.apply(x, 1.0) @ u, -(x @ u).abs())
    torch.testing.assert_close(reflect.apply(x, 1.0).norm(dim=1), x.norm(dim=1))
    torch.testing.assert_close(reflect.apply(x, 0.5), erase.apply(x, 1.0))
    add = methods.get("casteer", "map").fit(target, source, mode="add", alpha=3)
    torch.testing.assert_close(add.shift, 3 * u)


def test_the_gate_of_casteer_is_the_clipped_cosine() -> None:
    source, control = gaussian(300, 4, 0), gaussian(300, 0, 1)
    probe, x = methods.get("casteer", "gate").fit(source, control), gaussian(50, 1, 2)
    u = torch.nn.functional.normalize(source.mean(0) - control.mean(0), dim=0)
    torch.testing.assert_close(probe.score(x)[:, 0], (x @ u).clamp_min(0) / x.norm(dim=1))


# ---- which gate is worn ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "options", "worn"),
    [
        ("caa", {}, "dsas"),
        ("cast", {}, "cast"),
        ("mera", {}, "mera"),
        ("mera", {"alpha": 0.25}, "mera(alpha=0.25)"),
        ("fairsteer", {}, "fairsteer"),
        ("casteer", {"mode": "add"}, "on"),
    ],
)
def test_without_a_gate_a_method_wears_its_own(method: str, options: dict[str, Any], worn: str) -> None:
    assert Recipe(method=method, options=options).gate == methods.own_gate(method, options) == worn
    assert Recipe(method=method, options=options, gate="gaps").gate == "gaps"
    assert methods.gate(worn)


def test_the_registry_tells_what_each_part_takes() -> None:
    described = {method.name: method for method in methods.available() if method.kind == "both"}
    assert tuple(described) == BOTH
    assert described["mera"].options["alpha"]["takes"] == "null or a number between 0 and 1"
    assert described["mera"].settings == {"alpha": {"default": None, "takes": "float, or nothing"}}
    assert set(described["casteer"].options) == {"mode", "alpha"}
    for name in BOTH:
        assert methods.get(name) == (methods.get(name, "map"), methods.get(name, "gate"))
    with pytest.raises(DSASError, match=r"gate mera: alpha 1\.5: expected a number between 0 and 1"):
        Recipe(gate="mera(alpha=1.5)")


def test_caa_without_a_gate_is_caa_with_dsas() -> None:
    assert Recipe() == Recipe(gate="dsas")
    first, second = (fit_sites(captured(), Recipe(gate=gate))[0] for gate in (None, "dsas"))
    assert Concept("it", tuple(first)) == Concept("it", tuple(second))


@pytest.mark.parametrize("gate", ["cast", "mera(alpha=0.4)", "fairsteer", "casteer"])
def test_what_a_method_placed_itself_stays_there(gate: str) -> None:
    """`control_h` does not move it, and a site counts wholly or not at all."""
    loose, tight = (
        fit_sites(captured(), Recipe(gate=gate, form="token", control_h=limit, site_weight=trust))
        for limit, trust in ((None, "none"), (1e-6, "soft"))
    )
    assert Concept("it", tuple(loose[0])) == Concept("it", tuple(tight[0]))
    assert loose[0][0].weights == (1.0,)


@pytest.mark.parametrize("name", ["mera", "casteer"])
def test_its_own_gate_leaves_the_map_as_published(name: str) -> None:
    (own,), _ = fit_sites(captured(), Recipe(method=name, form="token"))
    x, steered = activations("source", 5, 8.0, 3), {}
    for gate in (None, "on"):
        steering = Steering({Concept("it", (own,)): 1.0}, gate=gate)
        steering.begin(SITE.root, Call(torch.ones(5), torch.arange(5)))
        steered[gate] = steering.visit(SITE, x)
    assert steered[None] is not None
    assert torch.equal(steered[None], steered["on"])
    torch.testing.assert_close(steered[None], own.maps[0].apply(x, 1.0))


@pytest.mark.parametrize(
    ("accuracy", "lower", "weight"), [(0.7, 0.64, 1), (0.7, 0.63, 0), (1.0, 0.9, 1), (0.5, 0.5, 0)]
)
def test_a_site_counts_wholly_where_it_is_three_errors_above_chance(accuracy: float, lower: float, weight: int) -> None:
    evidence = methods.dsas.Evidence(accuracy, 0.5, lower, 0, "none", 10, 10)
    assert [methods.gate(name).weight(evidence, "soft") for name in ("cast", "fairsteer", "casteer")] == [weight] * 3
    assert methods.gate("mera").weight(evidence, "soft") == 1, "it has abstained elsewhere"
    assert methods.gate("fairsteer").weight(evidence, "threshold") == (accuracy >= 0.75)


# ---- one decision, at one site --------------------------------------------------------------------------------------


def several(strengths: dict[str, float]) -> Capture:
    """Sites in the order in which they come by, each with so much of the concept."""
    capture = Capture(positions_per_row=16)
    for path, strength in strengths.items():
        capture.rows.update(captured(strength=strength, site=Site(path)).rows)
    return capture


def test_a_condition_is_read_where_it_tells_best_and_gates_what_comes_behind() -> None:
    capture = several({"a.0": 0.0, "a.1": 0.5, "a.2": 30.0, "a.3": 60.0, "a.4": 90.0, "b.0": 60.0, "b.1": 60.0})
    interventions, evidence = fit_sites(capture, Recipe(method="cast", site_weight="threshold"))
    reads = {item.site.path: (item.reads or item.site).path for item in interventions}
    assert reads == {"a.2": "a.2", "a.3": "a.2", "a.4": "a.2", "b.0": "b.0", "b.1": "b.0"}, (
        "of the first half, the best"
    )
    assert [item.weights for item in interventions] == [(1.0,)] * 5
    probes = {item.site.path: item.probes[0] for item in interventions}
    assert probes["a.3"] is not None
    assert all(torch.equal(a, b) for a, b in zip(probes["a.3"].tensors(), probes["a.2"].tensors(), strict=True))
    weights = {found.site: found.weight for found in evidence}
    assert weights == {"a.0": 0, "a.1": 0, **dict.fromkeys(reads, 1)}


def test_where_no_condition_tells_nothing_is_steered() -> None:
    with pytest.raises(DSASError, match="no site tells source from control"):
        fit_sites(several({"a.0": 0.0, "a.1": 90.0}), Recipe(method="cast"))


def test_in_a_combination_each_site_asks_for_itself() -> None:
    capture = several({"a.0": 60.0, "a.1": 60.0})
    interventions, _ = fit_sites(capture, Recipe(gate="all(dsas, cast)", form="token"))
    assert [item.reads for item in interventions] == [None, None]
    parts = {tuple(part.kind for part in probe.parts) for item in interventions for probe in item.probes}  # type: ignore[attr-defined]
    assert parts == {("linear", "pooled-condition")}


# ---- strength auto, arms --------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe(method="cast"), "PooledConditionProbe has no hyperplane"),
        (Recipe(method="cast", form="latch"), "ConditionLatch has no hyperplane"),
        (Recipe(method="fairsteer", form="last"), "LastProbe has no hyperplane"),
        (Recipe(method="casteer"), "ConstantProbe has no hyperplane"),
        (Recipe(gate="casteer"), "CosineProbe has no hyperplane"),
        (Recipe(method="casteer", gate="dsas", options={"mode": "add"}), "TurnMap is not linear in its strength"),
        (Recipe(method="casteer", gate="dsas"), None),
        (Recipe(method="fairsteer"), None),
        (Recipe(gate="product(casteer, fairsteer)"), None),
    ],
)
def test_what_can_choose_its_strength(recipe: Recipe, message: str | None) -> None:
    concept = Concept("it", tuple(fit_sites(captured(strength=60.0), recipe)[0]))
    found = obstacle_to_auto(concept)
    assert (found is None) == (message is None), found
    assert message is None or message in str(found)


def test_what_is_read_elsewhere_cannot() -> None:
    capture = several({"a.0": 60.0, "a.1": 60.0})
    found = obstacle_to_auto(Concept("it", tuple(fit_sites(capture, Recipe(method="cast"))[0][1:])))
    assert "a.1 is gated by what a.0 shows" in str(found)


@pytest.mark.parametrize("mode", ["erase", "add"])
def test_a_random_direction_is_as_long(mode: str) -> None:
    recipe = Recipe(method="casteer", options={"mode": mode})
    concept = Concept("it", tuple(fit_sites(captured(), recipe)[0]))
    other, _ = arm(concept, "random_direction")
    (own, turned) = (item.interventions[0].maps[0].tensors() for item in (concept, other))
    torch.testing.assert_close(own[0].norm(), turned[0].norm())
    assert abs(float(torch.cosine_similarity(own[0], turned[0], dim=0))) < 0.8
    assert all(torch.equal(a, b) for a, b in zip(own[1:], turned[1:], strict=True))


# ---- texts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "gate"), [*((name, None) for name in BOTH), ("mera", "dsas"), ("caa", "cast")])
def test_texts(name: str, gate: str | None, tmp_path: Path) -> None:
    """Learned from what a tiny model makes of texts, as every method must be."""
    model = tiny("llama")
    worn = methods.gate(gate or methods.own_gate(name))
    recipe = Recipe(method=name, gate=gate, form=worn.text_form, pooling="mean", site_weight="none")
    interventions, _ = fit_sites(seen()[0], recipe)
    base = {root: fingerprint(module) for root, module in roots_of(model).items()}
    concept = Concept("low", tuple(interventions), method=name, gate=str(recipe.gate), base=base, unit=2.0)
    loaded = Concept.from_pretrained(concept.save_pretrained(tmp_path / "low"))
    assert loaded == concept

    ids = torch.stack([3 + WORDS[0] % 12, 30 + WORDS[1] % 25])
    base_logits, untouched = model(ids).logits, written(model, ids)
    with llm.steer(model, {loaded: 0.0}) as steering:
        assert torch.equal(written(model, ids), untouched), "strength 0 is exact"
        steering.strengths["low"] = 1.0
        steered = written(model, ids)
        assert close(steered, written(model, ids, use_cache=False)), "cached decoding is a full forward"
        assert close(steered, torch.cat([written(model, row[None]) for row in ids])), "a batch is its rows"
        padded = torch.nn.functional.pad(ids, (2, 0))
        left = written(model, padded, mask=(torch.arange(11) >= 2).long().expand(2, -1))
        assert close(steered, left), "padding is not read"
        steering.strengths["low"] = -1.0
        assert differ(written(model, ids), steered), "+s is not -s"
    assert differ(steered, untouched)
    assert torch.equal(model(ids).logits, base_logits)


@pytest.mark.parametrize(
    ("name", "kinds", "last_alone"),
    [("cast", {"condition-latch"}, True), ("mera", {"step"}, False), ("fairsteer", {"last"}, True)],
)
def test_gates_read_texts_as_published(name: str, kinds: set[str], last_alone: bool, tokenizer: Words) -> None:
    model = tiny("llama")
    concept = llm.learn(model, tokenizer, PROMPTS, method=name, sites="block", count=32)
    assert (concept.method, concept.gate) == (name, name)
    assert {probe.kind for item in concept.interventions for probe in item.probes} == kinds
    assert len(concept.interventions) == (1 if name == "fairsteer" else 2)
    assert concept.provenance["recipe"]["gate"] == name
    assert concept.unit == 1
    with llm.steer(model, {concept: 5.0}):
        before = model(IDS).logits[:, :-1]
    base = model(IDS).logits
    assert torch.equal(before, base[:, :-1]) == last_alone
    with llm.steer(model, {concept: 5.0}, gate="on"):
        assert differ(model(IDS).logits[:, -1], base[:, -1])


@pytest.fixture(scope="module")
def tokenizer() -> Words:
    return Words()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"method": "cast", "recipe": {"form": "token"}},
            "'cast' goes by all positions at once, .*: choose form latch",
        ),
        ({"gate": "product(dsas, cast)"}, "goes by all positions at once, .*: choose another"),
        ({"method": "mera", "recipe": {"options": {"alpha": 2}}}, "MERA option alpha"),
        (
            {"method": "cast", "recipe": {"options": {"alpha": 2}}},
            r"CAST has no option 'alpha'; it has length \(apart or unit\)",
        ),
    ],
)
def test_what_texts_cannot_have_is_said_first(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DSASError, match=message):
        llm.learn(tiny("llama"), None, PROMPTS, **settings)


# ---- pictures -------------------------------------------------------------------------------------------------------

SHOWN, OTHER = ("a banana {}", "a {} and a banana"), ("a dog {}", "a {} and a lemon")


@functools.cache
def pictured() -> tuple[Any, Capture, list[Site]]:
    """A tiny pipeline, and what it makes of bananas and of other things, in two bins of timesteps."""
    import tempfile

    from dsas_core import visit
    from dsas_diffusion import find_sites
    from dsas_diffusion.rows import Rows

    with tempfile.TemporaryDirectory() as folder:
        pipe = build_flow_pipe(Path(folder))
    sites = [*find_sites(pipe, "text"), *find_sites(pipe, "cross")[:2]]
    words = ("on a table", "at night", "in the snow", "on the grass", "hat", "car")
    capture = Capture((500.0,))
    roots = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    with Rows(pipe) as rows, visit(roots, sites, capture, rows.describe()):
        for kind, templates in (("source", SHOWN), ("target", ("a blurred banana {}",) * 2), ("control", OTHER)):
            capture.start(kind)
            prompts = [template.format(word) for template, word in itertools.product(templates, words)]
            latents(pipe, prompts, seeds=range(len(prompts)))
    return pipe, capture, sites


@pytest.mark.parametrize("part", ["text_encoder", "unet"])
@pytest.mark.parametrize("name", [*BOTH, "casteer add"])
def test_pictures(name: str, part: str, tmp_path: Path) -> None:
    pipe, whole, _ = pictured()
    from dsas_diffusion import steer

    method, _, mode = name.partition(" ")
    options: dict[str, Any] = {"mode": mode} if mode else {"alpha": 0.5} if method == "mera" else {}
    capture = Capture(whole.edges)
    capture.timeless = whole.timeless
    capture.rows.update({key: rows for key, rows in whole.rows.items() if key[0].root == part})
    recipe = Recipe(method=method, site_weight="none", options=options)
    interventions, _ = fit_sites(capture, recipe)
    concept = Concept("banana", tuple(interventions), (500.0,), method=method, gate=str(recipe.gate))
    loaded = Concept.from_pretrained(concept.save_pretrained(tmp_path / "it"))
    assert loaded == concept

    prompts, seeds = ["a banana at night", "a dog on a table"], [0, 1]
    base = latents(pipe, prompts, seeds)
    with steer(pipe, {loaded: 0.0}, trace=True) as steering:
        assert torch.equal(latents(pipe, prompts, seeds), base)
        steering.strengths["banana"] = 3.0
        steered = latents(pipe, prompts, seeds)
        assert steering.trace is not None
        said = torch.cat([record.h.flatten() for record in steering.trace.select("banana")])
        assert set(said.unique().tolist()) <= {0.0, 1.0}
        singles = [latents(pipe, [prompt], [seed]) for prompt, seed in zip(prompts, seeds, strict=True)]
        assert same(steered, torch.cat(singles))
        steering.strengths["banana"] = -3.0
        assert differ(latents(pipe, prompts, seeds), steered)
    assert differ(steered, base)
    assert torch.equal(latents(pipe, prompts, seeds), base)


def test_forms_of_texts_are_not_for_pictures() -> None:
    from dsas_diffusion import learn, steer

    pipe, _, sites = pictured()
    prompts = {"name": "it", "source": list("abcdefgh"), "target": list("ijklmnop"), "control": list("qrstuvwx")}
    with pytest.raises(DSASError, match="gate form 'last' is of texts that are written: choose another for pictures"):
        learn(pipe, prompts, method="fairsteer", recipe={"form": "last"})
    width = seen_at(pipe, sites[-1:])[sites[-1]].shape[-1]
    inner = LinearProbe(torch.ones(width), torch.tensor(0.0))
    for probe in (LastProbe(inner), ConditionLatch(condition(torch.ones(width)))):
        from dsas_core import Intervention
        from dsas_core.maps import AffineMap

        item = Intervention(sites[-1], (probe,), (AffineMap(torch.ones(width)),), (1.0,))
        with steer(pipe, {Concept("it", (item,)): 1.0}), pytest.raises(DSASError, match="'unet' is given no such"):
            latents(pipe, "a banana")
