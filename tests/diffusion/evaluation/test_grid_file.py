"""Grids of concepts, models and recipes: how they are read, learned and measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from dsas_core.errors import DSASError
from dsas_diffusion.evaluation.grid_file import EvaluationGrid
from tests.fixtures.checks import assert_one_line, document_of
from tests.fixtures.judges import PROMPTS

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.usefixtures("one_unit")
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
    grid = EvaluationGrid.read(tmp_path / "grid.yaml")
    assert [entry.name for entry in grid.entries] == ["banana-text", "banana-cross"]
    assert {(entry.plan.count, entry.plan.seeds) for entry in grid.entries} == {(3, 1)}
    arguments = ("eval", "--grid", tmp_path / "grid.yaml", "--out", tmp_path / "out", "--steps", 2, "--quick", "--json")
    measured = document_of(dsas(*arguments))["concepts"]
    assert [concept["name"] for concept in measured] == ["banana-text", "banana-cross"]
    assert dsas(*arguments)[0] == 0, "and again, from what is there"


@pytest.mark.parametrize("name", ["..", "../up", "nul", ".hidden", "n" * 300])
def test_an_entry_whose_name_no_folder_may_have_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "banana.yaml").write_text(yaml.safe_dump(PROMPTS))
    content = {"concepts": [{"name": name, "prompts": "banana.yaml", "models": ["builtin:emoji"]}]}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(DSASError, match=r"can be no folder's name, as it .*: give it a name: of its own"):
        EvaluationGrid.read(tmp_path / "grid.yaml")


@pytest.mark.slow
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
        entries = EvaluationGrid.read(tmp_path / "grid.yaml").entries
        assert [entry.name for entry in entries] == expected
        assert {(entry.method, entry.gate) for entry in entries} >= {("caa", "dsas"), ("mera", "mera")}
    content |= {"methods": ["mera"], "recipes": {"found": {}, "given": {"options": {"alpha": 0.8}}}}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(content))
    assert [entry.gate for entry in EvaluationGrid.read(tmp_path / "grid.yaml").entries] == ["mera", "mera(alpha=0.8)"]


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
        ("{concepts: [{prompts: x}], measure: {preserve: all}}", "preserve 'all': expected true, false or latents"),
        ("concepts: [{prompts: x, measure: {size: 3}}]", "measure: expected a mapping with count, seeds"),
        (
            "{concepts: [{prompts: x}], learn: {width: 3}}",
            "expected a mapping with count, steps, size, seed; found width",
        ),
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
