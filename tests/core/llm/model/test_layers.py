"""Which sites a language model has, of many families."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dsas_core import DSASError, llm
from dsas_core.llm.model.layers import SITE_GROUPS, layers_of, roots_of
from tests.fixtures.language_models import FAMILIES, concept_for, tiny, written


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_found(family: str) -> None:
    model = tiny(family)
    assert [len(paths) for paths in layers_of(model).values()] == [2] * len(roots_of(model))
    every = [path for paths in layers_of(model).values() for path in paths]
    assert [str(site) for site in llm.find_sites(model, "block")] == every
    assert [str(site) for site in llm.find_sites(model, "middle")] == every, "of two layers, both are the middle"
    assert llm.find_sites(model) == llm.find_sites(model, "middle"), "so few layers are steered at a third of them"


def test_deep_models_are_steered_at_one_layer() -> None:
    model = tiny("deep")
    assert len(llm.find_sites(model, "block")) == 20
    assert [str(site) for site in llm.find_sites(model)] == ["model.model.layers.12"]


@pytest.mark.parametrize(
    "sites", [["layers.1", "layers.0.mlp"], r"model\.model\.layers\.(1|0\.mlp)", ["layers.1", "mlp"]]
)
def test_sites_by_suffix_expression_and_group(sites: Any) -> None:
    found = {str(site) for site in llm.find_sites(tiny("llama"), sites)}
    assert {"model.model.layers.1", "model.model.layers.0.mlp"} <= found
    assert len(found) == (3 if sites == ["layers.1", "mlp"] else 2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("group", [group for group in SITE_GROUPS if group not in ("middle", "block")])
def test_parts_of_layers_are_found(family: str, group: str) -> None:
    model = tiny(family)
    if (group == "norm" and "gemma" not in family) or (group, family) == ("mlp", "opt"):
        with pytest.raises(DSASError, match=f"has no {group} sites"):
            llm.find_sites(model, group)
        return
    concept = concept_for(model, group)
    wide = {tuple(intervention.maps[0].tensors()[0].shape) for intervention in concept.interventions}
    assert wide == {(8,) if group == "heads" else (32,)}
    with llm.steer(model, {concept: 1.0}, trace=True) as steering:
        written(model)
        assert steering.fired == sorted(map(str, concept.sites))


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (torch.nn.Linear(2, 2), "has no list of layers that could be found: name the sites"),
        (torch.nn.Sequential(torch.nn.ReLU()), "name the sites"),
    ],
)
def test_a_model_without_layers_says_how_to_name_them(model: Any, match: str) -> None:
    with pytest.raises(DSASError, match=match):
        llm.find_sites(model)
