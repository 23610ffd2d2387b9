"""Probes that read at one site and gate another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dsas_core import Concept, DSASError, Site, llm
from dsas_core.evaluation.arms import BLIND, build_arm, collect_scores
from dsas_core.probes import LatchProbe, LinearProbe, PooledProbe, Probe
from tests.fixtures.checks import differ
from tests.fixtures.concepts import random_concept
from tests.fixtures.language_models import IDS, close, concept_for, text_probe, tiny, written


def across(kind: Callable[[LinearProbe], Probe] = replace, turned: bool = False) -> Concept:
    """The second layer's map, gated by what the first layer shows; `turned`, the other way round."""
    concept = concept_for(tiny("llama"))
    first, second = concept.interventions[:: -1 if turned else 1]
    probe = first.probes[0]
    assert isinstance(probe, LinearProbe)
    item = replace(second, probes=(kind(probe),), probe_site=first.site)
    return replace(concept, interventions=(item,))


@pytest.mark.parametrize("kind", [replace, PooledProbe, text_probe])
def test_the_gate_is_what_the_first_layer_shows(kind: Callable[[LinearProbe], Probe]) -> None:
    model, concept = tiny("llama"), across(kind)
    item = concept.interventions[0]
    with torch.no_grad():
        plain = model(IDS, output_hidden_states=True).hidden_states
    seen = plain[1].clone()
    counted = torch.ones(IDS.shape)
    counted[:, 0] = 0  # the first token of a row is never steered
    h = item.probes[0].score(seen, counted) * counted[..., None]
    with llm.steer(model, {concept: 1.0}, trace=True) as steering, torch.no_grad():
        model(IDS)
        assert steering.trace is not None
        (record,) = steering.trace.records
        assert record.site == item.site
        assert torch.allclose(record.h, h[..., 0].expand(IDS.shape), atol=1e-6)
        assert set(steering.sites) == {item.site, item.probe_site}


@pytest.mark.parametrize("kind", [replace, LatchProbe, text_probe])
def test_identities(kind: Callable[[LinearProbe], Probe], tmp_path: Path) -> None:
    model, concept = tiny("llama"), across(kind)
    base = written(model)
    with llm.steer(model, {concept: 0.0}) as steering:
        assert torch.equal(written(model), base)
        steering.strengths[concept.name] = 3.0
        steered = written(model)
        assert differ(steered, base)
        singles = torch.cat([written(model, IDS[row : row + 1]) for row in range(len(IDS))])
        assert close(singles, steered)
        padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), IDS], 1)
        assert close(written(model, padded, (padded > 0).long()), steered)
    assert torch.equal(written(model), base)
    loaded = Concept.from_pretrained(concept.save_pretrained(tmp_path / "concept"))
    assert loaded == concept
    assert loaded.interventions[0].probe_site == concept.interventions[0].probe_site
    with llm.steer(model, {loaded: 3.0}):
        assert torch.equal(written(model), steered)
    own = replace(concept, interventions=(replace(concept.interventions[0], probe_site=None),))
    assert own != concept
    assert own.digest != concept.digest
    for gate in ("on", "off"):
        made = []
        for one in (concept, own):
            with llm.steer(model, {one: 3.0}, gate=gate) as steering:
                assert steering.sites == [concept.interventions[0].site], "nobody looks where nothing depends on it"
                made.append(written(model))
        assert torch.equal(*made)
        assert torch.equal(made[0], base) == (gate == "off")


@pytest.mark.parametrize("kind", [replace, text_probe])
def test_cached_decoding_is_a_full_forward(kind: Callable[[LinearProbe], Probe]) -> None:
    model, concept = tiny("llama"), across(kind)
    with llm.steer(model, {concept: 3.0}):
        assert close(written(model), written(model, use_cache=False))


def test_two_concepts_keep_their_scores_apart() -> None:
    model = tiny("llama")
    both = {across(): 1.0, replace(across(PooledProbe), name="other"): -2.0}

    def seen(concepts: dict[Concept, float]) -> dict[str, torch.Tensor]:
        with llm.steer(model, concepts, trace=True) as steering, torch.no_grad():
            model(IDS)
            assert steering.trace is not None
            return {concept.name: steering.trace.select(concept.name)[0].h for concept in concepts}

    together = seen(both)
    for concept, strength in both.items():
        assert torch.equal(together[concept.name], seen({concept: strength})[concept.name])
    assert differ(*together.values())


@pytest.mark.parametrize("name", ["complement", "constant_gate", "random_direction"])
def test_arms_read_where_the_concept_does(name: str) -> None:
    """Those that look; the blind ones need not, and sites may have other positions than the one that is read."""
    model, concept = tiny("llama"), across()
    with llm.steer(model, {concept: 0.0}, trace=True) as steering:
        model(IDS)
        assert steering.trace is not None
        other, gate = build_arm(concept, name, collect_scores(steering.trace, concept))
    assert other.interventions[0].probe_site == (None if name in BLIND else concept.interventions[0].probe_site)
    base = written(model)
    with llm.steer(model, {other: 3.0}, gate=gate):
        assert differ(written(model), base)


def test_a_probe_must_come_first() -> None:
    model = tiny("llama")
    with (
        llm.steer(model, {across(turned=True): 1.0}),
        pytest.raises(
            DSASError, match=r"layers\.0 is gated by what .*layers\.1 shows, which the model has not reached"
        ),
    ):
        model(IDS)


def test_positions_must_agree_unless_one_h_is_for_all() -> None:
    model, concept = tiny("llama"), across()
    item = concept.interventions[0]
    assert item.probe_site is not None
    some = replace(item, probe_site=replace(item.probe_site, tokens=(1, None)))
    with (
        llm.steer(model, {replace(concept, interventions=(some,)): 1.0}),
        pytest.raises(DSASError, match=r"has 6 positions, .* has 7: a probe that reads elsewhere needs the same"),
    ):
        model(IDS)


def test_in_another_root_one_reads_for_all_positions_alone() -> None:
    item, pooled = (random_concept({Site("unet.mid"): 4}, form=form).interventions[0] for form in ("linear", "pooled"))
    with pytest.raises(DSASError, match=r"a probe at text_encoder.layer cannot gate unet.mid, which does not have its"):
        replace(item, probe_site=Site("text_encoder.layer"))
    assert replace(pooled, probe_site=Site("text_encoder.layer")).probe_site == Site("text_encoder.layer")
