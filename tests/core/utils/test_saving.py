"""Files are written whole or not at all, and files of the user's stay as they are."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dsas_core import Concept, DSASError, Site
from dsas_core.concept.concept import CARD, CONFIG, TENSORS
from dsas_core.concept.samples import STRIP, Samples
from dsas_core.evaluation import Cell, RunStore
from dsas_core.learning.capture_store import CaptureStore
from dsas_core.utils.saving.files import open_to_append, write_files
from dsas_core.utils.saving.folders import SAVE, names_in
from dsas_core.utils.saving.names import why_no_name
from dsas_core.utils.saving.signature import UNSIGNED, is_signed, sign
from tests.fixtures.concepts import random_concept, small_webp


def concept(name: str = "new", seed: int = 0) -> Concept:
    return random_concept({Site("unet.mid"): 4}, seed=seed, name=name)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- what is not ours stays -----------------------------------------------------------------------------------------

FOREIGN: dict[str, str] = {
    "a transformers model": json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}),
    "no JSON": "old",
    "a list": "[]",
    "nothing": "",
    "another format": json.dumps({"format": "pt", "name": "x"}),
    "settings without interventions": json.dumps({"format": 2, "name": "x"}),
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_a_folder_with_somebody_elses_config_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text(content)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    before = contents(tmp_path)
    with pytest.raises(DSASError, match="holds something else than a concept"):
        concept().save_pretrained(tmp_path, overwrite=True)
    assert contents(tmp_path) == before


def test_what_lies_beside_a_concept_stays(tmp_path: Path) -> None:
    folder = concept("old").save_pretrained(tmp_path / "it")
    (folder / "notes.txt").write_text("mine")
    (folder / "pictures").mkdir()
    (folder / "pictures" / "a.png").write_bytes(b"mine too")
    concept().save_pretrained(folder, overwrite=True)
    assert Concept.from_pretrained(folder) == concept()
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "pictures" / "a.png").read_bytes() == b"mine too"
    assert names_in(folder) == sorted([CONFIG, TENSORS, CARD, "notes.txt", "pictures"])


@pytest.mark.parametrize("name", [CONFIG, TENSORS, CARD, STRIP])
def test_what_was_changed_since_is_kept_with_a_warning(name: str, tmp_path: Path) -> None:
    with_strip = replace(concept("old"), samples=Samples(("a", "b"), (0.0, 1.0), strip=small_webp()))
    folder = with_strip.save_pretrained(tmp_path / "it")
    changed = (folder / name).read_bytes() + b" "
    (folder / name).write_bytes(changed)
    with pytest.warns(UserWarning, match=rf"{name} was not as an earlier run wrote it: it is kept as {name}\.old"):
        concept().save_pretrained(folder, overwrite=True)
    assert (folder / f"{name}.old").read_bytes() == changed
    assert Concept.from_pretrained(folder) == concept()
    (folder / CARD).write_text("another card of mine")
    with pytest.warns(UserWarning, match="it is kept as"):
        concept().save_pretrained(folder, overwrite=True)
    assert (folder / f"{name}.old").read_bytes() == changed, "one that was kept stays too"


@pytest.mark.filterwarnings("error")
def test_a_concept_of_an_earlier_version_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "it"
    folder.mkdir()
    for path in (Path(__file__).parents[3] / "dsas_core/concepts/banana-blur").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    concept().save_pretrained(folder, overwrite=True)
    assert names_in(folder) == sorted([CONFIG, TENSORS, CARD])
    assert Concept.from_pretrained(folder) == concept()


def test_a_link_to_a_folder_is_followed_and_one_in_it_refused(tmp_path: Path) -> None:
    real = concept("old").save_pretrained(tmp_path / "real")
    (tmp_path / "link").symlink_to(real)
    concept().save_pretrained(tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert Concept.from_pretrained(real) == concept()
    (tmp_path / "nowhere").symlink_to(tmp_path / "later")
    assert Concept.from_pretrained(concept().save_pretrained(tmp_path / "nowhere")) == concept()
    assert (tmp_path / "later").is_dir()
    os.rename(real / CARD, tmp_path / "card")
    (real / CARD).symlink_to(tmp_path / "card")
    before = contents(tmp_path)
    with pytest.raises(DSASError, match=r"README\.md is a link to"):
        concept("other").save_pretrained(real, overwrite=True)
    assert contents(tmp_path) == before


def test_a_linked_file_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    os.link(tmp_path / "real", tmp_path / "hard")
    write_files({tmp_path / "link": b"new"})
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    assert (tmp_path / "hard").read_text() == "old", "a copy that somebody keeps"


def test_permissions_are_those_of_what_was_there_or_of_the_system(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        folder = concept("old").save_pretrained(tmp_path / "it")
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o640}
        assert folder.stat().st_mode & 0o777 == 0o750
        (folder / CONFIG).chmod(0o600)
        concept().save_pretrained(folder, overwrite=True)
        assert (folder / CONFIG).stat().st_mode & 0o777 == 0o600
        assert (folder / CARD).stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)


def _read_only(path: Path) -> None:
    path.chmod(0o444)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("hinder", "message"),
    [(_read_only, "is read-only: make it writable"), (_folder, "is a folder"), (_pipe, "neither a file nor a folder")],
)
def test_what_cannot_be_replaced_is_named(hinder: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    folder = concept("old").save_pretrained(tmp_path / "it")
    before = {name: content for name, content in contents(folder).items() if name != CARD}
    hinder(folder / CARD)
    with pytest.raises(DSASError, match=message):
        concept().save_pretrained(folder, overwrite=True)
    assert {name: content for name, content in contents(folder).items() if name != CARD} == before


@pytest.mark.parametrize("name", ["n" * 300, "a\0b", "x/" * 3000, "\ud800"])
def test_a_place_that_no_system_has_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DSASError, match="cannot write"):
        concept().save_pretrained(tmp_path / name)
    with pytest.raises(DSASError, match="cannot write"):
        write_files({tmp_path / name: b""})
    assert list(tmp_path.iterdir()) == []


# ---- saves that were cut off ----------------------------------------------------------------------------------------


def cut_off(folder: Path, new: Concept, after: int) -> None:
    """Kill a process that saves after it has moved some files."""
    child = os.fork()
    if not child:
        real, moved = os.replace, 0

        def count(source: object, target: object) -> None:
            nonlocal moved
            if moved == after:
                os._exit(9)
            moved += 1
            real(source, target)  # type: ignore[arg-type]

        os.replace = count  # type: ignore[assignment]
        new.save_pretrained(folder, overwrite=True)
        os._exit(0)
    os.waitpid(child, 0)


@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("old", [False, True])
def test_a_save_that_was_killed_is_finished_by_the_next_reader(old: bool, after: int, tmp_path: Path) -> None:
    folder = tmp_path / "it"
    if old:
        concept("old").save_pretrained(folder)
    cut_off(folder, concept(), after)
    assert (folder / SAVE).exists()
    assert Concept.from_pretrained(folder) == concept()
    assert sorted(path.name for path in folder.iterdir()) == sorted([CONFIG, TENSORS, CARD])


def test_what_was_changed_after_a_cut_off_save_is_kept(tmp_path: Path) -> None:
    folder = concept("old").save_pretrained(tmp_path / "it")
    cut_off(folder, concept(), after=0)
    (folder / CARD).write_text("mine")
    with pytest.warns(UserWarning, match=r"kept as README\.md\.old"):
        assert Concept.from_pretrained(folder) == concept()
    assert (folder / "README.md.old").read_text() == "mine"


@pytest.mark.parametrize("name", ["../victim", "/etc/victim", "..", "a/b"])
def test_a_cut_off_save_of_anybody_reaches_nothing_outside(name: str, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    folder = concept().save_pretrained(tmp_path / "it")
    (folder / SAVE / "new").mkdir(parents=True)
    (folder / SAVE / "victim").write_text("theirs")
    for plan in ({"files": {name: "0"}, "over": {}, "gone": []}, {"files": {}, "over": {name: "0"}, "gone": [name]}):
        (folder / SAVE / "plan.json").write_text(json.dumps(plan))
        with pytest.raises(DSASError, match="is not what saving leaves"):
            Concept.from_pretrained(folder)
    assert (tmp_path / "victim").read_text() == "mine"


def test_drafts_of_the_dead_are_removed_and_those_of_the_living_not(tmp_path: Path) -> None:
    folder = concept("old").save_pretrained(tmp_path / "it")
    (folder / ".dsas-draft-0123abcd").mkdir()
    (folder / ".dsas-draft-0123abcd" / "half").write_bytes(b"x")
    (folder / ".dsas-draft-of-mine").mkdir()
    concept().save_pretrained(folder, overwrite=True)
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == [".dsas-draft-of-mine"]
    empty = tmp_path / "empty"
    (empty / ".dsas-draft-0123abcd").mkdir(parents=True)
    assert Concept.from_pretrained(concept().save_pretrained(empty)) == concept(), "nobody has its name for good"


def test_a_reader_sees_one_save_while_others_are_saved(tmp_path: Path) -> None:
    saves = [concept(f"c{i}", seed=i) for i in range(4)]
    folder, stop = saves[0].save_pretrained(tmp_path / "it"), threading.Event()
    wrong: list[object] = []

    def read() -> None:
        while not stop.is_set():
            found = Concept.from_pretrained(folder)
            if found != saves[int(found.name[1:])]:
                wrong.append(found)

    def save(which: int) -> None:
        for _ in range(4):
            saves[which].save_pretrained(folder, overwrite=True)

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=save, args=(i,)) for i in range(1, 4)]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    reader.join()
    assert wrong == []
    assert sorted(path.name for path in folder.iterdir()) == sorted([CONFIG, TENSORS, CARD])


def test_a_run_that_was_killed_at_its_first_file_goes_on(tmp_path: Path) -> None:
    (tmp_path / ".dsas-draft-0123abcd").mkdir()
    RunStore(tmp_path, {"model": "a"})
    assert json.loads((tmp_path / "run.json").read_text()) == {"model": "a"}
    (tmp_path / "rows" / ".dsas-draft-0123abcd").mkdir(parents=True)
    assert len(CaptureStore(tmp_path / "rows", {}, [])) == 0


def test_a_cell_that_is_not_complete_is_filled_and_keeps_what_is_not_ours(tmp_path: Path) -> None:
    def make(folder: Path) -> dict[str, int]:
        (folder / "a.png").write_bytes(b"new")
        return {"a": 1}

    cell = Cell({"number": 1}, make)
    place = tmp_path / "cells" / cell.digest
    place.mkdir(parents=True)
    (tmp_path / "run.json").write_text("{}")
    (place / "notes.txt").write_text("mine")
    (place / "a.png").write_bytes(b"half")
    [result] = RunStore(tmp_path, {}).complete([cell])
    assert (result.values, result.folder) == ({"a": 1}, place)
    there = {path.name: path.read_bytes() for path in place.iterdir() if path.suffix in (".txt", ".png", ".old")}
    assert there == {"notes.txt": b"mine", "a.png": b"new", "a.png.old": b"half"}


def test_a_line_that_was_cut_off_does_not_take_the_next_along(tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_text('{"a": 1}\n{"a')
    with open_to_append(tmp_path / "lines.jsonl") as file:
        file.write("{}\n")
    with open_to_append(tmp_path / "lines.jsonl") as file:
        file.write("{}\n")
    assert (tmp_path / "lines.jsonl").read_text() == '{"a": 1}\n{"a\n{}\n{}\n'


# ---- names and signatures -------------------------------------------------------------------------------------------

BAD = ["", " ", ".", "..", "../escaped", "a/b", "a\\b", "/abs", ".hidden", "-rf", "~root", "end.", "end ", " begin"]
BAD += [
    "con",
    "NUL",
    "nul.txt",
    "com1",
    "LPT9.tar.gz",
    "aux .x",
    "a:b",
    "a*",
    "a?",
    'a"',
    "a|b",
    "a\nb",
    "a\0b",
    "a\x1b",
]
BAD += ["a\0b", "a\x1b", "ä" * 101, "n" * 201, "\u202eabc", "\ud800"]


@pytest.mark.parametrize("name", BAD)
def test_names_that_no_file_may_have(name: str, tmp_path: Path) -> None:
    assert why_no_name(name)
    with pytest.raises(DSASError, match="such as no folder may have"):
        replace(concept(), name=name).save_pretrained(tmp_path / "it")
    folder = concept().save_pretrained(tmp_path / "it")
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "name": name}))
    with pytest.raises(DSASError, match=r"such as no folder may have|half a character"):
        Concept.from_pretrained(folder)


@pytest.mark.parametrize("name", ["banana-blur", "v1.2", "two words", "höhle", "猫", "console", "a.con", "n" * 200])
def test_names_that_files_may_have(name: str, tmp_path: Path) -> None:
    assert why_no_name(name) == ""
    named = replace(concept(), name=name)
    assert Concept.from_pretrained(named.save_pretrained(tmp_path / name)) == named


def test_a_signature_is_of_every_byte() -> None:
    signed = sign(f"dsas-sha256:{'a' * 64} of a user <!-- {UNSIGNED} -->".encode())
    assert is_signed(signed)
    assert not any(is_signed(signed[:i] + b"_" + signed[i + 1 :]) for i in range(len(signed)))
