"""--diverse: several pictures of a prompt, or answers to a message, that are pushed apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.fixtures.checks import assert_one_line, document_of

PROMPTS = ("-p", "a banana", "-p", "a dog on the grass")


def pixels(path: Path) -> bytes:
    with Image.open(path) as picture:
        return picture.tobytes()


def test_pictures_are_drawn_together_and_again(dsas: Any, model: str, tmp_path: Path) -> None:
    drawing = ("generate", "--model", model, *PROMPTS, "--steps", 2, "--seed", 3, "--json")
    out, plain, off = (tmp_path / name for name in ("apart", "plain", "off"))
    told = document_of(dsas(*drawing, "--diverse", "2=4", "--out", out))
    assert (told["diverse"], told["apart"], told["concepts"]) == (2, 4.0, [])
    document_of(dsas(*drawing, "--count", 2, "--out", plain))
    document_of(dsas(*drawing, "--diverse", "2=0", "--out", off))
    names = [f"00{i}.png" for i in (1, 2, 3, 4)]
    assert {path.name for path in out.iterdir()} == {*names, "generate.json"}
    assert all(pixels(out / name) != pixels(plain / name) for name in names)
    seeds = [
        [one["noise_seed"] for one in json.loads((it / "generate.json").read_text())["pictures"]] for it in (out, plain)
    ]
    assert seeds[0] == seeds[1]
    again = tmp_path / "again"
    document_of(dsas("generate", "--from", out / "generate.json", "--out", again, "--json"))
    assert all(pixels(out / name) == pixels(again / name) for name in names)
    code, _, err = dsas("generate", "--from", out / "001.png", "--out", tmp_path / "one", "--quiet")
    assert code == 1
    assert_one_line(err, "drawn with 1 others of its prompt", "--diverse 2")


def test_a_grid_has_a_row_for_each_prompt_and_compares(dsas: Any, model: str, concept: str, tmp_path: Path) -> None:
    drawing = ("generate", "--model", model, *PROMPTS, "--steps", 1, "--diverse", 3, "--quiet")
    assert dsas(*drawing, "-c", f"{concept}=1", "--out", tmp_path / "grid.png")[0] == 0
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width > 3 * 160
    assert dsas(*drawing, "--compare", "--out", tmp_path / "compared")[0] == 0
    assert (tmp_path / "compared" / "006-base.png").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--diverse", "1"), "expected 2 or more, which are pushed apart, found '1'"),
        (("--diverse", "two"), "expected a whole number from 1"),
        (("--diverse", "2=auto"), "expected a number from"),
        (("--diverse", "2", "--count", "3"), "leave --count out"),
        (("--diverse", "2", "--preserve"), "leave one out"),
        (("--diverse", "2", "--compare", "-c", "builtin:banana-blur"), "--compare maps each picture by itself"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(dsas: Any, options: tuple[str, ...], message: str) -> None:
    code, _, err = dsas("generate", "-p", "a dog", *options)
    assert code == 2
    assert_one_line(err, message)


def test_answers_are_pushed_apart(dsas: Any) -> None:
    chat = ("chat", "-m", "my washer leaks.", "--tokens", 30)
    (entry,) = document_of(dsas(*chat, "--diverse", 4, "--compare", "--json"))["answers"]
    assert len(entry["answers"]) == 4
    assert len(set(entry["answers"])) > 1
    (off,) = document_of(dsas(*chat, "--diverse", "4=0", "--json"))["answers"]
    assert off["answers"] == [entry["base"]] * 4
    code, text, _ = dsas(*chat, "--diverse", 2, "-c", "builtin:rudeness=1", "--quiet")
    assert code == 0
    assert [line[:3] for line in text.splitlines()[:2]] == ["1: ", "2: "]
    assert "rudeness: mean h" in text


@pytest.mark.parametrize("options", [("--monitor", "it.jsonl"), ("--heat", "it.html")])
def test_what_reads_a_single_answer_is_refused(dsas: Any, options: tuple[str, ...]) -> None:
    code, _, err = dsas("chat", "-m", "hello", "-c", "builtin:rudeness", "--diverse", 2, *options)
    assert code == 2
    assert_one_line(err, "--diverse changes several answers at once")
