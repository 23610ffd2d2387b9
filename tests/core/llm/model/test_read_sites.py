"""Where a gate of whole texts may read: early, and before anything is written."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dsas_core import Site, llm
from dsas_core.llm.model.layers import MAX_READ, find_read_sites, layers_of
from tests.fixtures.language_models import FAMILIES, tiny

LAYERS = "model.model.layers"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("group", [None, "block", "mlp", "heads"])
def test_they_come_before_any_write(family: str, group: str | None) -> None:
    model = tiny(family)
    steered = llm.find_sites(model, group if group != "mlp" or family != "opt" else "attention")
    reads = find_read_sites(model, steered)
    assert len(reads) <= MAX_READ * len(layers_of(model))
    assert not set(reads) & set(steered)
    for root, paths in layers_of(model).items():
        found = [paths.index(site.path) for site in reads if site.root == root]
        first = min(i for i, path in enumerate(paths) for site in steered if f"{site.path}.".startswith(f"{path}."))
        assert all(place < first for place in found)
        assert bool(found) == (first > 0)


@pytest.mark.parametrize(
    ("steered", "expected"),
    [
        ([Site(f"{LAYERS}.12")], [2, 3, 4, 6, 7, 8]),
        ([Site(f"{LAYERS}.6"), Site(f"{LAYERS}.12")], [2, 3, 4, 5]),
        ([Site(f"{LAYERS}.1")], [0]),
        ([Site(f"{LAYERS}.10")], [2, 3, 4, 6, 7, 8]),
        ([Site(f"{LAYERS}.4", side="input"), Site(f"{LAYERS}.12")], [2, 3]),
        ([Site(f"{LAYERS}.4.mlp.down_proj")], [2, 3]),
        ([Site(f"{LAYERS}.4.self_attn.o_proj", side="input", channels=(0, 8))], [2, 3]),
        ([Site(f"{LAYERS}.0.mlp"), Site(f"{LAYERS}.9")], []),
        ([Site("model.model.norm")], []),
        ([Site("model.model.embed_tokens"), Site(f"{LAYERS}.9")], []),
    ],
)
def test_of_a_deep_model_early_layers_are_read(steered: list[Site], expected: list[int]) -> None:
    assert [site.path for site in find_read_sites(tiny("deep"), steered)] == [f"{LAYERS}.{i}" for i in expected]


def test_the_default_site_is_at_three_fifths() -> None:
    assert [str(site) for site in llm.find_sites(tiny("deep"))] == [f"{LAYERS}.12"]
    assert llm.find_sites(tiny("deep"), "single") == llm.find_sites(tiny("deep"))


def test_a_model_without_layers_has_none() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.only = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.only(x)
            return out

    assert find_read_sites(Flat(), [Site("model.only")]) == []
