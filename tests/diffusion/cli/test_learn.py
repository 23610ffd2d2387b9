"""`dsas learn` on a tiny random pipeline: what it writes and says, and what stays when it stops."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dsas_core import Concept
from dsas_core.learning.prompts.draft import draft
from dsas_core.learning.prompts.prompt_file import load_prompts
from dsas_diffusion import Lesson
from dsas_diffusion.cli import parser
from dsas_diffusion.cli.commands import learn
from tests.diffusion.conftest import PHRASES
from tests.fixtures.checks import assert_one_line, document_of


def test_a_learned_concept_holds_its_drafted_prompts(concept: str) -> None:
    written = {path.name for path in Path(concept).iterdir()}
    assert written == {"config.json", "concept.safetensors", "README.md", "strip.webp", "prompts.yaml"}
    drafted = load_prompts(Path(concept) / "prompts.yaml")
    provenance = Concept.from_pretrained(concept).provenance
    assert provenance["prompts"] == drafted.to_dict()
    assert provenance["prompts_sha256"] == hashlib.sha256((Path(concept) / "prompts.yaml").read_bytes()).hexdigest()
    assert provenance["command"].startswith("dsas learn --model ")


def test_the_card_shows_a_strip(concept: str) -> None:
    samples = Concept.from_pretrained(concept).samples
    assert samples is not None
    assert samples.strengths == (-1.0, 0.0, 1.0, 2.0)
    assert "banana" in samples.prompts[0]
    assert "banana" not in samples.prompts[1]
    strip = Image.open(Path(concept) / "strip.webp")
    assert strip.format == "WEBP"
    assert strip.width > 4 * 160
    assert "(strip.webp)" in (Path(concept) / "README.md").read_text()


def test_a_concept_without_samples_is_saved(
    dsas, concept: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = replace(Concept.from_pretrained(concept), provenance={})
    monkeypatch.setattr(Lesson, "learn", lambda *_, **__: learned)
    code, _, err = dsas("learn", "--model", model, *PHRASES, "--out", tmp_path / "c", "--quiet")
    assert code == 0
    assert_one_line(err, "warning: its card has no samples: concept", "does not tell from which prompts")
    assert Concept.from_pretrained(tmp_path / "c").samples is None
    assert not (tmp_path / "c" / "strip.webp").exists()


def test_learn_prints_the_draft_the_evidence_and_progress(dsas, model: str, tmp_path: Path) -> None:
    out = tmp_path / "c"
    arguments = ("learn", "--model", model, *PHRASES, "--out", out, "--steps", 2, "--count", 12, "--sites", "text")
    code, text, progress = dsas(*arguments)
    assert code == 0
    for expected in (
        "- a {other} {beside} a banana {place}",
        "balanced accuracy",
        "unit ",
        "drift",
        "learned in ",
        f"in {out}",
    ):
        assert expected in text
    for expected in ("loading", "capturing", "fitting", "choosing the unit"):
        assert expected in progress
    steered = [item.site.root for item in Concept.from_pretrained(out).interventions if not item.read_only]
    assert set(steered) == {"text_encoder"}


def test_learn_from_a_file_as_json_over_an_earlier_concept(dsas, model: str, concept: str, tmp_path: Path) -> None:
    out = Concept.from_pretrained(concept).save_pretrained(tmp_path / "c")
    file = Path(concept) / "prompts.yaml"
    arguments = ("--prompts", file, "--out", out, "--name", "other", "--steps", 2, "--count", 12, "--gate", "on")
    arguments += ("--option", "normalise=mean norm", "--no-strip")
    learned = document_of(dsas("learn", "--model", model, *arguments, "--overwrite", "--json"))
    assert Concept.from_pretrained(out).provenance["recipe"]["options"] == {"normalise": "mean norm"}
    assert (learned["name"], learned["gate"], learned["drafted"]) == ("other", "on", False)
    assert {path.name for path in out.iterdir()} == {"config.json", "concept.safetensors", "README.md"}


def test_a_method_that_trains(dsas, model: str, concept: str, tmp_path: Path) -> None:
    """Its settings, and a folder from which it goes on."""
    arguments = ("learn", "--model", model, "--prompts", Path(concept) / "prompts.yaml", "--steps", 2, "--count", 12)
    training = ("--recipe", "training.steps=4", "--recipe", "training.checks=2", "--checkpoint", tmp_path / "training")
    more = ("--sites", "text", "--no-strip", "--out", tmp_path / "c")
    code, _, progress = dsas(*arguments, "--method", "lineas", *training, "--option", "l1=0.01", *more)
    assert code == 0
    assert "training (" in progress
    learned = Concept.from_pretrained(tmp_path / "c")
    assert learned.provenance["recipe"]["training"] == {"steps": 4, "checks": 2}
    assert learned.evidence["training"]["steps"] == 4
    assert (tmp_path / "training" / "training.safetensors").is_file()
    code, _, err = dsas(*arguments, "--method", "e2e-dsas", *training, *more, "--overwrite", "--quiet")
    assert code == 1
    assert_one_line(err, "is of another training (recipe): choose another folder, or delete it")


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        (("--checkpoint", "x"), 1, "checkpoint keeps a training, and method caa with gate dsas is not trained: leave"),
        (("--recipe", "training.steps=4"), 1, "caa with the gate 'dsas' is not trained: choose mode joint, or leave"),
        (("--method", "lineas", "--recipe", "training.pace=4"), 1, "expected settings by name, of steps, optimiser"),
        (("--method", "lineas", "--recipe", "mode=clean"), 1, "lineas with the gate 'dsas' is trained: leave mode out"),
        (("--method", "e2e-dsas", "--option", "activation=tanh"), 1, "expected sigmoid, relu or clipped, found 'tanh'"),
    ],
)
def test_training_that_cannot_be_is_told_before_the_model_is_loaded(
    dsas, given: tuple[str, ...], code: int, message: str, tmp_path: Path
) -> None:
    found, _, err = dsas("learn", "--model", "no/model", *PHRASES, "--out", tmp_path / "c", *given)
    assert found == code
    assert message in err


def test_a_concept_that_keeps_hashes_asks_for_its_file(
    dsas, model: str, concept: str, tmp_path: Path, one_unit: None
) -> None:
    out, file = tmp_path / "c", Path(concept) / "prompts.yaml"
    arguments = ("--prompts", file, "--out", out, "--steps", 2, "--count", 12, "--keep-prompts", "hash", "--quiet")
    code, _, err = dsas("learn", "--model", model, *arguments)
    assert (code, err) == (0, "")
    assert {path.name for path in out.iterdir()} == {"config.json", "concept.safetensors", "README.md"}, "no strip"
    assert not any("banana on" in path.read_text(errors="replace") for path in out.iterdir())
    assert "prompt_hashes: banana, hashes only: 12 source, 12 target, 24 control" in dsas("show", out)[1]
    for command in (("calibrate", "--concept", out, "--in-place"), ("eval", "--concept", out, "--out", tmp_path / "r")):
        code, _, err = dsas(*command, "--model", model, "--quiet")
        assert code == 1
        assert_one_line(err, "concept 'banana' keeps hashes of its prompts only: give the prompt file", "(--prompts)")


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (RuntimeError("out of\nmemory"), 1, "RuntimeError: out of memory (set DSAS_DEBUG=1"),
    ],
)
def test_nothing_is_written_when_learning_stops(
    dsas, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException, code: int, message: str
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(Lesson, "learn", stopped)
    result = dsas("learn", "--model", model, *PHRASES, "--out", tmp_path / "c", "--quiet")
    assert result[0] == code
    assert_one_line(result[2], message)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_earlier_concept(
    dsas, concept: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned, write = Concept.from_pretrained(concept), Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        write(path, content[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    learned.save_pretrained(tmp_path / "c")
    before = {path.name: path.read_bytes() for path in (tmp_path / "c").iterdir()}
    monkeypatch.setattr(Lesson, "learn", lambda *_, **__: learned)
    monkeypatch.setattr(Path, "write_bytes", full)
    code, _, err = dsas("learn", "--model", model, *PHRASES, "--out", tmp_path / "c", "--overwrite", "--quiet")
    assert code == 1
    assert_one_line(err, "No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "c").iterdir()} == before


def run_learn(
    dsas: Any, monkeypatch: pytest.MonkeyPatch, model: str, learned: Concept, *more: Any, meanwhile: Any
) -> Any:
    """`dsas learn` of a concept that is learned at once; something else happens meanwhile."""

    def learn(*_: object, **__: object) -> Concept:
        meanwhile()
        return learned

    monkeypatch.setattr(Lesson, "learn", learn)
    return dsas("learn", "--model", model, *PHRASES, "--no-strip", "--quiet", *more)


@pytest.mark.parametrize("name", ["notes.txt", "config.json"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_appears_in_the_folder_while_it_learns_stays(
    dsas: Any, concept: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool, name: str
) -> None:
    learned, out = Concept.from_pretrained(concept), tmp_path / "c"

    def meanwhile() -> None:
        out.mkdir()
        (out / name).write_text("mine")

    more = ["--overwrite"] if overwrite else []
    code, text, err = run_learn(dsas, monkeypatch, model, learned, "--out", out, *more, meanwhile=meanwhile)
    assert code == 0
    assert_one_line(err, f"{out} was taken meanwhile: the concept is saved in {out}-2")
    assert f"saved banana in {out}-2" in text
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [(name, "mine")]
    assert Concept.from_pretrained(tmp_path / "c-2").digest == learned.digest


def test_a_prompt_file_that_was_edited_is_kept(
    dsas: Any, concept: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned, out = Concept.from_pretrained(concept), tmp_path / "c"
    assert run_learn(dsas, monkeypatch, model, learned, "--out", out, meanwhile=int)[0] == 0
    (out / "prompts.yaml").write_text("edited")
    code, _, err = run_learn(dsas, monkeypatch, model, learned, "--out", out, "--overwrite", meanwhile=int)
    assert code == 0
    assert_one_line(err, "prompts.yaml was not as an earlier run wrote it: it is kept as prompts.yaml.old")
    assert (out / "prompts.yaml.old").read_text() == "edited"
    assert run_learn(dsas, monkeypatch, model, learned, "--out", out, "--overwrite", meanwhile=int)[0] == 0


def test_the_folder_of_another_model_is_refused_before_the_work(
    dsas: Any, concept: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    learned = Concept.from_pretrained(concept)
    given = ("--out", tmp_path, "--overwrite")
    code, _, err = run_learn(dsas, monkeypatch, model, learned, *given, meanwhile=lambda: pytest.fail("it learned"))
    assert code == 1
    assert_one_line(err, "holds something else than a concept")


def test_an_interruption_tells_what_is_there(
    dsas: Any, concept: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned, real = Concept.from_pretrained(concept), os.replace

    def interrupt(source: Any, target: Any) -> None:
        real(source, target)
        if Path(target).name == "config.json":
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(os, "replace", interrupt)
    code, _, err = run_learn(dsas, monkeypatch, model, learned, "--out", tmp_path / "c", meanwhile=int)
    assert code == 130
    assert_one_line(err, "interrupted; ", "c/README.md and 4 more had been written, each of them whole")
    assert Concept.from_pretrained(tmp_path / "c").digest == learned.digest


def test_hints_on_prompts_are_printed_before_the_work(dsas, model: str, tmp_path: Path, one_unit: None) -> None:
    content = {**draft("banana", "blurred banana"), "control": ["a {other} {place}"]}
    (tmp_path / "prompts.yaml").write_text(json.dumps(content))
    arguments = ("learn", "--model", model, "--prompts", tmp_path / "prompts.yaml", "--out", tmp_path / "c")
    small = ("--steps", 2, "--count", 8, "--sites", "text", "--gate", "on", "--no-strip", "--quiet")
    code, out, _ = dsas(*arguments, *small)
    assert code == 0
    assert out.startswith("hint: No hard negatives: no control shows “blurred” on something else.")


@pytest.mark.parametrize(("folder", "name"), [("grey-cat", "grey-cat"), ("höhle", None), ("two words", None)])
def test_a_drafted_concept_is_called_as_its_folder_where_that_is_a_name(
    folder: str, name: str | None, tmp_path: Path
) -> None:
    given = parser().parse_args(["learn", "--from", "cat", "--to", "grey cat", "--out", str(tmp_path / folder)])
    assert learn._prompts(given)[0].name == (name or "cat-to-grey-cat")
