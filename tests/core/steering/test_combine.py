"""Several concepts at one place: sums and blends, in any order, and concepts that work against one another."""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsas_core import Auto, Concept, DSASError, Intervention, Site, Steering, llm
from dsas_core.maps import AffineMap
from dsas_core.probes import ConstantProbe
from dsas_core.steering.diagnostics import Conflict
from dsas_core.steering.interpolation import normalise_gates
from dsas_diffusion import find_sites, steer
from tests.core.steering.test_strengths import SITE, away
from tests.fixtures.checks import differ, same, same_but_rounding
from tests.fixtures.concepts import FORMS, MAPS, Turn, random_concept
from tests.fixtures.language_models import behind_first_layer, concept_for, tiny, written
from tests.fixtures.models import BANANA, DOG, latents
from tests.fixtures.visitors import seen_at


def test_shares_golden() -> None:
    gates = [torch.tensor([0.9, 0.0, 0.3, 0.0]), torch.tensor([0.6, 0.0, 0.0, 1.0]), torch.tensor([0.3, 0.0, 0.0, 1.0])]
    kept = normalise_gates(gates)
    assert kept.tolist() == pytest.approx([0.5, 1, 1, 0.5])
    assert sum(h * kept for h in gates).tolist() == pytest.approx([0.9, 0, 0.3, 1])  # type: ignore[union-attr]


@given(count=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
def test_shares_keep_the_total_and_the_proportions(count: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    gates = [
        torch.rand(2, 3, 1, generator=random) * (torch.rand(2, 3, 1, generator=random) < 0.6) for _ in range(count)
    ]
    kept = normalise_gates(gates)
    total, highest = torch.stack([h * kept for h in gates]).sum(0), torch.stack(gates).amax(0)
    assert torch.allclose(total, highest)
    assert total.max() <= 1 + 1e-6
    alone = torch.stack([h > 0 for h in gates]).sum(0) <= 1
    assert (kept[alone] == 1).all()


def three() -> list[Concept]:
    model = tiny("llama")
    forms = zip("zxy", ("linear", "pooled", "product"), strict=True)
    return [replace(concept_for(model, form=form, seed=i), name=name) for i, (name, form) in enumerate(forms)]


def mixed(concepts: list[Concept], combine: str, strengths: dict[str, Any]) -> torch.Tensor:
    model = tiny("llama")
    given = {concept: strengths[concept.name] for concept in concepts}
    with llm.steer(model, given, combine=combine) as steering:
        assert list(steering.strengths) == [concept.name for concept in concepts]
        return written(model)


@pytest.mark.filterwarnings("ignore:.*work against one another")
def test_blend_is_the_same_in_every_order_and_not_a_sum() -> None:
    concepts, strengths = three(), {"z": 2.0, "x": -3.0, "y": [4.0, 0.0]}
    blended = [mixed(list(order), "blend", strengths) for order in itertools.permutations(concepts)]
    assert all(torch.equal(one, blended[0]) for one in blended)
    assert differ(blended[0], mixed(concepts, "sum", strengths))


@pytest.mark.filterwarnings("ignore:.*work against one another")
def test_one_open_gate_is_as_in_a_sum() -> None:
    concepts = three()
    alone = mixed(concepts[:1], "sum", {"z": 2.0})
    assert same_but_rounding(mixed(concepts[:1], "blend", {"z": 2.0}), alone)
    off = {"z": 2.0, "x": 0.0, "y": 0.0}
    assert same_but_rounding(mixed(concepts, "blend", off), alone), "who is off takes no share"
    rows = mixed(concepts, "blend", {"z": [2.0, 2.0], "x": [0.0, 3.0], "y": 0.0})
    assert same_but_rounding(rows[0], mixed(concepts, "sum", {"z": [2.0, 2.0], "x": 0.0, "y": 0.0})[0])
    assert differ(rows[1], alone[1])


def test_blend_by_the_formula() -> None:
    model = tiny("llama")
    pair = [replace(concept_for(model, "model.model.layers.0", seed=i), name=name) for i, name in enumerate("ab")]
    x = behind_first_layer(model)
    with llm.steer(model, {pair[0]: 1.0, pair[1]: -2.0}, combine="blend"):
        made = behind_first_layer(model)
    h = [concept.interventions[0].probes[0].score(x) for concept in pair]
    scale = torch.maximum(*h) / (h[0] + h[1])
    doses = [concept.unit * strength for concept, strength in zip(pair, (1.0, -2.0), strict=True)]
    change = sum(
        dose * one * scale * concept.interventions[0].maps[0].displacement(x)
        for concept, dose, one in zip(pair, doses, h, strict=True)
    )
    assert torch.allclose(made[:, 1:], (x + change)[:, 1:], atol=1e-5)
    assert torch.equal(made[:, 0], x[:, 0])


def test_alike_concepts_blended_are_one_of_them_and_summed_as_many() -> None:
    model = tiny("llama")
    alike = [replace(concept_for(model, "model.model.layers.0", kind="additive"), name=name) for name in "abc"]
    base, changes = behind_first_layer(model), []
    for concepts, combine in ((alike[:1], "sum"), (alike, "blend"), (alike, "sum")):
        with llm.steer(model, dict.fromkeys(concepts, 2.0), combine=combine):
            changes.append(behind_first_layer(model) - base)
    alone, blended, summed = changes
    assert differ(alone, torch.zeros_like(alone))
    assert torch.allclose(blended, alone, atol=1e-5)
    assert torch.allclose(summed, 3 * alone, atol=1e-5)


def test_auto_shares_only_where_it_is_above_its_target() -> None:
    model = tiny("llama")
    first = away(concept_for(model, "model.model.layers.0"), "first")
    second = replace(concept_for(model, "model.model.layers.0", seed=3), name="second")
    with llm.steer(model, {first: Auto(1 - 1e-9), second: 1.0}, combine="blend"):
        made = written(model)
    with llm.steer(model, {second: 1.0}):
        assert same_but_rounding(written(model), made)
    with llm.steer(model, {first: "auto", second: 1.0}, combine="blend"):
        assert differ(written(model), made)


def test_two_interventions_of_one_concept_at_one_site_are_one_concept() -> None:
    model = tiny("llama")
    concept = concept_for(model, "model.model.layers.0")
    double = replace(concept, interventions=concept.interventions * 2)
    other = replace(concept_for(model, "model.model.layers.0", seed=1), name="other")
    out = {}
    for combine in ("sum", "blend"):
        with llm.steer(model, {double: 1.0, other: 0.0}, combine=combine):
            out[combine] = written(model)
    assert same_but_rounding(out["blend"], out["sum"])


@pytest.mark.parametrize("combine", ["sum", "blend"])
@pytest.mark.filterwarnings("ignore:.*work against one another")
def test_blend_in_a_pipeline(tiny_pipe: Any, combine: str) -> None:
    seen = seen_at(tiny_pipe, find_sites(tiny_pipe, ["cross", "self"]))
    pair = [random_concept(seen, name=name, seed=i, unit=0.5) for i, name in enumerate("ba")]
    base, made = latents(tiny_pipe, [BANANA, DOG], seeds=(1, 2)), []
    for order in (pair, pair[::-1]):
        strengths = {"b": [0.0, 0.7], "a": [0.0, -0.7]}
        with steer(tiny_pipe, {concept: strengths[concept.name] for concept in order}, combine=combine):
            made.append(latents(tiny_pipe, [BANANA, DOG], seeds=(1, 2)))
    assert same(*made)
    assert combine == "sum" or torch.equal(*made)
    assert torch.equal(made[0][0], base[0])
    assert differ(made[0][1], base[1])


def test_an_unknown_way_to_combine() -> None:
    with pytest.raises(DSASError, match="combine 'mean': expected sum or blend"):
        Steering({random_concept({Site("unet.mid"): 4}): 1.0}, combine="mean")


# ---- concepts that work against one another -------------------------------------------------------------------------


def shifting(name: str, *shift: float, site: str = "model.model.layers.0", width: int = 32) -> Concept:
    padded = torch.tensor([*shift, *[0.0] * (width - len(shift))])
    return Concept(name, (Intervention(Site(site), (ConstantProbe(),), (AffineMap(padded),), (1.0,)),))


@pytest.mark.parametrize(
    ("shift", "strengths", "opposed"),
    [
        ((-1, 0.1), (1.0, 2.0), True),
        ((-1, 0.1), (1.0, -2.0), False),
        ((-1, 0.1), (1.0, 0.0), False),
        ((-1, 0.1), (1.0, [-1.0, 1.0]), True),
        ((-1, 2), (1.0, 1.0), False),
        ((1, 0.1), (1.0, 1.0), False),
        ((1, 0.1), (1.0, -1.0), True),
    ],
)
def test_opposed_concepts_are_told_of(shift: tuple[float, ...], strengths: Any, opposed: bool) -> None:
    model = tiny("llama")
    first, second = shifting("left", 1), shifting("right", *shift)
    cosine = shift[0] / math.hypot(*shift)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with llm.steer(model, {first: strengths[0], second: strengths[1]}) as steering:
            table = steering.conflicts()
    assert table == [Conflict("left", "right", SITE, pytest.approx(cosine), opposed)]
    lines = [str(warning.message) for warning in caught if "against one another" in str(warning.message)]
    assert len(lines) == opposed
    for line in lines:
        assert "'left' and 'right' work against one another" in line
        assert f"1 of 1 shared sites: their shifts have a cosine of {cosine:.2f} at {SITE}" in line
        assert "\n" not in line


def test_only_shared_sites_and_shifts_count() -> None:
    first, second = shifting("a", 1), shifting("b", -1, site="model.model.layers.1")
    assert Steering({first: 1.0, second: 1.0}).conflicts() == []
    turning = Concept("c", (Intervention(SITE, (ConstantProbe(),), (Turn(torch.tensor(1.0)),), (1.0,)),))
    assert Steering({first: 1.0, turning: 1.0}).conflicts() == []
    item = shifting("d", -1).interventions[0]
    bins = replace(item, probes=item.probes * 2, maps=(*item.maps, AffineMap(item.maps[0].shift * -3)), weights=(1, 1))  # type: ignore[attr-defined]
    (line,) = Steering({first: 1.0, Concept("d", (bins,), edges=(500.0,)): 1.0}).conflicts()
    assert line.cosine == pytest.approx(1), "the mean over timestep bins"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", MAPS)
def test_every_kind_of_shift_is_seen(form: str, kind: str) -> None:
    pair = [random_concept({SITE: 8}, form=form, kind=kind, name=name, seed=3) for name in "ab"]
    (line,) = Steering({pair[0]: 1.0, pair[1]: -1.0}).conflicts()
    assert line.cosine == pytest.approx(1)
    assert line.opposed
