"""Every gate by its name, learned from activations and steering: what must hold whatever the gate."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dsas_core import Concept, DSASError, Intervention, Recipe, llm, methods
from dsas_core.evaluation.arms import build_arm, collect_scores
from dsas_core.learning.fit import fit_sites
from dsas_core.llm.model.layers import roots_of
from dsas_core.maps import AffineMap
from dsas_core.model.fingerprints import fingerprint
from dsas_core.probes import ConstantProbe, ProductProbe, QuadraticProbe
from tests.core.methods.test_gates import GATES
from tests.fixtures.checks import differ, same
from tests.fixtures.language_models import PROMPTS, tiny
from tests.fixtures.synthetic import SHOWN, SITE, WORDS, activations, captured, seen
from tests.fixtures.visitors import Bare


def test_a_site_where_the_mlp_is_refused_is_left_out() -> None:
    with pytest.raises(
        DSASError, match=r"no site is left to steer: at 1 the gate was refused, as at unet\.mid: gate mlp"
    ):
        fit_sites(captured(), Recipe(gate="mlp"))
    with pytest.raises(DSASError, match="the gate was refused"):
        fit_sites(captured(), Recipe(gate="product(dsas, mlp)", form="token"))


@pytest.mark.parametrize("name", ["gaps", "gaps(soft=true)", "cosine", "mlp(accept=true)", "any(dsas, cosine)"])
def test_gates_are_learned_at_positions_and_held_to_the_controls(name: str) -> None:
    target = 0.001 if "gaps" in name else 0.01  # of twelve dimensions gaps keeps one
    interventions, evidence = fit_sites(captured(), Recipe(gate=name, form="token", control_h=target))
    probe, found = interventions[0].probes[0], evidence[0]
    assert found.control_h <= target < found.control_h_before
    assert 0 < found.weight <= 1
    source, control = (activations(side, 40, 8.0, 99) for side in ("source", "control"))
    h = probe.score(source).mean(-1)
    assert float(h[:, :SHOWN].mean()) > 5 * float(h[:, SHOWN:].mean()), "where the concept is"
    assert float(probe.score(control).mean()) < 3 * target
    loose = fit_sites(captured(), Recipe(gate=name, form="token", control_h=None))[1][0]
    assert loose.control_h == loose.control_h_before == pytest.approx(found.control_h_before)


@pytest.mark.parametrize("name", ["quantile", "complement(dsas)", "on"])
def test_gates_without_a_threshold_go_on_firing_on_controls(name: str) -> None:
    found = fit_sites(captured(), Recipe(gate=name, form="token"))[1][0]
    assert min(found.control_h, found.control_h_before) > 0.05


def test_a_part_of_a_combination_is_what_it_is_alone() -> None:
    capture = captured()
    kinds = [capture.rows[SITE, 0, kind] for kind in ("source", "control")]
    loose = methods.gate("gaps").fit_on(kinds[0], kinds[1:], Recipe()).place_at(None)[0]
    for form in ("paper", "token", "product", "pooled"):
        recipe = Recipe(form=form)
        alone, alone_h = methods.gate("dsas").fit_on(kinds[0], kinds[1:], recipe).place_at(0.01)
        both, both_h = methods.gate("product(dsas, gaps)").fit_on(kinds[0], kinds[1:], recipe).place_at(0.01)
        assert isinstance(both, ProductProbe)
        for part, expected in zip(both.factors, (alone, loose), strict=True):
            assert part.kind == expected.kind
            assert all(torch.equal(a, b) for a, b in zip(part.tensors(), expected.tensors(), strict=True))
        assert float(both_h.mean()) <= float(alone_h.mean()) <= 0.01
        turned = methods.gate("complement(dsas)").fit_on(kinds[0], kinds[1:], recipe).place_at(0.01)[1]
        torch.testing.assert_close(turned.mean(), 1 - alone_h.mean())


def test_calibration_is_by_positions_that_the_gate_had_not_seen() -> None:
    capture = captured(strength=0.0, count=12)
    kinds = [capture.rows[SITE, 0, kind] for kind in ("source", "control")]
    gated = methods.gate("mlp(accept=true, alpha=0.1)").fit_on(kinds[0], kinds[1:], Recipe())
    positions = kinds[1].gathered("positions")
    probe, held_out = gated.place_at(None)
    assert held_out.shape == (len(positions), 1)
    assert float(held_out.mean()) > float(probe.score(positions).mean()) + 0.05


@pytest.mark.parametrize("name", GATES)
def test_what_is_learned_steers_as_every_gate_must(name: str, tmp_path: Path) -> None:
    model, (capture, site) = tiny("llama"), seen()
    trust = "none" if name == "cast" else "soft"  # where this model's activations vary most is not the concept
    interventions, evidence = fit_sites(capture, Recipe(gate=name, form="token", control_h=0.05, site_weight=trust))
    base = {root: fingerprint(module) for root, module in roots_of(model).items()}
    concept = Concept("low", tuple(interventions), gate=name, base=base, unit=3.0)
    assert Concept.from_pretrained(concept.save_pretrained(tmp_path / "low")) == concept
    assert 0 <= evidence[0].control_h <= 1

    ids, bare = torch.stack([3 + WORDS[0] % 12, 30 + WORDS[1] % 25]), Bare.of(model)
    untouched = model(ids).logits
    with llm.steer(model, {concept: 0.0}, trace=True) as steering:
        assert torch.equal(model(ids).logits, untouched), "strength 0 is exact"
        steering.strengths["low"] = 1.0
        steered = model(ids).logits
        singles = torch.cat([model(row[None]).logits for row in ids])
        assert same(steered, singles), "a batch of two is two singles"
        model(ids)
        assert steering.trace is not None
        record = steering.trace.select("low")[-1]
    assert differ(steered, untouched) == (name != "off")
    assert record.h.shape == ids.shape
    assert bool(((record.h >= 0) & (record.h <= 1)).all())
    if name not in ("on", "off"):
        there_for = 1 if name.startswith("complement") else 0
        assert float(record.h[there_for].mean()) >= float(record.h[1 - there_for].mean())
    always = Intervention(site, (ConstantProbe(1.0),), interventions[0].maps, (1.0,))
    vanilla = Concept("vanilla", (always,), base=base, unit=3.0)
    with llm.steer(model, {concept: 1.0}, gate="on"):
        found = model(ids).logits
    with llm.steer(model, {vanilla: 1.0}):
        assert torch.equal(model(ids).logits, found), "gate on is the vanilla method"
    assert Bare.of(model) == bare
    assert torch.equal(model(ids).logits, untouched)


def test_h_of_each_dimension_moves_that_dimension_and_is_traced_by_its_mean() -> None:
    model, site = tiny("llama"), llm.find_sites(tiny("llama"))[0]
    side = torch.zeros(32).index_fill(0, torch.arange(8), 1.0)
    zeros = torch.zeros(32)
    probe = QuadraticProbe(zeros, zeros, zeros + 1, zeros - 1e3, side)  # the first eight dimensions, always
    concept = Concept("eight", (Intervention(site, (probe,), (AffineMap(torch.ones(32)),), (0.5,)),))
    with llm.steer(model, {concept: 1.0}, trace=True) as steering:
        model(WORDS[:2])
        trace = steering.trace
    assert trace is not None
    record = trace.select("eight")[0]
    counted = record.h if record.mask is None else record.h[record.mask > 0]
    assert counted.unique().tolist() == pytest.approx([0.5 * 8 / 32])
    assert trace.mean_h("eight") == pytest.approx(0.125)
    scores = collect_scores(trace, concept)
    assert scores[0, 0].unique().tolist() == pytest.approx([0.25]), "without the site's weight"
    for name in ("shuffled_gate", "constant_gate", "complement"):
        other, _ = build_arm(concept, name, scores)
        with llm.steer(model, {other: 1.0}, trace=True) as steering:
            model(WORDS[:2])
            assert steering.trace is not None
            said = steering.trace.mean_h("eight")
        assert said == pytest.approx(0.375 if name == "complement" else 0.125)


def test_a_gate_of_whole_pictures_is_not_for_texts() -> None:
    for gate in ("quantile", "product(dsas, quantile)"):
        with pytest.raises(DSASError, match="goes by all positions at once, and tokens are written one by one"):
            llm.learn(tiny("llama"), None, PROMPTS, gate=gate)
