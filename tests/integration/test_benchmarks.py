"""Benchmarks: each starts and records its provenance; the checks, their page, and the comparison of digests."""

from __future__ import annotations

import argparse
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
from benchmarks.quality import checks, concept, digests, preserve_summary
from benchmarks.reports import checks_page
from dsas_core.errors import DSASError
from dsas_core.learning.prompts.prompt_set import PromptSet

MODULES = sorted(info.name for info in pkgutil.walk_packages(benchmarks.__path__, "benchmarks.") if not info.ispkg)
#: modules without a `main`, imported by others
HELPERS = {
    "benchmarks.builtin_models.conversations",
    "benchmarks.builtin_models.dataset",
    "benchmarks.builtin_models.language_architecture",
    "benchmarks.builtin_models.language_quality",
    "benchmarks.builtin_models.optimise",
    "benchmarks.builtin_models.picture_architecture",
    "benchmarks.builtin_models.picture_scenes",
    "benchmarks.builtin_models.trainer",
    "benchmarks.common.arms",
    "benchmarks.common.attention_replacement",
    "benchmarks.common.builtin_metrics",
    "benchmarks.common.edits",
    "benchmarks.common.processes",
    "benchmarks.common.records",
    "benchmarks.common.region_metrics",
    "benchmarks.cost.model_shapes",
    "benchmarks.quality.checks_models",
    "benchmarks.quality.preserve_summary",
    "benchmarks.real_text.arms",
    "benchmarks.real_text.behaviour",
    "benchmarks.real_text.cost_grid",
    "benchmarks.real_text.judges",
    "benchmarks.real_text.measure",
    "benchmarks.real_text.reading",
    "benchmarks.real_text.ruler",
    "benchmarks.real_text.summary",
    "benchmarks.real_text.texts",
    "benchmarks.reports.checks_page",
}


# ---- every benchmark -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODULES)
def test_a_benchmark_starts(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In this process, where torch is loaded already; no model is loaded."""
    module = importlib.import_module(name)
    assert hasattr(module, "main") == (name not in HELPERS)
    if name in HELPERS:
        return
    for loader in ("load_pipeline", "load"):
        if hasattr(module, loader):
            monkeypatch.setattr(module, loader, lambda *_, **__: pytest.fail("a model was loaded for --help"))
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert not stopped.value.code
    assert "usage:" in capsys.readouterr().out


def test_a_benchmark_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "benchmarks.quality.concept", "--help"]
    completed = subprocess.run(command, cwd=records.ROOT, capture_output=True, text=True)
    assert (completed.returncode, completed.stderr) == (0, "")
    assert "benchmarks/results/concept.json" in completed.stdout


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
    records.write_record(path, {"effect": float("nan"), **records.provenance("gradio", began=0.0)})
    record = json.loads(path.read_text())
    assert set(record) == {"effect", "command", "seconds", "machine", "versions"}
    assert record["effect"] is None
    assert record["command"].startswith("python -m ")
    assert record["command"].endswith(" --seeds 2")
    assert {"python", "torch", "diffusers"} <= set(record["versions"])
    assert records.record_path("/somewhere/quality/concept.py") == records.RESULTS / "concept.json"
    assert records.format_command("--model", "a b", module="m") == "python -m m --model 'a b'"


def test_the_command_of_a_concept_record_names_the_seeds_that_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(concept, "summarise", lambda raw: {})
    out = tmp_path / "concept.json"
    args = argparse.Namespace(
        seeds=4, model="builtin:emoji", size=17, grid=8, learning_steps=8, sites=["default"], out=out
    )
    concept._write(args, {"default": [{}, {}]}, {"default": [1.0, 1.0]}, 2, 0.0)
    record = json.loads(out.read_text())
    assert record["seeds"] == 2
    assert record["command"].endswith(
        " --seeds 2 --model builtin:emoji --size 17 --grid 8 --learning-steps 8 --sites default"
    )


# ---- what preserve keeps ---------------------------------------------------------------------------------------------


def _arm(name: str, shown: list[float], change: list[float], **more: list[float]) -> dict[str, list[Any]]:
    figures = {"shown": shown, "change": change, "squared error": change, "intact": [1, 0, 1], "regions": [2, 2, 3]}
    figures |= {"gradient": [0, 0, 0], "gradient before": [0, 0, 0], "passes": [2.0], "seconds": [2.1], **more}
    points = {f"{figure}@{s}": [s * value for value in figures[figure]] for s in (0.5, 1.0) for figure in ("change",)}
    points |= {"shown@0.5": [0.0] * len(shown), "shown@1.0": shown}
    return {f"{name}|{figure}": values for figure, values in {**figures, **points}.items()}


def test_figures_of_preserve_are_relative_to_asking_in_words() -> None:
    masks = {"iou": [0.5, 0.7, 0.9], "iou grown": [0, 0, 0], "covered": [1, 1, 0.05], "area": [0.1, 0.1, 0.1]}
    rest = {"control change": [0, 0, 3, 0], "control passes": [1.5], "unnamed shown": [1, 0, 0]}
    rest |= {"unnamed change": [9, 0, 0.5], "unnamed covered": [1, 0, 0]}
    raw = {
        **_arm("in words", [1, 1, 0], [2, 2, 2]),
        **_arm("kept", [1, 0, 0], [0, 0, 0.6], **masks, **rest),
        "labels": [(0, "a"), (0, "b"), (1, "c")],
        "control labels": [(0, "a"), (0, "b"), (1, "c"), (1, "d")],
        "unnamed labels": [(0, "a"), (0, "b"), (1, "c")],
        "base intact": [1, 1, 0],
        "base regions": [2, 2, 2],
        "unnamed shows": [True, True, False],
        "units": [],
    }
    figures = preserve_summary.summarise(raw)
    kept = figures["arms"]["kept"]
    values = {name: figure["value"] for name, figure in kept.items() if "value" in figure}
    assert values["effect"] == 0.5
    assert values["change_outside"] == pytest.approx(0.2)
    assert values["neighbours_kept"] == 0.5
    assert values["more_things"] == pytest.approx(1 / 3, abs=1e-4)
    assert values["seam"] != values["seam"], "nothing has an edge here"
    assert kept["mask"]["missed"]["value"] == pytest.approx(1 / 3, abs=1e-4)
    assert (kept["controls"]["identical"]["value"], kept["controls"]["mean_change_of_the_rest"]) == (0.75, 3.0)
    assert kept["unnamed"]["found"]["value"] == 0.5
    assert kept["unnamed"]["effect_of_the_named"]["value"] == pytest.approx(0.5 / (1 / 3))
    assert kept["unnamed"]["others"]["mean_change"]["value"] == 0.5
    # it reaches half of the effect: compared there, where rewriting changes half of its 2
    equal = kept["at_equal_effect_with_words"]
    assert (equal["lowered"], equal["gain"], equal["other_cost"]) == (True, 0.5, 1.0)
    assert equal["cost"] == pytest.approx(0.2)
    assert len(preserve_summary.format_lines(figures)) == 2


# ---- digests ---------------------------------------------------------------------------------------------------------


def test_digests_that_differ_are_a_line_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the concepts that ship alone; the rest takes minutes."""
    monkeypatch.setattr(digests, "add_pictures", lambda results, *_: results.add("a picture", lambda: "same"))
    monkeypatch.setattr(digests.dsas, "load_pipeline", lambda _: SimpleNamespace(set_progress_bar_config=lambda **_: 0))
    monkeypatch.setattr(digests.llm, "load", lambda _: (None, None))
    file = tmp_path / "digests.json"
    monkeypatch.setattr(sys, "argv", ["digests", "--parts", "pictures", "--out", str(file)])
    assert digests.main() == 0
    recorded = json.loads(file.read_text())
    assert recorded["a picture"] == "same"
    assert len(recorded) == 1 + 3 * len(digests.dsas_core.shipped())
    monkeypatch.setattr(sys, "argv", ["digests", "--parts", "pictures", "--compare", str(file)])
    assert digests.main() == 0
    assert "all alike" in capsys.readouterr().out
    file.write_text(json.dumps({**recorded, "a picture": "other", "texts": "gone"}))
    assert digests.main() == 1
    assert capsys.readouterr().out.splitlines() == [
        "a picture: was other, is same",
        "texts: was gone, is nothing of that name",
    ]


def test_an_error_is_a_digest_too() -> None:
    results = digests.Digests()
    results.add("broken", lambda: f"{1 / 0}")
    assert results.by_case == {"broken": "ZeroDivisionError: division by zero"}


# ---- the page --------------------------------------------------------------------------------------------------------


def _record(figures: Any) -> dict[str, Any]:
    provenance = {"command": "it", "seconds": 1.5, "machine": "x86_64, 2 cores", "versions": {"python": "3.11"}}
    return {"figures": figures, **provenance}


def _lines(model: str, name: str, figures: Any) -> str:
    return str(checks_page.render_checks({model: {name: _record(figures)}}))


def test_a_page_has_a_heading_for_each_model_and_says_what_it_was_made_with() -> None:
    sweep = [{"strength": 0.0, "rude": 1.0}, {"strength": 2.0, "rude": 0.25}]
    pictures = [{"strength": 0.0, "blurred": 0.0}, {"strength": 2.0, "blurred": 0.5}]
    recorded = {
        "builtin:chat": {"sweep": _record({"unit": 3.9, "dsas": sweep, "on": sweep})},
        "builtin:emoji": {"sweep": _record({"unit": 1.5, "dsas": pictures, "on": pictures})},
    }
    text = checks_page.render_checks(recorded)
    assert text.index("### Text") < text.index("rude 0.25") < text.index("### Pictures") < text.index("blurred 0.50")
    assert "learning chose is 3.9" in text
    assert "learning chose is 1.5" in text
    assert "| dsas, 2 | 0.250 |" in text
    assert "`python -m benchmarks.quality.checks --model builtin:emoji`: 2 s on x86_64, 2 cores; python 3.11." in text


@pytest.mark.parametrize(
    ("h", "conclusion"),
    [
        ((0.3, 0.2, 0.1), "The nearer the set, the less"),
        ((0.1, 0.2, 0.3), "The farther the set, the less"),
        ((0.2, 0.1, 0.3), "does not put the sets in the order"),
    ],
)
def test_what_is_said_of_controls_follows_from_the_figures(h: tuple[float, ...], conclusion: str) -> None:
    figures = {str(i): {"mahalanobis": 10.0 - i, "h_on_control": value, "rude": 0.0} for i, value in enumerate(h)}
    assert conclusion in _lines("builtin:chat", "controls", {**figures, "none": {"refused": "no site tells"}})


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
    text = checks_page.render_checks(recorded)
    for by_name in recorded.values():
        for name, record in by_name.items():
            assert f"**{name}.**" in text
            assert {"figures", "command", "seconds", "machine", "versions"} <= set(record)
    assert "| nan |" not in text


# ---- the checks ------------------------------------------------------------------------------------------------------


def _prompts(count: int) -> PromptSet:
    source, target, control = (tuple(f"{side} {i}" for i in range(count)) for side in ("source", "target", "control"))
    return PromptSet("test", source, target, control)


class _Model:
    """Learns nothing, and remembers what it was asked to learn."""

    def __init__(self) -> None:
        self.prompts = _prompts(200)
        self.controls = {"near": self.prompts.control, "none": self.prompts.source}
        self.learned_from: list[PromptSet] = []
        generator = torch.Generator().manual_seed(0)
        near, far = (torch.randn(40, 6, generator=generator) + shift for shift in (0.0, 1.0))
        groups = [i // 2 for i in range(40)]
        self.sample = SimpleNamespace(source=far, control=near, groups=(groups, groups))

    def learn(self, prompts: PromptSet | None = None, **_: Any) -> Any:
        self.learned_from.append(prompts or self.prompts)
        if set(self.learned_from[-1].control) == set(self.learned_from[-1].source):
            raise DSASError("no site tells source from control")
        sites = [{"balanced_accuracy": 0.9}, {"balanced_accuracy": 0.8}]
        concept = SimpleNamespace(unit=2.0, evidence={"sites": sites})
        concept.with_unit = lambda unit: SimpleNamespace(unit=unit)
        return concept

    def measure(self, concept: Any, strength: float = 1.0, gate: str | None = None) -> dict[str, float]:
        return {"effect": concept.unit * strength * (2 if gate == "on" else 1)}

    def gate_scores(self, concept: Any) -> dict[str, float]:
        return {"h_on_control": 0.1}

    def mean_activations(self, prompts: PromptSet, all_sites: bool = False) -> dict[str, Any]:
        return {"here": self.sample}


def test_a_sweep_is_in_strengths_of_the_map() -> None:
    figures = checks.sweep(_Model())
    assert figures["unit"] == 2.0
    assert [line["effect"] for line in figures["dsas"]] == list(checks.STRENGTHS)
    assert [line["effect"] for line in figures["on"]] == [2 * strength for strength in checks.STRENGTHS]


def test_noise_swaps_as_many_prompts_as_it_says() -> None:
    model = _Model()
    figures = checks.noise(model)
    assert list(figures) == ["0", "0.05", "0.1", "0.2", "0.3"]
    assert figures["0"] == {"unit": 2.0, "balanced_accuracy": 0.9, "effect": 2.0}
    for share, prompts in zip(checks.NOISE, model.learned_from, strict=True):
        wrong = [sum(not text.startswith(side) for text in getattr(prompts, side)) for side in ("source", "control")]
        assert wrong == [round(share * 48)] * 2
        assert (len(prompts.source), len(prompts.control)) == (48, 96)


def test_controls_tell_what_could_not_be_learned() -> None:
    figures = checks.controls(_Model())
    assert figures["none"] == {"refused": "no site tells source from control"}
    assert set(figures["near"]) == {"mahalanobis", "h_on_control", "effect"}
    # six coordinates, each one deviation apart
    assert figures["near"]["mahalanobis"] == pytest.approx(6**0.5, rel=0.25)


def test_size_tells_how_many_prompts_there_were() -> None:
    model = _Model()
    model.prompts = _prompts(40)
    figures = checks.size(model)
    assert [line["source"] for line in figures.values()] == [8, 16, 32, 40, 40]
    assert [line["control"] for line in figures.values()] == [16, 32, 40, 40, 40]


def test_separability_is_measured_before_and_after_projection() -> None:
    (line,) = checks.separability(_Model()).values()
    assert line["width"] == 6
    for projection in ("no projection", "5 components", "discriminant"):
        assert 0.7 < line[projection]["balanced_accuracy"] <= 1
        assert line[projection]["balanced_accuracy"] <= line[projection]["auroc"] + 0.1
        assert line[projection]["seconds"] > 0


def test_an_unknown_check_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["checks.py", "nois"])
    with pytest.raises(SystemExit, match="error: no check nois; there is sweep, controls"):
        checks.main()


def test_a_record_is_written_after_each_check_and_resumed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checks, "OUT", tmp_path / "checks.json")
    monkeypatch.setattr(checks, "MODELS", {"one": _Model})
    monkeypatch.setattr(checks, "CHECKS", {"size": lambda _: {"8": {}}, "noise": lambda _: {"0": {}}})
    monkeypatch.setattr(sys, "argv", ["checks.py", "--model", "one", "size"])
    checks.main()
    assert set(checks.load_records()["one"]) == {"size"}
    monkeypatch.setitem(checks.CHECKS, "size", lambda _: pytest.fail("was recorded already"))
    monkeypatch.setattr(sys, "argv", ["checks.py", "--resume"])
    checks.main()
    assert set(checks.load_records()["one"]) == {"size", "noise"}
    assert checks.load_records()["one"]["noise"]["command"] == "python -m benchmarks.quality.checks --model one noise"
