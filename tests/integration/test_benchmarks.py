"""Benchmarks: each starts; the checks and their page, and the comparison of digests, say what follows from figures."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import benchmarks
from benchmarks.common import records
from benchmarks.quality import checks, digests
from benchmarks.reports import checks_page as page
from dsas_core.errors import DSASError
from dsas_core.learning.prompts.prompt_set import PromptSet

MODULES = sorted(found.name for found in pkgutil.walk_packages(benchmarks.__path__, "benchmarks.") if not found.ispkg)
#: what others import and nobody runs
PARTS = {
    "benchmarks.builtin_models.conversations",
    "benchmarks.builtin_models.dataset",
    "benchmarks.builtin_models.language_architecture",
    "benchmarks.builtin_models.language_quality",
    "benchmarks.builtin_models.optimise",
    "benchmarks.builtin_models.picture_architecture",
    "benchmarks.builtin_models.picture_scenes",
    "benchmarks.builtin_models.trainer",
    "benchmarks.common.arms",
    "benchmarks.common.builtin_metrics",
    "benchmarks.common.processes",
    "benchmarks.common.records",
    "benchmarks.cost.model_shapes",
    "benchmarks.quality.checks_models",
    "benchmarks.reports.checks_page",
}


# ---- every benchmark -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODULES)
def test_a_benchmark_starts(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In this process, where torch is loaded already; what it would load to measure is left alone."""
    module = importlib.import_module(name)
    assert hasattr(module, "main") == (name not in PARTS)
    if name in PARTS:
        return
    for loads in ("load_pipeline", "load"):
        if hasattr(module, loads):
            monkeypatch.setattr(module, loads, lambda *_, **__: pytest.fail("a model was loaded for --help"))
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert not ended.value.code
    assert "usage:" in capsys.readouterr().out


def test_a_benchmark_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "benchmarks.quality.concept", "--help"]
    done = subprocess.run(command, cwd=records.ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "benchmarks/results/concept.json" in done.stdout


def test_targets_of_the_makefile_name_modules_that_there_are() -> None:
    makefile = (records.ROOT / "Makefile").read_text()
    named = set(re.findall(r"-m (benchmarks\.[\w.]+)", makefile))
    assert named
    assert named - set(MODULES) == set()
    grids = re.findall(r"(benchmarks/grids/\w+\.yaml)", makefile)
    assert grids
    assert [path for path in grids if not (records.ROOT / path).is_file()] == []


def test_a_record_says_how_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x.py", "--seeds", "2"])
    path = tmp_path / "new" / "record.json"
    records.write(path, {"effect": float("nan"), **records.made_with("gradio", began=0.0)})
    record = json.loads(path.read_text())
    assert set(record) == {"effect", "command", "seconds", "machine", "versions"}
    assert record["effect"] is None
    assert record["command"].startswith("python -m ")
    assert record["command"].endswith(" --seeds 2")
    assert {"python", "torch", "diffusers"} <= set(record["versions"])
    assert records.results_of("/somewhere/quality/concept.py") == records.RESULTS / "concept.json"
    assert records.command_of("--model", "a b", module="m") == "python -m m --model 'a b'"


# ---- digests ---------------------------------------------------------------------------------------------------------


def test_digests_that_differ_are_a_line_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the concepts that ship alone; the rest takes minutes."""
    monkeypatch.setattr(digests, "pictures", lambda record, pipe, concepts: record.add("a picture", lambda: "same"))
    monkeypatch.setattr(digests.dsas, "load_pipeline", lambda _: SimpleNamespace(set_progress_bar_config=lambda **_: 0))
    monkeypatch.setattr(digests.llm, "load", lambda _: (None, None))
    file = tmp_path / "digests.json"
    monkeypatch.setattr(sys, "argv", ["digests", "--parts", "pictures", "--out", str(file)])
    assert digests.main() == 0
    found = json.loads(file.read_text())
    assert found["a picture"] == "same"
    assert len(found) == 1 + 3 * len(digests.dsas_core.shipped())
    monkeypatch.setattr(sys, "argv", ["digests", "--parts", "pictures", "--compare", str(file)])
    assert digests.main() == 0
    assert "all alike" in capsys.readouterr().out
    file.write_text(json.dumps({**found, "a picture": "other", "texts": "gone"}))
    assert digests.main() == 1
    assert capsys.readouterr().out.splitlines() == [
        "a picture: was other, is same",
        "texts: was gone, is nothing of that name",
    ]


def test_an_error_is_a_digest_too() -> None:
    record = digests.Record()
    record.add("broken", lambda: f"{1 / 0}")
    assert record.found == {"broken": "ZeroDivisionError: division by zero"}


# ---- the page --------------------------------------------------------------------------------------------------------


def _record(figures: Any) -> dict[str, Any]:
    made_with = {"command": "it", "seconds": 1.5, "machine": "x86_64, 2 cores", "versions": {"python": "3.11"}}
    return {"figures": figures, **made_with}


def _lines(model: str, name: str, figures: Any) -> str:
    return str(page.checks_page({model: {name: _record(figures)}}))


def test_a_page_has_a_heading_for_each_model_and_says_what_it_was_made_with() -> None:
    sweep = [{"strength": 0.0, "rude": 1.0}, {"strength": 2.0, "rude": 0.25}]
    pictures = [{"strength": 0.0, "blurred": 0.0}, {"strength": 2.0, "blurred": 0.5}]
    recorded = {
        "builtin:chat": {"sweep": _record({"unit": 3.9, "dsas": sweep, "on": sweep})},
        "builtin:emoji": {"sweep": _record({"unit": 1.5, "dsas": pictures, "on": pictures})},
    }
    told = page.checks_page(recorded)
    assert told.index("### Text") < told.index("rude 0.25") < told.index("### Pictures") < told.index("blurred 0.50")
    assert "learning chose is 3.9" in told
    assert "learning chose is 1.5" in told
    assert "| dsas, 2 | 0.250 |" in told
    assert "`python -m benchmarks.quality.checks --model builtin:emoji`: 2 s on x86_64, 2 cores; python 3.11." in told


@pytest.mark.parametrize(
    ("h", "told"),
    [
        ((0.3, 0.2, 0.1), "The nearer the set, the less"),
        ((0.1, 0.2, 0.3), "The farther the set, the less"),
        ((0.2, 0.1, 0.3), "does not put the sets in the order"),
    ],
)
def test_what_is_said_of_controls_follows_from_the_figures(h: tuple[float, ...], told: str) -> None:
    figures = {str(i): {"mahalanobis": 10.0 - i, "h_on_control": value, "rude": 0.0} for i, value in enumerate(h)}
    assert told in _lines("builtin:chat", "controls", {**figures, "none": {"refused": "no site tells"}})


def test_what_is_said_of_noise_and_size_follows_from_the_figures() -> None:
    noisy = {"0": {"blurred": 0.8}, "0.1": {"blurred": 0.5}, "0.2": {"blurred": 0.3}, "0.3": {"refused": "no site"}}
    assert "is left from 0.2 on" in _lines("builtin:emoji", "noise", noisy)
    assert "is left from 0.1 on" in _lines("builtin:emoji", "noise", {**noisy, "0.1": {"blurred": 0.1}})
    assert "Half is left at every share" in _lines(
        "builtin:emoji", "noise", {"0": {"blurred": 0.8}, "0.1": {"blurred": 0.4}}
    )
    sizes = {"8": {"rude": 0.1}, "16": {"rude": 0.4}, "32": {"rude": 0.15}, "64": {"rude": 0.05}}
    assert "From 32 on" in _lines("builtin:chat", "size", sizes)
    assert "From" not in _lines("builtin:chat", "size", {**sizes, "64": {"rude": 0.9}}).split("**size.**")[1]


def test_the_recorded_checks_make_a_page() -> None:
    recorded = json.loads((records.RESULTS / "checks.json").read_text())
    told = page.checks_page(recorded)
    for made in recorded.values():
        for name, record in made.items():
            assert f"**{name}.**" in told
            assert {"figures", "command", "seconds", "machine", "versions"} <= set(record)
    assert "| nan |" not in told


# ---- the checks ------------------------------------------------------------------------------------------------------


def _prompts(count: int) -> PromptSet:
    source, target, control = (tuple(f"{side} {i}" for i in range(count)) for side in ("source", "target", "control"))
    return PromptSet("test", source, target, control)


class _Bench:
    """Learns nothing, and remembers what it was asked to learn."""

    def __init__(self) -> None:
        self.prompts = _prompts(200)
        self.controls = {"near": self.prompts.control, "none": self.prompts.source}
        self.asked: list[PromptSet] = []
        generator = torch.Generator().manual_seed(0)
        near, far = (torch.randn(40, 6, generator=generator) + shift for shift in (0.0, 1.0))
        groups = [i // 2 for i in range(40)]
        self.sample = SimpleNamespace(source=far, control=near, groups=(groups, groups))

    def learn(self, prompts: PromptSet | None = None, **_: Any) -> Any:
        self.asked.append(prompts or self.prompts)
        if set(self.asked[-1].control) == set(self.asked[-1].source):
            raise DSASError("no site tells source from control")
        made = SimpleNamespace(unit=2.0, evidence={"sites": [{"balanced_accuracy": 0.9}, {"balanced_accuracy": 0.8}]})
        made.with_unit = lambda unit: SimpleNamespace(unit=unit)
        return made

    def measured(self, concept: Any, strength: float = 1.0, gate: str | None = None) -> dict[str, float]:
        return {"effect": concept.unit * strength * (2 if gate == "on" else 1)}

    def fires(self, concept: Any) -> dict[str, float]:
        return {"h_on_control": 0.1}

    def rows(self, prompts: PromptSet, every: bool = False) -> dict[str, Any]:
        return {"here": self.sample}


def test_a_sweep_is_in_strengths_of_the_map() -> None:
    found = checks.sweep(_Bench())
    assert found["unit"] == 2.0
    assert [line["effect"] for line in found["dsas"]] == list(checks.STRENGTHS)
    assert [line["effect"] for line in found["on"]] == [2 * strength for strength in checks.STRENGTHS]


def test_noise_swaps_as_many_prompts_as_it_says() -> None:
    bench = _Bench()
    found = checks.noise(bench)
    assert list(found) == ["0", "0.05", "0.1", "0.2", "0.3"]
    assert found["0"] == {"unit": 2.0, "balanced_accuracy": 0.9, "effect": 2.0}
    for share, prompts in zip(checks.NOISE, bench.asked, strict=True):
        wrong = [sum(not text.startswith(side) for text in getattr(prompts, side)) for side in ("source", "control")]
        assert wrong == [round(share * 48)] * 2
        assert (len(prompts.source), len(prompts.control)) == (48, 96)


def test_controls_tell_what_could_not_be_learned() -> None:
    found = checks.controls(_Bench())
    assert found["none"] == {"refused": "no site tells source from control"}
    assert set(found["near"]) == {"mahalanobis", "h_on_control", "effect"}
    # six coordinates, each one deviation apart
    assert found["near"]["mahalanobis"] == pytest.approx(6**0.5, rel=0.25)


def test_size_tells_how_many_prompts_there_were() -> None:
    bench = _Bench()
    bench.prompts = _prompts(40)
    found = checks.size(bench)
    assert [line["source"] for line in found.values()] == [8, 16, 32, 40, 40]
    assert [line["control"] for line in found.values()] == [16, 32, 40, 40, 40]


def test_separability_is_measured_before_and_after_projection() -> None:
    (line,) = checks.separability(_Bench()).values()
    assert line["width"] == 6
    for way in ("no projection", "5 components", "discriminant"):
        assert 0.7 < line[way]["balanced_accuracy"] <= 1
        assert line[way]["balanced_accuracy"] <= line[way]["auroc"] + 0.1
        assert line[way]["seconds"] > 0


def test_an_unknown_check_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["checks.py", "nois"])
    with pytest.raises(SystemExit, match="error: no check nois; there is sweep, controls"):
        checks.main()


def test_a_record_is_written_after_each_check_and_resumed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checks, "OUT", tmp_path / "checks.json")
    monkeypatch.setattr(checks, "BENCHES", {"one": _Bench})
    monkeypatch.setattr(checks, "CHECKS", {"size": lambda _: {"8": {}}, "noise": lambda _: {"0": {}}})
    monkeypatch.setattr(sys, "argv", ["checks.py", "--model", "one", "size"])
    checks.main()
    assert set(checks.recorded()["one"]) == {"size"}
    monkeypatch.setitem(checks.CHECKS, "size", lambda _: pytest.fail("was recorded already"))
    monkeypatch.setattr(sys, "argv", ["checks.py", "--resume"])
    checks.main()
    assert set(checks.recorded()["one"]) == {"size", "noise"}
    assert checks.recorded()["one"]["noise"]["command"] == "python -m benchmarks.quality.checks --model one noise"
