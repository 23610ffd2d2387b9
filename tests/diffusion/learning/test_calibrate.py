"""`dsas calibrate`, and what other commands make of its ends, on a tiny random pipeline in a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dsas_core import Concept
from dsas_core.learning.calibration.slider_range import MAX_TRIALS
from dsas_diffusion import calibrate, load_pipeline
from dsas_diffusion.learning.illustrate import ENDS
from tests.fixtures.checks import assert_one_line, document_of
from tests.fixtures.visitors import Bare

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def pipe(model: str) -> Any:
    return load_pipeline(model)


@pytest.fixture(scope="module")
def found(pipe: Any, concept: str) -> Concept:
    bare = Bare.of(pipe.unet)
    made = calibrate(pipe, Concept.from_pretrained(concept).with_unit(50.0))
    assert Bare.of(pipe.unet) == bare
    assert "encode_prompt" not in vars(pipe)
    return made


def with_ends(concept: str, folder: Path, ends: tuple[float, float] | None) -> Path:
    return replace(Concept.from_pretrained(concept), range=ends).save_pretrained(folder)


def test_the_unit_is_that_of_learning_and_only_the_ends_are_new(found: Concept, concept: str) -> None:
    learned = Concept.from_pretrained(concept)
    assert found.unit == learned.unit, "the quarter that was held back is the same"
    assert found.evidence["unit"] == learned.evidence["unit"]
    assert found.digest == learned.digest
    assert learned.range is None
    trials = found.evidence["range"]["trials"]
    assert len(trials) <= MAX_TRIALS
    assert {trial["strength"] < 0 for trial in trials} == {True, False}
    useful = {trial["strength"]: trial["useful"] for trial in trials}
    assert all(useful[end] for end in found.range or () if end)


def test_the_command_writes_what_python_finds(
    dsas: Run, model: str, concept: str, found: Concept, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, text, progress = dsas("calibrate", "--model", model, "--concept", concept, "--out", out)
    assert code == 0
    for expected in ("strength", "reach", f"unit {found.unit:g}", "range", f"saved banana in {out}"):
        assert expected in text
    assert "trying strengths" in progress
    made = Concept.from_pretrained(out)
    assert made.samples is not None, "as it had some, they are drawn anew"
    low, high = found.range or ENDS
    assert (made.samples.strengths[0], made.samples.strengths[-1]) == (low, high)
    assert (made.unit, made.range, made.evidence) == (found.unit, found.range, found.evidence)
    assert (out / "prompts.yaml").read_text() == (Path(concept) / "prompts.yaml").read_text()
    shown = document_of(dsas("show", out, "--json"))
    assert shown["range"] == (None if found.range is None else list(found.range))


def test_in_place_keeps_what_lies_beside(
    dsas: Run, model: str, concept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "c"
    shutil.copytree(concept, folder)
    (folder / "samples").mkdir()
    (folder / "samples" / "strip.png").write_bytes(b"picture")
    before = {path.name for path in folder.iterdir()}

    def stopped(*_: object, **__: object) -> Concept:
        raise KeyboardInterrupt

    monkeypatch.setattr("dsas_diffusion.cli.commands.calibrate.calibrate", stopped)
    given = ("calibrate", "--model", model, "--concept", folder, "--in-place", "--quiet")
    assert dsas(*given)[0] == 130
    assert Concept.from_pretrained(folder) == Concept.from_pretrained(concept)
    monkeypatch.setattr(
        "dsas_diffusion.cli.commands.calibrate.calibrate", lambda _, it, *__, **___: replace(it, range=(-1.0, 2.0))
    )
    assert dsas(*given, "--json")[0] == 0
    assert Concept.from_pretrained(folder).range == (-1.0, 2.0)
    assert {path.name for path in folder.iterdir()} == before
    assert (folder / "samples" / "strip.png").read_bytes() == b"picture"
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("--out out", 1, "does not tell from which prompts it was learned: give a prompt file (--prompts)"),
        ("--out out --prompts nowhere.yaml", 1, "no prompt file nowhere.yaml"),
        ("--out full", 1, "full is there and not empty: choose another folder, or pass --overwrite"),
        ("--out foreign --overwrite", 1, "foreign holds notes.txt, which this command did not write"),
        (
            "--out out --model builtin:chat --prompts given.yaml",
            1,
            "is of a model that draws, and this is a language model",
        ),
        ("--out out --model builtin:emoji --prompts given.yaml", 1, "was learned on another unet"),
        ("--out out --model builtin:chat --prompts given.yaml --steps 3", 2, "takes neither --steps nor --guidance"),
        ("--out out --in-place", 2, "not allowed with"),
        ("", 2, "one of the arguments --out/-o --in-place is required"),
        ("--in-place --overwrite", 2, "--overwrite goes with --out"),
        ("--out out --count 5", 2, "--count goes with --prompts"),
        ("--out out --drift -1", 2, "expected a number from 0 to 1e+06"),
    ],
)
def test_bad_requests_end_before_the_long_work(
    dsas: Run, concept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    replace(Concept.from_pretrained(concept), provenance={}).save_pretrained("bare")
    shutil.copytree("bare", "full")
    Path("foreign").mkdir()
    Path("foreign/notes.txt").write_text("mine")
    shutil.copy(Path(concept) / "prompts.yaml", "given.yaml")
    there = sorted(Path().rglob("*"))
    result = dsas("calibrate", "--concept", "bare", *arguments.split(), "--quiet")
    assert result[0] == code
    assert_one_line(result[2], message)
    assert sorted(Path().rglob("*")) == there


def test_sweep_goes_from_end_to_end(dsas: Run, model: str, concept: str, tmp_path: Path) -> None:
    given = ("sweep", "--model", model, "-p", "a banana", "--steps", 1, "--count", 2, "--json")
    for ends, more, strengths in (
        ((-0.5, 1.5), (), [-0.5, 0.0, 1.5]),
        ((0.0, 2.5), (), [0.0, 2.5]),
        ((-0.5, 1.5), ("--to", 3), [-0.5, 0.0, 3.0]),
        (None, (), [-1.0, 0.0, 2.0]),
    ):
        folder = with_ends(concept, tmp_path / f"{ends}{more}", ends)
        code, out, err = dsas(*given, "-c", folder, "--out", f"{folder}.png", *more)
        assert (code, err.count("is beyond its range"), err.count("\n")) == (0, bool(more), bool(more))
        assert json.loads(out)["strengths"] == strengths


def test_beyond_the_range_is_told_of_in_one_line_and_drawn(dsas: Run, model: str, concept: str, tmp_path: Path) -> None:
    folder = with_ends(concept, tmp_path / "c", (-0.5, 1.5))
    given = ("generate", "--model", model, "-p", "a banana", "--steps", 1, "--quiet")
    for strength, warned in (("1.5", 0), ("-0.5", 0), ("1.6", 1), ("-2", 1)):
        code, _, err = dsas(*given, "-c", f"{folder}={strength}", "--out", tmp_path / f"{strength}.png")
        assert code == 0
        assert err.count("is beyond its range, -0.5 to 1.5") == err.count("\n") == warned
    code, text, _ = dsas("show", folder)
    assert "range -0.5 to 1.5" in text
    assert "no range yet: `dsas calibrate`" in dsas("show", concept)[1]


def test_within_target_is_reached_from_the_command_line(dsas: Run, model: str, concept: str, tmp_path: Path) -> None:
    prompts = ("--prompts", Path(concept) / "prompts.yaml")
    given = ("--steps", 2, "--count", 12, "--cloud", "--sites", "text", "--out", tmp_path / "c", "--quiet")
    assert dsas("learn", "--model", model, *prompts, *given)[0] == 0
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    assert all("clouds" in item for item in config["interventions"] if "text" in item["site"]["path"])
    asked = ("generate", "--model", model, "-p", "a banana", "--steps", 1, "--within", "target", "--quiet")
    made = document_of(dsas(*asked, "-c", tmp_path / "c", "--out", tmp_path / "a.png", "--json"))
    assert made["within"] == "target"
    code, _, err = dsas(*asked, "-c", concept, "--out", tmp_path / "b.png")
    assert code == 1
    assert_one_line(err, "learn it again with --cloud")
    assert not (tmp_path / "b.png").exists()
