"""Methods that bring a gate of their own: which is worn, what it refuses, and that it steers texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dsas_core import Call, Concept, DSASError, Recipe, Steering, llm, methods
from dsas_core.learning.fit import fit_sites
from dsas_core.llm.model.layers import roots_of
from dsas_core.methods.base.cross_validation import Evidence
from dsas_core.model.fingerprints import fingerprint
from dsas_core.steering.requirements import obstacle_to_auto
from tests.fixtures.checks import differ
from tests.fixtures.language_models import IDS, PROMPTS, Words, close, tiny, written
from tests.fixtures.synthetic import SITE, WORDS, activations, captured, seen, several

FITTED = ("cast", "mera", "fairsteer", "casteer")
BOTH = (*FITTED, "e2e-dsas")


# ---- which gate is worn ----------------------------------------------------------------------------------------------


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
    assert Recipe(method=method, options=options).gate == methods.default_gate(method, options) == worn
    assert Recipe(method=method, options=options, gate="gaps").gate == "gaps"
    assert methods.gate(worn)


def test_the_registry_tells_what_each_part_takes() -> None:
    described = {method.name: method for method in methods.available() if method.kind == "both" and method.learned}
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
    evidence = Evidence(accuracy, 0.5, lower, 0, "none", 10, 10)
    assert [methods.gate(name).weight(evidence, "soft") for name in ("cast", "fairsteer", "casteer")] == [weight] * 3
    assert methods.gate("mera").weight(evidence, "soft") == 1, "it has abstained elsewhere"
    assert methods.gate("fairsteer").weight(evidence, "threshold") == (accuracy >= 0.75)


# ---- strength auto ---------------------------------------------------------------------------------------------------


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


# ---- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "gate"), [*((name, None) for name in FITTED), ("mera", "dsas"), ("caa", "cast")])
def test_texts(name: str, gate: str | None, tmp_path: Path) -> None:
    """Learned from what a tiny model makes of texts, as every method must be."""
    model = tiny("llama")
    worn = methods.gate(gate or methods.default_gate(name))
    recipe = Recipe(method=name, gate=gate, form=worn.traits.text_form, pooling="mean", site_weight="none")
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


@pytest.fixture(scope="module")
def tokenizer() -> Words:
    return Words()


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
    with llm.steer(model, {concept: 5.0}):
        before = model(IDS).logits[:, :-1]
    base = model(IDS).logits
    assert torch.equal(before, base[:, :-1]) == last_alone
    with llm.steer(model, {concept: 5.0}, gate="on"):
        assert differ(model(IDS).logits[:, -1], base[:, -1])


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
