"""`dsas eval` on a tiny random pipeline: reports, several processes, mistakes."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dsas_core import Concept
from dsas_core.evaluation import Plan
from dsas_diffusion.cli.commands import eval as eval_command
from dsas_diffusion.evaluation import picture_store
from tests.fixtures.checks import assert_one_line, document_of
from tests.fixtures.judges import PROMPTS, random_banana

QUICK = ("--count", 2, "--seeds", 1, "--strengths", 1, "--quick", "--steps", 2)
JUDGE = ("--judge", "tests.fixtures.judges:brightness")
OWN = ("--masks", "tests.fixtures.judges:halves", "--features", "tests.fixtures.judges:colours")
ARMS = ("dsas", "shuffled_gate", "constant_gate", "oracle")
MEASURED = (*QUICK, *JUDGE, *OWN, "--arms", *ARMS)


@pytest.fixture(scope="module")
def concept(tiny_pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A saved concept whose prompts name no judge."""
    provenance = {"prompts": {key: value for key, value in PROMPTS.items() if key != "judge"}}
    saved = replace(random_banana(tiny_pipe), provenance=provenance)
    return str(saved.save_pretrained(tmp_path_factory.mktemp("saved") / "banana"))


def test_eval_writes_three_reports_and_goes_on_from_what_is_there(
    dsas, model: str, concept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("eval", "--model", model, "--concept", concept, *MEASURED, "--out", tmp_path / "out")
    (measured,) = document_of(dsas(*command, "--json"))["concepts"]
    assert (measured["name"], tuple(measured["arms"])) == ("banana", ARMS)
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"report.json", "report.md", "report.html"}
    monkeypatch.setattr(picture_store, "latent_batches", None)
    code, out, _ = dsas(*command)
    assert code == 0
    assert "At strength 1 DSAS reaches" in out


@pytest.mark.parametrize(("given", "kept"), [({}, 8), ({"count": 3}, 3), ({"count": 20}, 20)])
def test_quick_measures_two_arms_on_few_prompts(given: dict[str, int], kept: int) -> None:
    names = ("count", "seeds", "preserve", "strengths", "targets", "arms")
    args = argparse.Namespace(**dict.fromkeys(names), quick=True)
    vars(args).update(given)
    plan = eval_command._override(Plan(), args)
    assert (plan.arms, plan.count, plan.robustness) == (("dsas", "on"), kept, False)
    assert eval_command._override(Plan(count=4), argparse.Namespace(**{**vars(args), "count": None})).count == 4


@pytest.mark.slow  # test_runs.py shows how processes share the work, without starting any
def test_two_processes_agree_with_one(dsas, model: str, concept: str, tmp_path: Path) -> None:
    def figures(report: Path) -> Any:
        """What a report says, without what differs from run to run."""
        (measured,) = json.loads(report.read_text())["concepts"]
        return {key: value for key, value in measured.items() if key not in ("cost", "samples")}

    arguments = ("eval", "--model", model, "--concept", concept, *MEASURED, "--quiet")
    assert dsas(*arguments, "--out", tmp_path / "one")[0] == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, "-m", "dsas_diffusion.cli", *map(str, arguments), "--out", str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "two" / "report.json").read_text())["processes"] == 2
    assert figures(tmp_path / "two" / "report.json") == figures(tmp_path / "one" / "report.json")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--concept", "nowhere"), 1, "no concept at nowhere"),
        (("--grid", "nowhere.yaml"), 1, "no grid file nowhere.yaml"),
        (("--concept", "CONCEPT", "--targets", "0.5", "1.5"), 2, "expected a number from 0 to 1, found '1.5'"),
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
        (("--concept", "CONCEPT", *JUDGE, "--preserve", "all"), 2, "invalid choice: 'all'"),
        (("--concept", "CONCEPT", *JUDGE, "--limit", "3"), 2, "--limit is about language models"),
        ((), 2, "one of the arguments --concept/-c --grid is required"),
    ],
)
def test_errors_are_one_line(
    dsas, model: str, concept: str, arguments: tuple[str, ...], code: int, message: str, tmp_path: Path
) -> None:
    given = [concept if argument == "CONCEPT" else argument for argument in arguments]
    result, _, err = dsas("eval", "--model", model, *given, "--out", tmp_path / "out", "--quiet")
    assert result == code
    assert_one_line(err, message)


def test_arms_preserve_the_rest(dsas, model: str, concept: str, placed: str, tmp_path: Path) -> None:
    told = replace(Concept.from_pretrained(placed), provenance=Concept.from_pretrained(concept).provenance)
    kept = told.save_pretrained(tmp_path / "kept")
    command = ("eval", "--model", model, *MEASURED, "--arms", "dsas", "--out", tmp_path / "out", "--json")
    (measured,) = document_of(dsas(*command, "--concept", kept, "--preserve", "latents"))["concepts"]
    assert (measured["plan"]["preserve"], measured["preserve"]) == ("latents", "latents")
    assert "preserve=latents" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize("where", ["option", "grid"])
def test_texts_have_nothing_to_preserve(dsas, where: str, tmp_path: Path) -> None:
    prompts = Path(__file__).resolve().parents[3] / "prompts" / "rudeness.yaml"
    (tmp_path / "grid.yaml").write_text(
        json.dumps(
            {
                "concepts": [{"prompts": str(prompts), "models": ["builtin:chat"]}],
                "measure": {"preserve": True} if where == "grid" else {},
            }
        )
    )
    option = ["--preserve"] if where == "option" else []
    code, _, err = dsas("eval", "--grid", tmp_path / "grid.yaml", "--out", tmp_path / "out", "--quiet", *option)
    assert code == 2
    assert_one_line(err, "preserve is about pictures, and builtin:chat is a language model: leave it out")
