"""Evaluating concepts on tiny random pipelines, in Python and on the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dsas_core import Concept, DSASError
from dsas_core.evaluate import ARMS, Plan, Run
from dsas_core.prompts import PromptSet, read
from dsas_diffusion import drawing
from dsas_diffusion.drawing import Job
from dsas_diffusion.evaluate import evaluate, identity
from dsas_diffusion.generation import Settings
from dsas_diffusion.grid import Grid
from dsas_diffusion.sites import find_sites
from tests.diffusion.test_cli import assert_one_line, document_of
from tests.helpers import bases, differ, random_concept, seen_at

ROOT = Path(__file__).resolve().parents[2]

PROMPTS: dict[str, Any] = {
    "name": "banana",
    "placeholders": {
        "place": ["on the grass", "on a table", "at night", "in the snow"],
        "other": ["dog", "cat", "car"],
        "second": ["hat", "star", "tree"],
    },
    "source": ["a banana {place}", "a banana and a {other} {place}"],
    "target": ["a blurred banana {place}", "a blurred banana and a {other} {place}"],
    "control": ["a {other} {place}", "a {other} and a {second} {place}"],
    "evaluation": {"negative": ["a banana"], "unnamed": ["a fruit at night"]},
    "judge": {"builtin": {"things": ["banana"], "style": "blurred"}},
}
PLAN = Plan(count=2, seeds=2, strengths=(1.0, 2.0), targets=(0.3,))


class Brightness:
    """A judge of brightness that finds the thing in the left half."""

    name = "brightness"

    def shown(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        return np.array([np.asarray(picture).mean() / 255 for picture in pictures])

    def masks(self, pictures: Sequence[Image.Image]) -> list[np.ndarray | None]:
        mask = np.zeros(pictures[0].size[::-1], bool)
        mask[:, : mask.shape[1] // 2] = True
        return [mask for _ in pictures]


class Redness(Brightness):
    """Another one, which knows no masks."""

    name = "redness"
    masks = None  # type: ignore[assignment]

    def shown(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        return np.array([np.asarray(picture)[..., 0].mean() / 255 for picture in pictures])


def brightness(pictures: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
    """For --judge."""
    return Brightness().shown(pictures, prompts)


@pytest.fixture(scope="module")
def prompts() -> PromptSet:
    return read(PROMPTS)


@pytest.fixture(scope="module")
def concept(tiny_pipe: Any) -> Concept:
    sites = find_sites(tiny_pipe, ["text", "cross"])
    return random_concept(seen_at(tiny_pipe, sites), base=bases(tiny_pipe), unit=0.2, name="banana")


def measured(pipe: Any, concept: Concept, prompts: PromptSet, folder: Path, **settings: Any) -> dict[str, Any]:
    run, judges = Run(folder, identity(pipe, concept, prompts)), settings.pop("judges", Brightness())
    return evaluate(pipe, concept, prompts, judges, run, settings.pop("plan", PLAN), steps=2, **settings)


@pytest.fixture(scope="module")
def document(
    tiny_pipe: Any, concept: Concept, prompts: PromptSet, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    return measured(tiny_pipe, concept, prompts, tmp_path_factory.mktemp("run") / "run")


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


def test_nothing_is_drawn_twice(
    tiny_pipe: Any, concept: Concept, prompts: PromptSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(count=2, seeds=1, strengths=(1.0,), arms=("dsas", "on"), robustness=False)
    first = measured(tiny_pipe, concept, prompts, tmp_path / "run", plan=plan)
    with monkeypatch.context() as patched:
        patched.setattr(drawing, "latent_batches", None)
        assert measured(tiny_pipe, concept, prompts, tmp_path / "run", plan=plan) == first
    other = concept.with_unit(0.3)
    with pytest.raises(DSASError, match="holds another run"):
        measured(tiny_pipe, other, prompts, tmp_path / "run", plan=plan)


def test_a_unit_of_nothing_changes_nothing(
    tiny_pipe: Any, concept: Concept, prompts: PromptSet, tmp_path: Path
) -> None:
    plan = Plan(count=2, seeds=1, strengths=(1.0,), arms=("dsas", "on"), robustness=False)
    found = measured(tiny_pipe, concept.with_unit(0.0), prompts, tmp_path / "run", plan=plan)
    for arm in found["arms"].values():
        point = arm["points"][0]
        assert (point["cost"]["value"], point["identical"], point["unchanged"]) == (0, 1, 1)
        assert (point["pixel_change"], point["latent_change"], point["change_outside_the_thing"]) == (0, 0, 0)


def halves(pictures: Sequence[Image.Image]) -> list[Any]:
    """For --masks: the right half of every other picture."""
    mask = np.zeros(pictures[0].size[::-1], bool)
    mask[:, mask.shape[1] // 2 :] = True
    return [mask if i % 2 else None for i in range(len(pictures))]


def colours(pictures: Sequence[Image.Image]) -> np.ndarray:
    """For --features."""
    return np.stack([np.asarray(picture).reshape(-1, 3).mean(0) for picture in pictures])


def test_several_judges_ones_own_masks_and_features(
    tiny_pipe: Any, concept: Concept, prompts: PromptSet, tmp_path: Path, document: dict[str, Any]
) -> None:
    plan = Plan(count=2, seeds=2, strengths=(1.0, 2.0), arms=("dsas", "on", "oracle"), robustness=False)
    judges = [Brightness(), Redness()]
    own = {"masks": halves, "features": colours}
    found = measured(tiny_pipe, concept, prompts, tmp_path / "run", plan=plan, judges=judges, **own)
    assert found["arms"]["dsas"]["points"][0]["effect"] == document["arms"]["dsas"]["points"][0]["effect"]
    (other,) = found["judges"]
    assert set(other) == {"judge", "base", "asked", "dsas", "on", "oracle"}
    assert (other["judge"], other["base"] != other["dsas"]) == ("redness", True)
    assert found["localisation"]["pictures"] == 2, "one of two has a mask"
    at_unit = found["arms"]["on"]["points"][0]
    assert at_unit["frechet"] > 0
    assert "kid" not in at_unit
    assert any("KID: of 4 control pictures it is noise" in reason for reason in found["skipped"])
    none = measured(tiny_pipe, concept, prompts, tmp_path / "other", plan=plan, judges=Redness())
    assert none["localisation"] is None
    assert any("masks" in reason for reason in none["skipped"])
    on, oracle = none["arms"]["on"]["points"][0], none["arms"]["oracle"]["points"][0]
    assert (oracle["effect"], oracle["cost"]["value"]) == (on["effect"], 0), "it knows which prompts, not where"
    assert none["oracle"] == "prompts"


def test_the_oracle_steers_where_it_is_told(
    tiny_pipe: Any, prompts: PromptSet, tmp_path: Path, document: dict[str, Any]
) -> None:
    """In two batches: pictures marked all over as with the gate always on, those that are not marked not at all."""
    concept = random_concept(seen_at(tiny_pipe, find_sites(tiny_pipe, "cross")), base=bases(tiny_pipe), unit=0.3)
    chosen = prompts.fresh(6)
    run = Run(tmp_path / "run", identity(tiny_pipe, concept, prompts))
    drawn = drawing.Drawings(tiny_pipe, concept, chosen, None, run, Settings(2, 3.0), 2)
    base, on, oracle = (Job("base", "source"), Job("on", "source", 2.0), Job("oracle", "source", 2.0))
    drawn.complete([base, on], "drawing")
    pictures = drawn.pictures(base)
    assert len(pictures) == 12 > drawing.BATCH
    marked = [i % 3 != 1 for i in range(12)]
    drawn.tell([np.ones(pictures[0].size[::-1], bool) if there else None for there in marked])
    drawn.complete([oracle], "drawing")
    for i, there in enumerate(marked):
        wanted = drawn.latents(on if there else base)[i]
        assert torch.equal(drawn.latents(oracle)[i], wanted)
        assert differ(drawn.latents(on)[i], drawn.latents(base)[i])
    part = np.zeros(pictures[0].size[::-1], bool)
    part[: len(part) // 2] = True
    other = drawing.Drawings(tiny_pipe, concept, chosen, None, run, Settings(2, 3.0), 2)
    other.complete([base], "drawing")
    other.tell([part] * 12)
    other.complete([oracle], "drawing")
    moved = (other.latents(oracle) - drawn.latents(base)).abs().mean((0, 1, 3))
    upper, lower = moved.chunk(2)
    assert upper.mean() > lower.mean(), "the upper half was marked"


# ---- the command line -----------------------------------------------------------------------------------------------

QUICK = ("--count", 2, "--seeds", 1, "--strengths", 1, "--quick", "--steps", 2)
JUDGE = ("--judge", "tests.diffusion.test_evaluate:brightness")


@pytest.fixture(scope="module")
def learned(concept: Concept, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A saved concept whose prompts name no judge."""
    told = {"prompts": {key: value for key, value in PROMPTS.items() if key != "judge"}}
    saved = replace(concept, provenance=told)
    return str(saved.save_pretrained(tmp_path_factory.mktemp("saved") / "banana"))


def figures(report: Path) -> Any:
    """What a report says, without what differs from run to run."""
    concept = json.loads(report.read_text())["concepts"][0]
    return {key: value for key, value in concept.items() if key not in ("cost", "samples")}


def test_eval_writes_three_reports_and_two_processes_agree(dsas, model: str, tmp_path: Path) -> None:
    phrases = ("--from", "banana", "--to", "blurred banana")
    learning = (*phrases, "--out", tmp_path / "c", "--steps", 2, "--count", 12, "--sites", "cross", "--json")
    learned = document_of(dsas("learn", "--model", model, *learning))
    arguments = ["eval", "--model", model, "--concept", tmp_path / "c", *QUICK, *JUDGE]
    arguments += ["--masks", f"{__name__}:halves", "--features", f"{__name__}:colours"]
    arguments += ["--arms", "dsas", "shuffled_gate", "constant_gate", "oracle"]
    told = document_of(dsas(*arguments, "--out", tmp_path / "one", "--json"))
    assert told["concepts"][0]["name"] == learned["name"]
    assert list(told["concepts"][0]["arms"]) == ["dsas", "shuffled_gate", "constant_gate", "oracle"]
    assert {path.name for path in (tmp_path / "one").iterdir()} >= {"report.json", "report.md", "report.html"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, "-m", "dsas_diffusion.cli", *map(str, arguments), "--out", str(tmp_path / "two"), "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "two" / "report.json").read_text())["processes"] == 2
    assert figures(tmp_path / "two" / "report.json") == figures(tmp_path / "one" / "report.json")
    code, out, _ = dsas(*arguments, "--out", tmp_path / "one")
    assert code == 0
    assert "At strength 1 DSAS reaches" in out


def test_a_grid_learns_and_measures(dsas, model: str, tmp_path: Path) -> None:
    (tmp_path / "banana.yaml").write_text(yaml.safe_dump(PROMPTS))
    content = {
        "title": "Fruit",
        "concepts": [
            {"prompts": "banana.yaml", "models": [model], "sites": ["text", "cross"], "measure": {"count": 3}}
        ],
        "learn": {"count": 8, "steps": 2},
        "measure": {"count": 2, "seeds": 1, "strengths": [1]},
    }
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(content))
    grid = Grid.read(tmp_path / "grid.yaml")
    assert [entry.name for entry in grid.entries] == ["banana-text", "banana-cross"]
    assert {(entry.plan.count, entry.plan.seeds) for entry in grid.entries} == {(3, 1)}
    arguments = ("eval", "--grid", tmp_path / "grid.yaml", "--out", tmp_path / "out", "--steps", 2, "--quick", "--json")
    code, out, err = dsas(*arguments)
    if code:  # on a random model it may be that no gate tells anything apart
        assert_one_line(err, "no site tells source from control")
        return
    assert [concept["name"] for concept in json.loads(out)["concepts"]] == ["banana-text", "banana-cross"]
    assert dsas(*arguments)[0] == 0, "and again, from what is there"


def test_a_grid_of_recipes_learns_by_them(dsas, tmp_path: Path) -> None:
    content = {
        "concepts": [{"prompts": str(ROOT / "prompts" / "rudeness.yaml"), "models": ["builtin:chat"]}],
        "recipes": {
            "plain": {},
            "told": {"supervision": "positions", "form": "token"},
            "many at once": {"form": "pooled"},
        },
        "learn": {"count": 8},
        "measure": {"count": 2, "seeds": 1, "strengths": [1], "arms": ["dsas"], "robustness": False},
    }
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(content))
    arguments = ("eval", "--grid", tmp_path / "grid.yaml", "--out", tmp_path / "out", "--json")
    document = json.loads(dsas(*arguments)[1])
    assert {concept["name"]: concept["recipe"] for concept in document["concepts"]} == {
        "rudeness-plain": {},
        "rudeness-told": content["recipes"]["told"],
    }
    (reason,) = document["refused"].values()
    assert "reads tokens that are not written yet" in reason
    assert f"rudeness-many-at-once could not be learned: {reason}" in (tmp_path / "out" / "report.md").read_text()
    content["recipes"] = {"plain": {"mode": "causal"}, "told": {}}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(content))
    code, _, err = dsas(*arguments)
    assert code == 1
    assert_one_line(err, "learned otherwise (prompts, method, gate, recipe, seed or count)")


def test_a_grid_has_each_methods_own_gate_once(tmp_path: Path) -> None:
    (tmp_path / "banana.yaml").write_text(yaml.safe_dump(PROMPTS))
    content = {"concepts": [{"prompts": "banana.yaml", "models": ["m"]}], "methods": ["caa", "mera"]}
    for gates, expected in (
        ([None, "dsas"], ["banana-caa-dsas", "banana-mera-mera", "banana-mera-dsas"]),
        (None, ["banana-caa", "banana-mera"]),
    ):
        (tmp_path / "grid.yaml").write_text(yaml.safe_dump({**content, "gates": gates}))
        entries = Grid.read(tmp_path / "grid.yaml").entries
        assert [entry.name for entry in entries] == expected
        assert {(entry.method, entry.gate) for entry in entries} >= {("caa", "dsas"), ("mera", "mera")}
    content |= {"methods": ["mera"], "recipes": {"found": {}, "given": {"options": {"alpha": 0.8}}}}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(content))
    assert [entry.gate for entry in Grid.read(tmp_path / "grid.yaml").entries] == ["mera", "mera(alpha=0.8)"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not YAML"),
        ("[1]", "expected a mapping with title, models, concepts"),
        ("concepts: []", "concepts must be a list that is not empty"),
        ("concepts: [{prompt: x}]", "expected a mapping with prompts, models, sites, name, measure; found prompt"),
        ("concepts: [{prompts: nowhere.yaml, models: [a]}]", "no prompt file"),
        ("colour: red", "found colour"),
        ("{concepts: [{prompts: x}], measure: {strengths: [2, 3]}}", "1 among them"),
        ("concepts: [{prompts: x, measure: {size: 3}}]", "measure: expected a mapping with count, seeds"),
        ("{concepts: [{prompts: x}], learn: {size: 3}}", "expected a mapping with count, steps, seed; found size"),
        ("{concepts: [{prompts: PROMPTS, models: [a]}], recipes: [causal]}", "recipes map a name of yours to fields"),
        (
            "{concepts: [{prompts: PROMPTS, models: [a]}], recipes: {a: causal}}",
            "recipes map a name of yours to fields",
        ),
        ("{concepts: [{prompts: PROMPTS, models: [a]}], recipes: {a: {mode: best}}}", "learning mode 'best'"),
        ("{concepts: [{prompts: PROMPTS, models: [a]}], recipes: {a: {options: {alpha: 1}}}}", "CAA has no option"),
    ],
)
def test_bad_grids(dsas, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.yaml").write_text(yaml.safe_dump(PROMPTS))
    (tmp_path / "grid.yaml").write_text(content.replace("PROMPTS", "prompts.yaml"))
    code, _, err = dsas("eval", "--grid", tmp_path / "grid.yaml", "--out", tmp_path / "out")
    assert code == 1
    assert_one_line(err, message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--concept", "nowhere"), 1, "no concept at nowhere"),
        (("--grid", "nowhere.yaml"), 1, "no grid file nowhere.yaml"),
        (("--concept", "CONCEPT", "--targets", "0.5", "1.5"), 1, "a probability between 0 and 1, found 1.5"),
        (("--grid", "x", "--prompts", "y"), 2, "leave --prompts out"),
        (("--strengths", "2", "--concept", "CONCEPT"), 1, "1 among them"),
        (("--arms", "on", "--concept", "CONCEPT"), 1, "expected dsas, and others of"),
        (("--arms", "left", "--concept", "CONCEPT"), 2, "invalid choice"),
        (("--concept", "CONCEPT"), 1, "prompt file 'banana' names no judge: add one"),
        (("--concept", "CONCEPT", "--judge", "nothing"), 1, "judge"),
        (("--concept", "CONCEPT", *JUDGE, "--prompts", "nowhere.yaml"), 1, "no prompt file nowhere.yaml"),
        (("--concept", "CONCEPT", *JUDGE, "--tasks", "mmlu"), 2, "--tasks is about language models"),
        (("--concept", "CONCEPT", *JUDGE, "--masks", "nowhere:f"), 1, "masks 'nowhere:f'"),
        (("--concept", "CONCEPT", *JUDGE, "--features", "nowhere:f"), 1, "features 'nowhere:f'"),
        (("--concept", "CONCEPT", *JUDGE, "--limit", "3"), 2, "--limit is about language models"),
        ((), 2, "one of the arguments --concept/-c --grid is required"),
    ],
)
def test_mistakes_are_told_in_one_line(
    dsas, model: str, learned: str, arguments: tuple[str, ...], code: int, message: str, tmp_path: Path
) -> None:
    given = [learned if argument == "CONCEPT" else argument for argument in arguments]
    found, _, err = dsas("eval", "--model", model, *given, "--out", tmp_path / "out", "--quiet")
    assert found == code
    assert_one_line(err, message)
