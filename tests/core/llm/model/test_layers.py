"""Which sites a language model has, of many families."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from dsas_core import DSASError, llm
from dsas_core.llm.model.layers import SITE_GROUPS, find_read_sites, layers_of, roots_of
from tests.fixtures.language_models import FAMILIES, PROMPTS, Words, concept_for, tiny, written


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


class Attention(nn.Linear):
    """A layer of a hybrid stack."""


class Recurrence(nn.Linear):
    """The other kind."""


class Hybrid(nn.Module):
    """A stack of two kinds of layers, in one of several containers, beside larger lists of other things."""

    def __init__(self, container: Callable[[list[nn.Module]], nn.Module]) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_hidden_layers=4, model_type="hybrid")
        self.memory = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64)])
        self.layers = container([(Recurrence if i % 2 else Attention)(4, 4) for i in range(4)])


@pytest.mark.parametrize(
    "container",
    [
        nn.ModuleList,
        lambda layers: nn.Sequential(*layers),
        lambda layers: nn.ModuleDict({str(i): layer for i, layer in enumerate(layers)}),
    ],
    ids=["list", "sequential", "dict"],
)
def test_layers_of_several_kinds_are_those_that_the_config_counts(container: Any) -> None:
    model = Hybrid(container)
    assert layers_of(model) == {"model": [f"model.layers.{i}" for i in range(4)]}
    model.config.num_hidden_layers = 3  # a depth that no list has
    assert layers_of(model) == {"model": ["model.memory.0", "model.memory.1"]}


def test_a_layer_that_is_used_twice_is_one_site() -> None:
    model = Hybrid(nn.ModuleList)
    model.layers[2] = model.layers[0]
    assert layers_of(model)["model"] == ["model.layers.0", "model.layers.1", "model.layers.3"]


@pytest.mark.parametrize(("field", "layout"), [("altup_num_inputs", "streams-first"), ("hc_mult", "streams-last")])
def test_layers_that_hand_on_several_streams_have_their_layout(field: str, layout: str) -> None:
    model = Hybrid(nn.ModuleList)
    setattr(model.config, field, 4)
    assert [site.layout for site in llm.find_sites(model, ["block", "memory.0"])] == [layout] * 4 + ["last"]
    reads = find_read_sites(model, llm.find_sites(model, ["layers.3"]))
    assert {site.layout for site in reads} == {layout}


@pytest.mark.parametrize("kind", ["xlm", "flaubert", "xlnet"])
def test_models_that_write_otherwise_are_refused(kind: str) -> None:
    model = Hybrid(nn.ModuleList)
    model.config.model_type = kind
    for refused in (lambda: llm.find_sites(model), lambda: llm.steer(model, {"builtin:rudeness": 1.0})):
        with pytest.raises(DSASError, match=f"{kind} .*: choose a model that goes on after its last token"):
            refused()


class Stack(nn.Module):
    """Layers in no list that could be found."""

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        for i, layer in enumerate(layers):
            self.add_module(f"part{i}", layer)

    def __getitem__(self, places: slice) -> list[nn.Module]:
        return list(self.children())[places]


@pytest.mark.parametrize("answered", [True, False])
def test_where_sites_are_named_layers_need_not_be_found(answered: bool) -> None:
    model = copy.deepcopy(tiny("llama"))
    model.model.layers = Stack(model.model.layers)
    prompts = copy.deepcopy(PROMPTS)
    if not answered:
        for side in ("source", "target", "control"):
            prompts[side] = [text.removeprefix("user: ").replace("\nassistant:", "") for text in prompts[side]]
    with pytest.raises(DSASError, match="name the sites"):
        llm.learn(model, Words(), prompts, count=16)
    concept = llm.learn(model, Words(), prompts, sites=["layers.part1"], count=16)
    assert [str(site) for site in concept.steered_sites] == ["model.model.layers.part1"]
