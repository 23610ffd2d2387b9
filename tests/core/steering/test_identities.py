"""The identities of steering, for every map with every gate."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from torch import nn

from dsas_core import Call, Concept, Site, Steering, methods
from dsas_core.concept.intervention import Intervention
from dsas_core.maps import AffineMap, Map
from dsas_core.model.row_groups import RowGroups, among, couples_rows
from dsas_core.probes import ConstantProbe, Probe

WIDTH, SITE = 12, Site("model.0")
MAPS = [described.name for described in methods.available() if described.kind in ("map", "both")]
GATES = [described.name for described in methods.available() if described.kind in ("gate", "both")]
GATES = [name if name != "mlp" else "mlp(accept=true)" for name in GATES] + [
    "product(dsas, gaps)",
    "any(dsas, cosine)",
    "all(dsas, gaps(soft=true))",
    "complement(dsas)",
]


def rows(shift: float, count: int = 24) -> torch.Tensor:
    random = torch.Generator().manual_seed(int(10 * shift))
    return torch.randn(count, WIDTH, generator=random) + shift * torch.linspace(-1, 1, WIDTH)


@functools.cache
def fitted_map(name: str) -> Map:
    method = methods.mapping(name)
    if method.traits.from_gate:
        return method.from_probe(methods.gate(methods.default_gate(name)).fit(rows(3.0), rows(0.0)))
    return method.fit(rows(3.0), rows(-1.0))


@functools.cache
def fitted_gate(name: str) -> Probe:
    gate = methods.gate(name)
    return gate.in_form(gate.fit(rows(3.0), rows(0.0)), "token")


def steered(
    concept: Concept, x: torch.Tensor, strength: float, gate: str | None = None, mask: torch.Tensor | None = None
) -> torch.Tensor:
    model = nn.Sequential(nn.Identity())
    item = concept.interventions[0]
    together = couples_rows(item.maps[0]) or couples_rows(item.probes[0])
    groups = torch.zeros(len(x), dtype=torch.long) if together else None
    call = Call(torch.ones(len(x)), torch.arange(len(x)), None, mask, groups=groups)
    with Steering({concept: strength}, gate=gate).attach({"model": model}, {"model": lambda args, kwargs: call}):
        out: torch.Tensor = model(x)
        return out


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("name", MAPS)
def test_identities(name: str, gate: str, tmp_path: Path) -> None:
    transform, probe = fitted_map(name), fitted_gate(gate)
    concept = Concept("pair", (Intervention(SITE, (probe,), (transform,), (0.9,)),), method=name, gate=gate)
    stored = concept.interventions[0]  # rounded to storage precision
    x = torch.stack([rows(3.0, 6), rows(0.0, 6), rows(1.5, 6)])
    mask = torch.ones(3, 6)
    mask[0, 4:] = mask[2, 0] = 0
    assert torch.equal(steered(concept, x, 0.0), x), "strength 0 is off"
    assert torch.equal(steered(concept, x, 1.3, "off"), x), "and so is h = 0"
    alone = stored.maps[0].apply(x, torch.tensor(1.3))
    torch.testing.assert_close(steered(concept, x, 1.3, "on"), alone, atol=1e-5, rtol=1e-5)
    own = steered(concept, x, 1.3, mask=mask)
    assert torch.equal(own[mask == 0], x[mask == 0]), "what does not count is not touched"
    one_group = RowGroups.of_one(x, mask)
    probe, alone = among(stored.probes[0], one_group), among(stored.maps[0], one_group).apply(x, torch.tensor(1.3))
    h = (probe.score(x, mask) * 0.9 * mask[..., None]).expand_as(x)
    torch.testing.assert_close(own, torch.lerp(x, alone, h), atol=1e-4, rtol=1e-4)
    again = Concept.from_pretrained(concept.save_pretrained(tmp_path / "it"))
    assert again == concept
    assert torch.equal(steered(again, x, 1.3, mask=mask), own)
    if couples_rows(stored.maps[0]) or couples_rows(stored.probes[0]):
        return  # a batch of two is not two singles: see test_stars.py
    one = torch.cat([steered(concept, x[i : i + 1], 1.3, mask=mask[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(one, own, atol=1e-6, rtol=1e-6)


def test_muted_it_changes_nothing_whatever_strengths_are_set_to() -> None:
    """And it tells whom they would have steered; afterwards they count."""
    concept = Concept("one", (Intervention(SITE, (ConstantProbe(1.0),), (AffineMap(torch.ones(WIDTH)),), (1.0,)),))
    model, x = nn.Sequential(nn.Identity()), torch.zeros(3, 2, WIDTH)
    call = Call(torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0, 1, 2]))
    with Steering({concept: 0.0}).attach({"model": model}, {"model": lambda args, kwargs: call}) as steering:
        with steering.muted() as wanted:
            assert torch.equal(model(x), x)
            assert wanted == {"one": set()}
            steering.strengths["one"] = [0.0, 1.0, 1.0]
            assert torch.equal(model(x), x)
            assert wanted == {"one": {1}}
        assert model(x)[:, 0, 0].tolist() == [0, 1, 0]
