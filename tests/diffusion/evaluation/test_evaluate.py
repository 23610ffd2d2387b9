"""Evaluating concepts on tiny random pipelines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsas_core import Concept, DSASError
from dsas_core.evaluation import ARMS, Plan, RunStore
from dsas_core.learning.prompts.prompt_file import load_prompts
from dsas_core.learning.prompts.prompt_set import SIDES, PromptSet
from dsas_diffusion.evaluation import picture_store
from dsas_diffusion.evaluation.evaluate import evaluate, identity
from dsas_diffusion.evaluation.picture_store import PictureJob
from dsas_diffusion.generation.settings import Settings
from dsas_diffusion.pipelines.adapter import adapt, find_sites
from dsas_diffusion.steering.drawing import generate_batches
from dsas_diffusion.steering.steer import steer
from tests.fixtures.checks import differ, same
from tests.fixtures.concepts import random_concept
from tests.fixtures.judges import (
    PROMPTS,
    Brightness,
    Redness,
    colours,
    halves,
    random_banana,
    random_banana_with_place,
)
from tests.fixtures.models import bases
from tests.fixtures.visitors import seen_at

PLAN = Plan(count=2, seeds=2, strengths=(1.0, 2.0), targets=(0.3,))


@pytest.fixture(scope="module")
def prompts() -> PromptSet:
    return load_prompts(PROMPTS)


@pytest.fixture(scope="module")
def concept(tiny_pipe: Any) -> Concept:
    return random_banana(tiny_pipe)


def measure(pipe: Any, concept: Concept, prompts: PromptSet, folder: Path, **settings: Any) -> dict[str, Any]:
    run, judges = RunStore(folder, identity(pipe, concept, prompts)), settings.pop("judges", Brightness())
    return evaluate(pipe, concept, prompts, judges, run, settings.pop("plan", PLAN), steps=2, **settings)


@pytest.fixture(scope="module")
def document(
    tiny_pipe: Any, concept: Concept, prompts: PromptSet, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    return measure(tiny_pipe, concept, prompts, tmp_path_factory.mktemp("run") / "run")


def test_every_arm_at_every_strength(document: dict[str, Any]) -> None:
    assert list(document["arms"]) == list(ARMS)
    for name, arm in document["arms"].items():
        assert [point["strength"] for point in arm["points"]] == [1.0, 2.0]
        if name == "oracle":
            assert all(point["cost"]["value"] == point["pixel_change"] == 0 for point in arm["points"])
        else:
            assert all(0 < point["cost"]["value"] <= 1 and point["pixel_change"] > 0 for point in arm["points"])
    on, oracle = (document["arms"][name]["points"][1] for name in ("on", "oracle"))
    assert oracle["effect"] != on["effect"], "it steers patches of the left half only"
    assert set(document["baselines"]) == {"no steering", "asked in words", "negative prompt “a banana”"}
    (free,) = document["auto"]
    assert free["target"] == 0.3
    assert 0 < free["cost"]["value"] <= 1
    assert free["effect"] not in [point["effect"] for point in document["arms"]["dsas"]["points"]]
    assert (document["oracle"], document["dose"]["on"]) == ("patches", {"source": 1.0, "control": 1.0})
    assert 0 < document["dose"]["dsas"]["source"] < 1
    assert document["localisation"]["pictures"] == 4
    assert set(document["unnamed"]) == {"pictures", "dsas", "on"}
    settings = [(line["steps"], line["guidance"], line["scheduler"][:4]) for line in document["robustness"]]
    assert settings == [
        (1, 7.5, "DPMS"),
        (4, 7.5, "DPMS"),
        (2, 5.0, "DPMS"),
        (2, 12.5, "DPMS"),
        (2, 7.5, "UniP"),
        (2, 7.5, "DEIS"),
    ]
    assert [(line["wording"], line["pictures"]) for line in document["wordings"]] == [
        ("a banana and a {other} {place}", 2),
        ("a banana {place}", 2),
    ]
    assert set(document["wordings"][0]) == {"wording", "pictures", "base", "asked", "dsas"}
    assert document["cost"]["time_ratio"] > 0
    assert any("LPIPS needs torchvision" in reason for reason in document["skipped"])
    assert {row["side"] for row in document["samples"]} == {"source", "control", "unnamed"}
    assert all(Path(path).is_file() for row in document["samples"] for path in row["pictures"].values())


def test_prompts_are_not_those_of_learning(tiny_pipe: Any, prompts: PromptSet) -> None:
    told = {"seed": 3, "count": 8}
    concept = random_concept({find_sites(tiny_pipe, "text")[0]: 8}, provenance=told)
    used = {text for side in prompts.draw(8, 3).values() for text in side}
    judged = Plan(count=4).prompts(concept, prompts)
    assert not used & {text for side in ("source", "control") for text in judged[side]}
    with pytest.raises(DSASError, match="has no source prompts that learning did not use: add templates"):
        Plan(count=4).prompts(random_concept({find_sites(tiny_pipe, "text")[0]: 8}, provenance={"count": 60}), prompts)


def test_private_prompts_are_in_no_file_of_an_evaluation(
    tiny_pipe: Any, concept: Concept, prompts: PromptSet, tmp_path: Path
) -> None:
    plan = Plan(count=2, seeds=1, strengths=(1.0,), arms=("dsas", "on"))
    document = measure(tiny_pipe, concept, replace(prompts, private=True), tmp_path / "run", plan=plan)
    assert document["samples"] == []
    files = "".join(path.read_text() for path in (tmp_path / "run").rglob("*.json"))
    texts = [text for side in (*SIDES, *prompts.evaluation) for text in prompts.expanded(side)]
    assert not [text for text in texts if text in files + json.dumps(document)]


def test_nothing_is_drawn_twice(
    tiny_pipe: Any, concept: Concept, prompts: PromptSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(count=2, seeds=1, strengths=(1.0,), arms=("dsas", "on"), robustness=False)
    first = measure(tiny_pipe, concept, prompts, tmp_path / "run", plan=plan)
    with monkeypatch.context() as patched:
        patched.setattr(picture_store, "latent_batches", None)
        assert measure(tiny_pipe, concept, prompts, tmp_path / "run", plan=plan) == first
    other = concept.with_unit(0.3)
    with pytest.raises(DSASError, match="holds another run"):
        measure(tiny_pipe, other, prompts, tmp_path / "run", plan=plan)


def test_a_unit_of_nothing_changes_nothing(
    tiny_pipe: Any, concept: Concept, prompts: PromptSet, tmp_path: Path
) -> None:
    plan = Plan(count=2, seeds=1, strengths=(1.0,), arms=("dsas", "on"), robustness=False)
    figures = measure(tiny_pipe, concept.with_unit(0.0), prompts, tmp_path / "run", plan=plan)
    for arm in figures["arms"].values():
        point = arm["points"][0]
        assert (point["cost"]["value"], point["identical"], point["unchanged"]) == (0, 1, 1)
        assert (point["pixel_change"], point["latent_change"], point["change_outside_the_thing"]) == (0, 0, 0)


def test_several_judges_ones_own_masks_and_features(
    tiny_pipe: Any, concept: Concept, prompts: PromptSet, tmp_path: Path, document: dict[str, Any]
) -> None:
    plan = Plan(count=2, seeds=2, strengths=(1.0, 2.0), arms=("dsas", "on", "oracle"), robustness=False)
    judges = [Brightness(), Redness()]
    own = {"masks": halves, "features": colours}
    figures = measure(tiny_pipe, concept, prompts, tmp_path / "run", plan=plan, judges=judges, **own)
    assert figures["arms"]["dsas"]["points"][0]["effect"] == document["arms"]["dsas"]["points"][0]["effect"]
    (other,) = figures["judges"]
    assert set(other) == {"judge", "base", "asked", "dsas", "on", "oracle"}
    assert (other["judge"], other["base"] != other["dsas"]) == ("redness", True)
    assert figures["localisation"]["pictures"] == 2, "one of two has a mask"
    at_unit = figures["arms"]["on"]["points"][0]
    assert at_unit["frechet"] > 0
    assert "kid" not in at_unit
    assert any("KID: of 4 control pictures it is noise" in reason for reason in figures["skipped"])
    none = measure(tiny_pipe, concept, prompts, tmp_path / "other", plan=plan, judges=Redness())
    assert none["localisation"] is None
    assert any("masks" in reason for reason in none["skipped"])
    on, oracle = none["arms"]["on"]["points"][0], none["arms"]["oracle"]["points"][0]
    assert (oracle["effect"], oracle["cost"]["value"]) == (on["effect"], 0), "it knows which prompts, not where"
    assert none["oracle"] == "prompts"


def test_the_oracle_steers_inside_its_masks(
    tiny_pipe: Any, prompts: PromptSet, tmp_path: Path, document: dict[str, Any]
) -> None:
    """In two batches: pictures marked all over as with the gate always on, those that are not marked not at all."""
    concept = random_concept(seen_at(tiny_pipe, find_sites(tiny_pipe, "cross")), base=bases(tiny_pipe), unit=0.3)
    chosen = prompts.fresh(6)
    run = RunStore(tmp_path / "run", identity(tiny_pipe, concept, prompts))
    store = picture_store.PictureStore(adapt(tiny_pipe), concept, chosen, None, run, Settings(2, 3.0), 2)
    base, on, oracle = (
        PictureJob("base", "source"),
        PictureJob("on", "source", 2.0),
        PictureJob("oracle", "source", 2.0),
    )
    store.complete([base, on], "drawing")
    pictures = store.load(base)
    assert len(pictures) == 12 > picture_store.BATCH
    marked = [i % 3 != 1 for i in range(12)]
    store.use_oracle_masks([np.ones(pictures[0].size[::-1], bool) if mark else None for mark in marked])
    store.complete([oracle], "drawing")
    for i, mark in enumerate(marked):
        wanted = store.latents(on if mark else base)[i]
        assert same(store.latents(oracle)[i], wanted)
        assert differ(store.latents(on)[i], store.latents(base)[i])
    part = np.zeros(pictures[0].size[::-1], bool)
    part[: len(part) // 2] = True
    other = picture_store.PictureStore(adapt(tiny_pipe), concept, chosen, None, run, Settings(2, 3.0), 2)
    other.complete([base], "drawing")
    other.use_oracle_masks([part] * 12)
    other.complete([oracle], "drawing")
    moved = (other.latents(oracle) - store.latents(base)).abs().mean((0, 1, 3))
    upper, lower = moved.chunk(2)
    assert upper.mean() > lower.mean(), "the upper half was marked"


def test_the_oracle_of_words_knows_which_prompts_alone(tiny_pipe: Any, prompts: PromptSet, tmp_path: Path) -> None:
    """Embeddings reach the denoiser, and are no patches."""
    concept = random_concept(seen_at(tiny_pipe, find_sites(tiny_pipe, "embeddings")), base=bases(tiny_pipe))
    plan = Plan(count=2, seeds=1, strengths=(1.0,), arms=("dsas", "on", "oracle"), robustness=False)
    figures = measure(tiny_pipe, concept, prompts, tmp_path / "run", plan=plan, masks=halves)
    on, oracle = figures["arms"]["on"]["points"][0], figures["arms"]["oracle"]["points"][0]
    assert (oracle["effect"], oracle["cost"]["value"]) == (on["effect"], 0)
    assert (figures["oracle"], figures["localisation"]) == ("prompts", None)


# ---- the rest of the picture is kept ---------------------------------------------------------------------------------


def test_every_steering_arm_can_preserve_the_rest(tiny_pipe: Any, prompts: PromptSet, tmp_path: Path) -> None:
    concept = random_banana_with_place(tiny_pipe)
    plan = Plan(count=2, seeds=1, strengths=(1.0,), robustness=False)
    plain = measure(tiny_pipe, concept, prompts, tmp_path / "run", plan=plan)
    cells = {path.name for path in (tmp_path / "run" / "cells").iterdir()}
    kept = measure(tiny_pipe, concept, prompts, tmp_path / "run", plan=replace(plan, preserve=True))
    assert list(kept["arms"]) == list(ARMS)
    for name, arm in kept["arms"].items():
        before, after = plain["arms"][name]["points"][0], arm["points"][0]
        if name != "oracle":
            assert 0 < after["pixel_change"] < before["pixel_change"], name
            assert "latent_change" in before
            assert "latent_change" not in after, "pictures are composed"
    assert (kept["preserve"], kept["baselines"]) == (True, plain["baselines"])
    assert "preserve" not in plain
    assert cells < {path.name for path in (tmp_path / "run" / "cells").iterdir()}


def test_preserved_pictures_are_those_of_generate_and_others_keep_their_keys(
    tiny_pipe: Any, prompts: PromptSet, tmp_path: Path
) -> None:
    concept, chosen = random_banana_with_place(tiny_pipe), prompts.fresh(3)
    run = RunStore(tmp_path / "run", identity(tiny_pipe, concept, prompts))
    arguments = (adapt(tiny_pipe), concept, chosen, None, run, Settings(2, 3.0), 1)
    plain, *kept = (picture_store.PictureStore(*arguments, how) for how in (False, True, "latents"))
    steered = PictureJob("dsas", "source", 1.0)
    for job in (PictureJob("base", "source"), PictureJob("asked", "source"), PictureJob("dsas", "source"), steered):
        assert "preserve" not in plain._cell(job).key
        assert [store._cell(job).digest == plain._cell(job).digest for store in kept] == [job is not steered] * 2
    assert len({store._cell(steered).digest for store in (plain, *kept)}) == 3
    grown = {"mask": {**concept.evidence["mask"], "growth": 0.1}}
    other = picture_store.PictureStore(adapt(tiny_pipe), replace(concept, evidence=grown), *arguments[2:], True)
    assert other._cell(steered).digest != kept[0]._cell(steered).digest, "the mask's rule is no part of the concept"
    kept[0].complete([steered], "drawing")
    with steer(tiny_pipe, {concept: 1.0}) as steering:
        batches = generate_batches(steering, chosen["source"], kept[0]._noise(steered), Settings(2, 3.0), True)
        expected = [picture.tobytes() for made in batches for picture in made.images]
    assert [picture.tobytes() for picture in kept[0].load(steered)] == expected


def test_a_concept_without_a_place_is_measured_without(
    tiny_pipe: Any, concept: Concept, prompts: PromptSet, tmp_path: Path
) -> None:
    plan = Plan(count=2, seeds=1, strengths=(1.0,), arms=("dsas",), robustness=False)
    plain = measure(tiny_pipe, concept, prompts, tmp_path / "run", plan=plan)
    asked = measure(tiny_pipe, concept, prompts, tmp_path / "run", plan=replace(plan, preserve=True))
    assert asked["arms"] == plain["arms"]
    assert [reason for reason in asked["skipped"] if reason not in plain["skipped"]] == [
        "preserve: the concept's probes see no place of it in pictures, so all arms are without"
    ]


@pytest.mark.parametrize("how", ["all", None, 2])
def test_plans_that_preserve_otherwise(how: Any) -> None:
    with pytest.raises(DSASError, match=f"preserve {how!r}: expected true, false or latents"):
        Plan(preserve=how)
