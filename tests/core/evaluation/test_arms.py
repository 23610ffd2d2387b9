"""The arms have the dose that they claim, and take away what they say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dsas_core import Concept, DSASError, Site, llm
from dsas_core.evaluation.arms import ARMS, MAX_SCORES, build_arm, collect_scores, load_scores, save_scores
from dsas_core.maps import AffineMap
from dsas_core.probes import LastProbe, LatchProbe, LinearProbe, PrefixProbe, RunningProbe
from tests.fixtures.checks import differ
from tests.fixtures.concepts import random_concept
from tests.fixtures.language_models import IDS, concept_for, condition_latch, remembering, tiny, written

MANY = IDS.repeat(1, 4)


@pytest.fixture(scope="module")
def concept() -> Concept:
    return concept_for(tiny("llama"), weight=0.8)


def trace_gates(concept: Concept, gate: str | None = None, strength: float = 0.0) -> Any:
    model = tiny("llama")
    with llm.steer(model, {concept: strength}, gate=gate, trace=True) as steering:
        model(MANY)
    return steering.trace


@pytest.mark.parametrize("name", ["shuffled_gate", "constant_gate"])
def test_blind_gates_say_as_much_as_the_real_ones(concept: Concept, name: str, tmp_path: Path) -> None:
    trace = trace_gates(concept)
    save_scores([collect_scores(trace, concept)], tmp_path / "scores.safetensors")
    other, gate = build_arm(concept, name, load_scores(tmp_path / "scores.safetensors"))
    assert gate is None
    torch.manual_seed(0)
    blind = trace_gates(other)
    for item in concept.interventions:
        site = str(item.site)
        expected = trace.mean_h(concept.name, site)
        assert blind.mean_h(concept.name, site) == pytest.approx(
            expected, rel=0.15 if name == "shuffled_gate" else 1e-4
        )
        seen = torch.cat([record.h.flatten() for record in blind.select(concept.name, site)])
        assert (seen[seen > 0].std() < 1e-6) == (name == "constant_gate")
    own = [r.h for r in trace.select(concept.name)]
    assert differ(own[0], blind.select(concept.name)[0].h)


def test_the_complement_steers_what_the_gate_leaves(concept: Concept) -> None:
    own, other = trace_gates(concept), trace_gates(build_arm(concept, "complement")[0])
    for a, b in zip(own.records, other.records, strict=True):
        assert torch.allclose(a.h + b.h, 0.8 * a.mask, atol=1e-5), "weights stay"


@pytest.mark.parametrize("kind", [PrefixProbe, LatchProbe, LastProbe, condition_latch])
def test_the_complement_of_a_gate_that_remembers_does_so_too(kind: Callable[[LinearProbe], RunningProbe]) -> None:
    model = tiny("llama")
    concept = remembering(model, kind)
    records = []
    for gate in (concept, build_arm(concept, "complement")[0]):
        with llm.steer(model, {gate: 0.0}, trace=True) as steering:
            written(model)
            assert steering.trace is not None
            records.append(steering.trace.records)
    assert any(len(a.h[0]) == 1 for a in records[0]), "tokens that come one by one"
    for a, b in zip(*records, strict=True):
        assert a.mask is not None
        decided = a.mask > 0 if kind is PrefixProbe else a.h > 0
        assert torch.allclose(a.h + b.h, decided.float(), atol=1e-5)


@pytest.mark.parametrize("pictures", [1, 128, 150, 512])
def test_kept_scores_have_the_distribution_of_all(pictures: int, tmp_path: Path) -> None:
    """Also where they repeat with the width of a picture: heat on the right of 16 x 16 patches."""
    h = torch.linspace(0, 1, 16).square().repeat(16 * pictures)
    save_scores([{(0, 0): h}], tmp_path / "scores.safetensors")
    stored = load_scores(tmp_path / "scores.safetensors")[0, 0]
    assert len(stored) == min(len(h), MAX_SCORES)
    for level in (0.0, 0.1, 0.5, 0.9, 1.0):
        assert float((stored <= level).float().mean()) == pytest.approx(float((h <= level).float().mean()), abs=1e-3)
    assert float(stored.mean()) == pytest.approx(float(h.mean()), abs=1e-3)


@pytest.mark.parametrize("kind", ["additive", "affine"])
def test_random_directions_are_as_long(kind: str) -> None:
    concept = random_concept(dict.fromkeys(concept_for(tiny("llama")).sites, 8), kind=kind)
    other, gate = build_arm(concept, "random_direction", seed=1)
    assert gate is None
    for a, b in zip(concept.interventions, other.interventions, strict=True):
        ours, theirs = a.maps[0], b.maps[0]
        assert isinstance(ours, AffineMap)
        assert isinstance(theirs, AffineMap)
        assert theirs.shift.norm() == pytest.approx(float(ours.shift.norm()), rel=1e-5)
        assert abs(float(torch.cosine_similarity(ours.shift, theirs.shift, dim=0))) < 0.95
        if kind == "affine":
            assert ours.slope is not None
            assert theirs.slope is not None
            assert (theirs.slope - 1).norm() == pytest.approx(float((ours.slope - 1).norm()), rel=1e-5)
    assert build_arm(concept, "random_direction", seed=1)[0] == other


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_is_steered_as_any_concept(concept: Concept, name: str) -> None:
    model = tiny("llama")
    other, gate = build_arm(concept, name, collect_scores(trace_gates(concept), concept))
    assert other.name == concept.name
    base = written(model)
    with llm.steer(model, {other: 0.0}, gate=gate) as steering:
        assert torch.equal(written(model), base)
        steering.strengths[concept.name] = 1.0
        assert differ(written(model), base)


@pytest.mark.parametrize("halves", [1, 2])
def test_the_oracle_scores_its_masks(halves: int) -> None:
    """Of each patch the share that the thing covers, in both halves of guidance; elsewhere everything."""
    shapes = torch.zeros(2, 8, 8)
    shapes[0, :4, :4], shapes[1, 6:, :] = 1, 1
    patches, text, embeddings = Site("unet.a"), Site("text.b"), Site("unet", "input", argument="of_words")
    concept = random_concept({patches: 3, text: 3, embeddings: 3}, weight=0.4)
    oracle, gate = build_arm(concept, "oracle", masks={"unet": shapes})
    assert gate is None
    assert all(item.weights == (1.0,) for item in oracle.interventions), "as strong as the gate that is always on"
    at_patches, *of_words = (item.probes[0] for item in oracle.interventions)
    h = at_patches.score(torch.randn(2 * halves, 16, 3))
    expected = torch.zeros(2, 4, 4)
    expected[0, :2, :2], expected[1, 3] = 1, 1
    assert torch.equal(h, expected.reshape(2, 16, 1).repeat(halves, 1, 1))
    assert float(h.mean()) == pytest.approx(float(shapes.mean())), "the dose is the share that the thing covers"
    coarse = at_patches.score(torch.randn(2, 4, 3))
    assert coarse[1].flatten().tolist() == [0, 0, 0.5, 0.5]
    for probe in of_words:
        assert torch.equal(probe.score(torch.randn(2, 5, 3)), torch.ones(2, 5, 1))


def test_timestep_bins_keep_their_own_scores() -> None:
    concept = concept_for(tiny("llama"), edges=(500.0,))
    scores = {(number, bin_): torch.full((3 + bin_,), 0.1 + 0.5 * bin_) for number in (0, 1) for bin_ in (0, 1)}
    for name in ("constant_gate", "shuffled_gate"):
        other, _ = build_arm(concept, name, scores)
        x = torch.zeros(1, 4, 32)
        h = [[float(probe.score(x).mean()) for probe in item.probes] for item in other.interventions]
        assert h == [[pytest.approx(0.1), pytest.approx(0.6)]] * 2


@pytest.mark.parametrize("name", ["shuffled_gate", "constant_gate"])
def test_bins_that_were_seen_less_often_keep_their_dose(name: str) -> None:
    concept = concept_for(tiny("llama"), edges=(500.0,))
    few, many = torch.linspace(1, 0, 2000).square(), torch.linspace(0, 1, 3000)
    scores = {(number, bin_): (few, many)[bin_] for number in (0, 1) for bin_ in (0, 1)}
    torch.manual_seed(0)
    x = torch.zeros(1, 20000, 32)
    for item in build_arm(concept, name, scores)[0].interventions:
        h = [float(probe.score(x).mean()) for probe in item.probes]
        assert h == pytest.approx([float(few.mean()), float(many.mean())], abs=1e-2)


def test_mistakes_raise(concept: Concept) -> None:
    with pytest.raises(DSASError, match="no arm 'sideways'; there is dsas, on"):
        build_arm(concept, "sideways")
    with pytest.raises(DSASError, match="needs to know what the gates say"):
        build_arm(concept, "constant_gate")
    with pytest.raises(DSASError, match="no concept 'other' is traced"):
        collect_scores(trace_gates(concept), random_concept({concept.sites[0]: 32}, name="other"))
    shared = replace(concept, interventions=(*concept.interventions, concept.interventions[0].as_read_only()))
    with pytest.raises(DSASError, match=r"two interventions at .*: their scores cannot be told apart"):
        collect_scores(trace_gates(shared), shared)
