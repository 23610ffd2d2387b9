"""Where pictures show a concept: the rule that makes masks, and what is read for them while pictures are drawn."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dsas_core import Concept, Intervention, Site, visit
from dsas_core.errors import ArtifactError
from dsas_core.maps import IdentityMap
from dsas_core.probes import LinearProbe
from dsas_diffusion.pipelines.adapter import adapt
from dsas_diffusion.pipelines.batch_layout import BatchLayout
from dsas_diffusion.steering.concept_masks import LATE, LateMeans, MaskReader, MaskRule, on_picture, rule_as_evidence
from tests.diffusion.steering.test_identities_by_family import BANANA, DOG, invariant, pipe_of
from tests.fixtures.checks import same
from tests.fixtures.concepts import random_concept
from tests.fixtures.pipelines import FAMILIES, SIZE, latents
from tests.fixtures.visitors import Bare, Recorder

#: one batch of both branches, guidance in two calls with packed latents, prompts that share a sequence with pictures
READ = [family for family in ("sd", "sd3", "flux", "qwen", "zimage") if family in FAMILIES]
STEPS = 4
RULE = MaskRule(("unet.up",), margin=5.0)

# ---- the rule --------------------------------------------------------------------------------------------------------

LOGITS = arrays.arrays(np.float32, (6, 8), elements=st.floats(-9, 9, width=32))


def test_regions_need_a_peak() -> None:
    """Two regions: one has a logit above 0, and is taken as far as the margin goes."""
    logits = np.array([[4.0, -4.0, -6.0, -1.0, -0.1], [-4.5, -7.0, -6.0, -1.0, -6.0]])
    assert RULE.apply(logits).tolist() == [[1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]
    assert RULE.apply(logits + 2).tolist() == [[1, 1, 1, 1, 1], [1, 0, 1, 1, 1]]
    assert not RULE.apply(logits - 4).any()


@given(logits=LOGITS, margin=st.floats(0, 8), more=st.floats(0, 4), growth=st.floats(0, 0.5))
def test_what_masks_are(logits: np.ndarray, margin: float, more: float, growth: float) -> None:
    """Between what is above 0 and what is within the margin; a wider margin adds, growth adds, and both in place."""
    mask = replace(RULE, margin=margin).apply(logits) > 0
    assert mask[logits > 0].all()
    assert (logits[mask] > -margin).all()
    assert mask.any() == (logits > 0).any()
    assert not (mask > replace(RULE, margin=margin + more).apply(logits)).any()
    grown = replace(RULE, margin=margin, growth=growth).apply(logits) > 0
    assert (grown >= mask).all()
    assert grown.any() == mask.any()
    flipped = replace(RULE, margin=margin, growth=growth).apply(np.ascontiguousarray(logits[:, ::-1]))
    assert np.array_equal(flipped[:, ::-1] > 0, grown)


def test_growth_is_in_widths_of_the_picture() -> None:
    logits = np.full((32, 64), -9.0)
    logits[16, 20] = 9
    rows, columns = replace(RULE, growth=0.125).apply(logits).nonzero()
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 24, 12, 28)


def test_what_localises() -> None:
    assert replace(RULE, covered=0.5, missed=0.49).localises
    assert not replace(RULE, covered=0.61, missed=0.0).localises
    assert not replace(RULE, covered=0.1, missed=0.5).localises


# ---- evidence --------------------------------------------------------------------------------------------------------


def concept_with(probes: dict[Site, LinearProbe], evidence: Any, **fields: Any) -> Concept:
    """A concept that only reads."""
    items = tuple(Intervention(site, (probe,), (IdentityMap(),), (1.0,)) for site, probe in probes.items())
    return Concept("seer", items, evidence={} if evidence is None else {"mask": evidence}, **fields)


UP = {Site("unet.up"): LinearProbe(torch.ones(4), torch.tensor(0.0))}
GOOD = rule_as_evidence(replace(RULE, growth=0.1, covered=0.2))


def test_a_rule_is_read_as_it_was_written() -> None:
    assert MaskRule.of(concept_with(UP, GOOD)) == replace(RULE, growth=0.1, covered=0.2)
    assert MaskRule.of(concept_with(UP, None)) is None


@pytest.mark.parametrize(
    "damage",
    [
        {"sites": []},
        {"sites": ["unet.down"]},
        {"sites": None},
        {"margin": float("nan")},
        {"margin": "high"},
        {"growth": -0.1},
        {"growth": float("inf")},
        {"covered": None},
        {"missed": "few"},
        {"touched": None},
        {"colour": "red"},
    ],
    ids=str,
)
def test_damaged_evidence_is_refused_in_one_line(damage: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match=r"'seer': evidence of its mask is damaged.*learn it anew$") as caught:
        MaskRule.of(concept_with(UP, {**GOOD, **damage}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("evidence", ["unet.up", [], 3])
def test_evidence_of_another_kind_is_refused(evidence: Any) -> None:
    with pytest.raises(ArtifactError, match="is damaged"):
        MaskRule.of(concept_with(UP, evidence))


def test_sites_that_steer_are_not_read() -> None:
    """Their probes are gates, which are fitted for something else."""
    concept = random_concept({Site("unet.up"): 4}, evidence={"mask": GOOD})
    with pytest.raises(ArtifactError, match="expected sites that it only reads"):
        MaskRule.of(concept)


# ---- what is read ----------------------------------------------------------------------------------------------------


def sites_of(family: str) -> list[Site]:
    return adapt(pipe_of(family)).find_mask_sites()[-2:]


def read(family: str, prompts: Any = BANANA, seeds: tuple[int, ...] = (0,), **options: Any) -> dict[Site, torch.Tensor]:
    """What is kept of a generation."""
    with BatchLayout(adapt(pipe_of(family))) as layout, LateMeans(layout, sites_of(family), lambda _, x: x) as means:
        latents(pipe_of(family), family, prompts, seeds, **{"num_inference_steps": STEPS, **options})
    return means.take()


@cache
def read_of(family: str) -> dict[Site, torch.Tensor]:
    return read(family)


@pytest.mark.parametrize("steps", [1, STEPS])
@pytest.mark.parametrize("family", READ)
def test_prompts_are_read_in_late_steps(family: str, steps: int) -> None:
    """And in the last where none is late; never the rows or calls of negative prompts."""
    pipe, sites, recorder = pipe_of(family), sites_of(family), Recorder()
    adapter = adapt(pipe)
    with BatchLayout(adapter) as layout, visit(adapter.roots, sites, recorder, layout.describe()):
        latents(pipe, family, BANANA, num_inference_steps=steps)
    calls = [call for root, call in recorder.calls if root == adapter.family.denoiser]
    timesteps = [float(call.timestep) for call in calls]  # type: ignore[arg-type]
    late = [time < LATE or time == min(timesteps) for time in timesteps]
    assert sum(late) > 0
    assert all(late) is (steps == 1)
    found = read(family, num_inference_steps=steps)
    assert set(found) == set(sites)
    for site, mean in found.items():
        rows = [x[call.steered > 0] for x, call, counts in zip(recorder.seen[site], calls, late, strict=True) if counts]
        expected = torch.cat(rows).mean(0, keepdim=True)[:, : mean.shape[1]]
        everything = torch.cat(recorder.seen[site]).mean(0, keepdim=True)[:, : mean.shape[1]]
        assert same(mean, expected)
        assert not same(mean, everything)


@pytest.mark.parametrize("family", READ)
def test_a_batch_reads_what_singles_do(family: str) -> None:
    invariant(family)
    batch, single, other = read(family, [BANANA, DOG], (0, 3)), read_of(family), read(family, DOG, (3,))
    for site, mean in batch.items():
        scale = float(mean.std())
        assert same(mean[:1] / scale, single[site] / scale)
        assert same(mean[1:] / scale, other[site] / scale)


@pytest.mark.parametrize("family", READ)
def test_reading_changes_nothing_and_is_undone(family: str) -> None:
    pipe = pipe_of(family)
    base = latents(pipe, family, BANANA, num_inference_steps=STEPS)
    bare = [Bare.of(root) for root in adapt(pipe).roots.values()]
    with BatchLayout(adapt(pipe)) as layout, LateMeans(layout, sites_of(family), lambda _, x: x) as means:
        assert torch.equal(latents(pipe, family, BANANA, num_inference_steps=STEPS), base)
    assert means.take()
    assert not means.take(), "they are of the generation that has ended, once"
    assert [Bare.of(root) for root in adapt(pipe).roots.values()] == bare


def seer(family: str) -> Concept:
    """A concept that sees something in about half of the patches."""
    random, probes = torch.Generator().manual_seed(0), {}
    for site, mean in read_of(family).items():
        weight = torch.randn(mean.shape[-1], generator=random) / float(mean.std())
        probes[site] = LinearProbe(weight, -(mean @ weight).median())
    return concept_with(probes, rule_as_evidence(MaskRule(tuple(map(str, probes)), margin=0.0)))


def masks_of(family: str, concept: Concept, prompts: Any = BANANA, seeds: tuple[int, ...] = (0,)) -> list[np.ndarray]:
    with BatchLayout(adapt(pipe_of(family))) as layout, MaskReader(layout, concept) as reader:
        latents(pipe_of(family), family, prompts, seeds, num_inference_steps=STEPS)
    assert reader.localises
    return reader.masks((SIZE, SIZE), len(seeds))


@pytest.mark.parametrize("family", READ)
def test_masks_are_of_the_pictures_and_survive_saving(family: str, tmp_path: Path) -> None:
    invariant(family)
    concept = seer(family)
    first, second = masks_of(family, concept, [BANANA, DOG], (0, 3))
    assert first.shape == (SIZE, SIZE)
    assert first.dtype == np.float32
    assert 0.1 < first.mean() < 0.9
    assert not np.array_equal(first, second)
    (single,) = masks_of(family, concept)
    assert (single != first).mean() < 0.01  # up to float noise at the border
    loaded = Concept.from_pretrained(concept.save_pretrained(tmp_path / "seer"))
    assert np.array_equal(masks_of(family, loaded)[0], single)


@pytest.mark.parametrize("evidence", [None, {"missed": 0.5}, {"covered": 0.7}])
def test_what_has_no_place_reads_nothing(evidence: dict[str, float] | None) -> None:
    concept = seer("sd")
    kept = {} if evidence is None else {"mask": {**concept.evidence["mask"], **evidence}}
    with BatchLayout(adapt(pipe_of("sd"))) as layout:
        bare = Bare.of(pipe_of("sd").unet)
        with MaskReader(layout, replace(concept, evidence=kept)) as reader:
            assert Bare.of(pipe_of("sd").unet) == bare
    assert not reader.localises
    assert not np.any(reader.masks((8, 8), 2))


# ---- any resolution --------------------------------------------------------------------------------------------------


def test_fine_grids_are_read_as_coarse_ones_were() -> None:
    """Noise of fine patches, which averages out, opens nothing: probes are fitted on averages."""
    coarse = torch.randn(3, 16 * 16, generator=torch.Generator().manual_seed(0))
    fine = coarse.view(3, 16, 16).repeat_interleave(4, 1).repeat_interleave(4, 2)
    noise = 9 * torch.randn(3, 16, 4, 16, 4, generator=torch.Generator().manual_seed(1))
    noise = (noise - noise.mean((2, 4), keepdim=True)).reshape(3, 64, 64)
    assert torch.allclose(on_picture((fine + noise).flatten(1), (64, 64)), on_picture(coarse, (64, 64)), atol=1e-4)


@pytest.mark.parametrize("size", [(64, 64), (256, 256), (1024, 512), (40, 80)])
def test_masks_are_the_same_at_any_resolution(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    reader = MaskReader.__new__(MaskReader)
    wide = size[0] / size[1]
    columns, rows = (round(8 * wide), 8) if wide >= 1 else (8, round(8 / wide))
    logits = torch.full((1, rows, columns), -9.0)
    logits[0, 2:5, 1:3] = 4
    reader._rule = MaskRule(("unet.up",), margin=1.0)
    reader._means = SimpleNamespace(take=lambda: {Site("unet.up"): logits.flatten(1)})
    (mask,) = reader.masks(size, 1)
    assert mask.shape == size[::-1]
    assert mask.mean() == pytest.approx(6 / (rows * columns), rel=0.4)
    assert mask[round(size[1] * 3.5 / rows), round(size[0] * 2 / columns)] == 1
