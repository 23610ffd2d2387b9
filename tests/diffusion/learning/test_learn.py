"""Learning on a tiny random pipeline: what goes in is what comes out, and what cannot be learned says so."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from dsas_core.learning.calibration.unit import TRIALS, UNITS
from dsas_core.learning.recipe import Recipe
from dsas_core.model.hooks import find_visitors
from dsas_diffusion import Concept, DSASError, Lesson, learn, steer
from dsas_diffusion.generation import pictures
from dsas_diffusion.pipelines.adapter import PipelineAdapter
from tests.fixtures.checks import differ
from tests.fixtures.models import bases, latents
from tests.fixtures.visitors import Bare

PROMPTS: dict[str, Any] = {
    "name": "banana-blur",
    "placeholders": {"place": ["on a table", "at night", "in the snow"], "other": ["dog", "car", "hat", "star"]},
    "source": ["a banana {place}", "a {other} and a banana {place}"],
    "target": ["a blurred banana {place}", "a {other} and a blurred banana {place}"],
    "control": ["a {other} {place}", "a {other} and a lemon {place}"],
}


#: few prompts, all at once
QUICK: dict[str, Any] = {"count": 12, "steps": 2, "batch": 64}


@pytest.fixture(scope="module")
def learned(tiny_pipe: Any) -> Concept:
    return learn(tiny_pipe, PROMPTS, **QUICK, seed=3)


def test_a_concept_knows_where_it_comes_from(learned: Concept, tiny_pipe: Any) -> None:
    assert learned.name == "banana-blur"
    assert learned.unit in UNITS
    roots = {site.root for site in learned.sites}
    assert learned.base == {root: wanted for root, wanted in bases(tiny_pipe).items() if root in roots}
    assert learned.provenance["seed"] == 3
    assert learned.provenance["prompts"]["source"] == PROMPTS["source"]
    assert learned.provenance["settings"] == {"steps": 2, "guidance": 7.5, "scheduler": None, "size": None}
    measured = {item["site"] for item in learned.evidence["sites"]}
    assert {str(site) for site in learned.steered_sites} <= measured
    assert {str(item.site) for item in learned.interventions if item.read_only} == set(
        learned.evidence["mask"]["sites"]
    )
    tried = [trial["unit"] for trial in learned.evidence["unit"]["trials"]]
    assert 0 < len(tried) <= TRIALS
    assert tried == sorted(set(tried) & set(UNITS))


def test_learning_is_repeatable_and_leaves_the_pipeline_alone(learned: Concept, tiny_pipe: Any) -> None:
    before, bare = latents(tiny_pipe, "a banana"), Bare.of(tiny_pipe.unet)
    assert learn(tiny_pipe, PROMPTS, **QUICK, seed=3) == learned
    assert Bare.of(tiny_pipe.unet) == bare
    assert "encode_prompt" not in vars(tiny_pipe)
    assert not differ(latents(tiny_pipe, "a banana"), before)


def test_what_was_learned_is_what_is_saved(learned: Concept, tiny_pipe: Any, tmp_path: Path) -> None:
    loaded = Concept.from_pretrained(learned.save_pretrained(tmp_path / "it"))
    assert loaded == learned
    base = latents(tiny_pipe, "a banana on a table")
    with steer(tiny_pipe, {loaded: 20.0}):
        assert differ(latents(tiny_pipe, "a banana on a table"), base)


@pytest.mark.usefixtures("one_unit")
def test_timestep_bins_have_their_own_parameters(ddim_pipe: Any) -> None:
    concept = learn(ddim_pipe, PROMPTS, **QUICK, sites="denoiser", gate="on", edges=(300,))
    assert concept.edges == (300.0,)
    assert {len(item.probes) for item in concept.interventions} == {2}
    assert {site.root for site in concept.sites} == {"unet"}


@pytest.mark.usefixtures("one_unit")
def test_timestep_bins_and_text_sites_go_together(ddim_pipe: Any) -> None:
    """A text encoder has no clock: whatever the bin, its sites have one set of parameters."""
    concept = learn(ddim_pipe, PROMPTS, sites=["text", "cross"], **QUICK, gate="on", edges=(300,))
    assert {site.root for site in concept.sites} == {"unet", "text_encoder"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gate": "sometimes"}, "no gate named 'sometimes'"),
        ({"method": "magic"}, "no map named 'magic'"),
        ({"sites": "nowhere"}, "no site matches 'nowhere'"),
        ({"steps": 0}, "steps: expected a whole number from 1 to 1000, found 0"),
        ({"edges": (700, 300)}, "timestep edges"),
        ({"positions": "word"}, "^positions 'word': expected words or all$"),
        ({"sites": "embeddings", "positions": "words"}, "at the embeddings gates find the words .*leave positions out"),
        ({"sites": "embeddings", "recipe": {"below": 600}}, r"below timestep 600: .* 'banana-blur' \(500, 750\)"),
        ({"recipe": {"form": "words"}}, "gate form 'words'"),
        ({"recipe": {"site_weight": "best"}}, "site_weight 'best'"),
        ({"recipe": {"colour": "red"}}, "colour"),
        ({"sites": "denoiser", "recipe": {"supervision": "positions"}}, "pass masks, a function of pictures, or name"),
        (
            {"sites": "text", "recipe": {"supervision": "positions"}},
            r"layers\.0 reads words: learn at the denoiser",
        ),
        ({"sites": "denoiser", "masks": list, "recipe": {"form": "pooled"}}, "marked positions cannot tell it"),
        ({"prompts": {**PROMPTS, "target": PROMPTS["source"]}}, "source and target are identical"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_drawn(
    tiny_pipe: Any, settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("a picture was drawn")

    monkeypatch.setattr(tiny_pipe.unet, "forward", forbidden)
    with pytest.raises(DSASError, match=message):
        learn(tiny_pipe, settings.pop("prompts", PROMPTS), **{**QUICK, **settings})
    assert Bare.of(tiny_pipe.unet).hooks == 0
    assert "encode_prompt" not in vars(tiny_pipe)


def test_words_that_controls_lack_are_told_and_supervision_can_be_left_to_prompts(ddim_pipe: Any) -> None:
    source = ["a {other} and a banana in a cave", "a {other} and a banana {place}"]
    lesson = Lesson(ddim_pipe, {**PROMPTS, "source": source}, **QUICK, sites="embeddings")
    with pytest.warns(UserWarning, match="no control prompt has cave; what shows the concept is taken to be banana:"):
        assert lesson._recipe(None, method="caa").form == "token"
    assert lesson._recipe({"supervision": "prompts"}, method="caa").form == Recipe().form


@pytest.mark.parametrize("stored", [False, True])
def test_a_bin_that_no_step_comes_to_is_told_after_the_first_batch(
    stored: bool, tiny_pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []

    def noted(adapter: PipelineAdapter, texts: list[str], *settings: Any) -> Any:
        drawn.extend(texts)
        return pictures.latents_of(adapter, texts, *settings)

    monkeypatch.setitem(Lesson._capture.__globals__, "latents_of", noted)
    settings = {"count": 8, "steps": 1, "batch": 4, "sites": "denoiser", "store": tmp_path if stored else None}
    with pytest.raises(DSASError, match=r"none of 1 steps comes to timesteps 0 to 500, .*use more steps.*--edges none"):
        learn(tiny_pipe, PROMPTS, **settings)
    assert len(drawn) == 4
    assert len(Lesson(tiny_pipe, PROMPTS, **settings | {"store": None}, edges=()).captured(Recipe()).rows) > 0


@pytest.mark.usefixtures("one_unit")
def test_a_concept_of_text_sites_watches_the_denoiser_for_the_heat_map(tiny_pipe: Any) -> None:
    concept = learn(tiny_pipe, PROMPTS, sites="text", **QUICK)
    watching = {item.site.root: item.read_only for item in concept.interventions}
    assert watching == {"text_encoder": False, "unet": True}
    with steer(tiny_pipe, {concept: 1.0}) as steering:
        assert {site.root for site in steering.sites} == {"text_encoder"}
    with steer(tiny_pipe, {concept: 1.0}, trace=True) as steering:
        assert {site.root for site in steering.sites} == {"text_encoder", "unet"}


@pytest.mark.parametrize("sites", ["text", ["text", "unet.mid_block.*attn2"]], ids=["text", "text and denoiser"])
@pytest.mark.usefixtures("one_unit")
def test_causal_learning_reads_what_the_sites_before_leave(sites: Any, ddim_pipe: Any) -> None:
    settings = {"sites": sites, **QUICK, "gate": "on"}
    clean, causal = (learn(ddim_pipe, PROMPTS, **settings, recipe={"mode": mode}) for mode in ("clean", "causal"))
    assert clean.sites == causal.sites
    steering = [[item for item in concept.interventions if not item.read_only] for concept in (clean, causal)]
    assert len(steering[0]) > 1
    shifts = [[item.maps[0].tensors()[0] for item in found] for found in steering]
    same = [bool((a == b).all()) for a, b in zip(*shifts, strict=True)]
    assert same == [True] + [False] * (len(same) - 1)
    assert not find_visitors({"unet": ddim_pipe.unet, "text_encoder": ddim_pipe.text_encoder})


def left_half(pictures: Any) -> list[np.ndarray | None]:
    """A mask of the left half of every picture but the first."""
    masks: list[np.ndarray | None] = []
    for picture in pictures:
        mask = np.zeros(picture.size[::-1], bool)
        mask[:, : picture.width // 2] = True
        masks.append(mask if masks else None)
    return masks


@pytest.mark.usefixtures("one_unit")
def test_masks_mark_patches(ddim_pipe: Any) -> None:
    """What is told from the left half of pictures with bananas is looked for at the left, at any resolution."""
    settings = {"sites": "denoiser", **QUICK, "recipe": {"form": "token", "site_weight": "none"}}
    concept = learn(ddim_pipe, PROMPTS, masks=left_half, **settings)
    assert concept.provenance["recipe"]["supervision"] == "positions"
    with steer(ddim_pipe, {concept: 0.0}, trace=True) as steering:
        latents(ddim_pipe, "a banana on a table")
        records = steering.trace.records
    sides = [record.h.reshape(len(record.h), *[round(record.h.shape[1] ** 0.5)] * 2) for record in records]
    left, right = ([float(h[..., part].mean()) for h in sides] for part in (slice(None, 1), slice(-1, None)))
    assert np.mean(left) > np.mean(right)


@pytest.mark.parametrize("sites", ["text", "denoiser"])
def test_masks_of_nothing(sites: str, ddim_pipe: Any) -> None:
    with pytest.raises(DSASError, match=r"masks mark nothing in any of \d+ pictures"):
        learn(ddim_pipe, PROMPTS, sites=sites, **QUICK, masks=lambda found: [None] * len(found))


@pytest.mark.usefixtures("one_unit")
def test_masks_teach_the_probes_that_see_where_gates_read_words(ddim_pipe: Any) -> None:
    """Also on pictures of prompts that do not name the thing; without masks, nobody knows whether these show it."""
    prompts = {**PROMPTS, "source_unnamed": ["a fruit {place}"]}
    concept = learn(ddim_pipe, prompts, masks=left_half, sites="text", **QUICK)
    assert concept.provenance["recipe"]["supervision"] == "prompts"
    unnamed = concept.evidence["mask"]["unnamed"]
    assert 0 < unnamed["showing"] <= unnamed["pictures"] == 3
    assert "unnamed" not in learn(ddim_pipe, prompts, sites="text", **QUICK).evidence["mask"]


@pytest.mark.usefixtures("one_unit")
def test_clouds_of_single_positions_are_kept_where_asked(tiny_pipe: Any) -> None:
    settings = {**QUICK, "sites": ["text", "cross"], "edges": (500,)}
    concept = learn(tiny_pipe, PROMPTS, recipe={"cloud": 2}, **settings)
    for item in concept.interventions:
        assert len(item.maps) == 2
        assert len(item.clouds) == (0 if item.read_only else 2)
    for item in [item for item in concept.interventions if not item.read_only]:
        assert len({cloud.axes.shape for cloud in item.clouds}) == 1
        assert 1 <= len(item.clouds[0].axes) <= 2
    plain = learn(tiny_pipe, PROMPTS, **settings)
    bare = [replace(item, clouds=()) for item in concept.interventions]
    assert replace(concept, interventions=tuple(bare)).digest == plain.digest, "looking for clouds changes nothing else"
    with steer(tiny_pipe, {concept: 20.0}, within="target"):
        held = latents(tiny_pipe, "a banana on a table")
    with steer(tiny_pipe, {concept: 20.0}):
        assert differ(latents(tiny_pipe, "a banana on a table"), held)


def test_concepts_of_one_lesson_are_drawn_once(
    learned: Concept, tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every method from one pass over the prompts; the first is what it would be if it had been learned alone."""
    drawn: list[str] = []
    draw = pictures.latents_of

    def noted(adapter: PipelineAdapter, texts: list[str], *settings: Any) -> Any:
        drawn.extend(texts)
        return draw(adapter, texts, *settings)

    monkeypatch.setitem(Lesson._capture.__globals__, "latents_of", noted)
    lesson = Lesson(tiny_pipe, PROMPTS, **QUICK, seed=3)
    assert not drawn
    assert lesson.learn() == learned
    others = [lesson.learn(method) for method in ("gaussian-act", "linear-act", "aura")]
    assert drawn == [text for texts in lesson.fitting.values() for text in texts]
    assert len({concept.digest for concept in (learned, *others)}) == 4


def test_learn_has_the_keywords_of_its_lesson_and_hands_them_on(monkeypatch: pytest.MonkeyPatch) -> None:
    own, expected = (inspect.signature(kind).parameters for kind in (learn, Lesson))
    assert {name: own[name] for name in expected} == dict(expected)
    lesson = Mock()
    monkeypatch.setitem(learn.__globals__, "Lesson", lesson)
    settings: dict[str, Any] = {name: object() for name in list(expected)[2:]}
    learn(None, PROMPTS, **settings)
    lesson.assert_called_once_with(None, PROMPTS, **settings)
