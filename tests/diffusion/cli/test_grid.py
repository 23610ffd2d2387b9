"""`dsas grid`: the sheet, the settings of each of its pictures, and axes that contradict options."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from dsas_core import Concept
from dsas_diffusion.generation import strips
from tests.fixtures.checks import assert_one_line, document_of

Run = Callable[..., tuple[int, str, str]]


def test_pictures_are_those_of_generate(
    dsas: Run, model: str, placed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Image.Image] = []
    draw = strips.grid
    monkeypatch.setattr(
        strips, "grid", lambda rows, *a: (drawn.extend(p for row in rows for p in row), draw(rows, *a))[1]
    )
    sheet, given = tmp_path / "a.png", ("--model", model, "-c", f"{placed}=2")
    axes = ("--x", "strength=-1,0.5", "--y", "seed=4,7", "--z", "prompt")
    prompts = ("-p", "a banana", "-p", "a dog")
    document = document_of(dsas("grid", *given, *axes, *prompts, "--steps", 1, "--out", sheet, "--json"))
    assert document["axes"] == [
        {"axis": "strength", "values": [-1.0, 0.5]},
        {"axis": "seed", "values": [4, 7]},
        {"axis": "prompt", "values": ["a banana", "a dog"]},
    ]
    assert document["concepts"][0]["strength"] == [-1.0, 0.5] * 4
    told = [(entry["prompt"], entry["seed"]) for entry in document["pictures"]]
    assert told == [(prompt, seed) for prompt in ("a banana", "a dog") for seed in (4, 4, 7, 7)]
    with Image.open(sheet) as picture:
        assert picture.size == (190 + 2 * 168 + 8, 34 + 4 * 168 + 8)
        note = json.loads(picture.info["dsas"])
        assert {"out": str(sheet), **note} == document
    assert json.loads(sheet.with_suffix(".json").read_text()) == note
    generated = tmp_path / "one.png"
    one = ("--model", model, "-c", f"{placed}=0.5", "-p", "a dog", "--seed", 7, "--steps", 1)
    assert dsas("generate", *one, "--out", generated, "--quiet")[0] == 0
    assert Image.open(generated).tobytes() == drawn[7].tobytes()
    again = ("--from", sheet, "--out", tmp_path / "all", "--quiet")
    assert dsas("generate", *again)[0] == 0
    for i, picture in enumerate(drawn, 1):
        assert Image.open(tmp_path / "all" / f"00{i}.png").tobytes() == picture.tobytes()


def test_people_get_the_axes_and_a_bar(dsas: Run, model: str, placed: str, tmp_path: Path) -> None:
    axes = ("--x", "steps=1,2", "--y", f"concept={placed}")
    code, text, progress = dsas("grid", "--model", model, "-p", "a dog", *axes, "--out", tmp_path / "a.webp")
    assert code == 0
    assert text.startswith("columns: steps 1, 2\nrows: concept banana\nwrote 2 pictures to ")
    assert "pictures" in progress
    assert "denoising" not in progress
    settings = json.loads((tmp_path / "a.json").read_text())
    assert settings["concepts"][0]["strength"] == 1.0
    assert [entry.get("steps", settings["steps"]) for entry in settings["pictures"]] == [1, 2]


@pytest.mark.parametrize("how", ["latents", "off"])
def test_concepts_share_an_unsteered_pass_only_where_it_looked_for_them(
    dsas: Run, model: str, placed: str, tmp_path: Path, how: str
) -> None:
    other = replace(Concept.from_pretrained(placed), name="other").save_pretrained(tmp_path / "other")
    given = ("-p", "a banana", "--x", f"concept={placed},{other}", "--preserve", how, "--steps", 1, "--json")
    document = document_of(dsas("grid", "--model", model, *given, "--out", tmp_path / "a.png"))
    assert document["preserve"] == (how != "off" and how)


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ("-p x", 2, "--x"),
        ("-p x --x colour=1", 2, "expected strength=…, concept=…, seed=…, steps=…, guidance=… with values between"),
        ("-p x --x seed=", 2, "with values between commas, or prompt; found 'seed='"),
        ("-p x --x seed=1,a", 2, "seed: expected a whole number from 0 to 9223372036854775807, found 'a'"),
        ("-p x --x strength=1,,2", 2, "strength: expected a number from -1e+06 to 1e+06, found ''"),
        ("-p x --x seed=1 --z steps=1", 2, "--z has blocks of rows: give --y, too"),
        ("-p x --x seed=1 --y seed=2", 2, "two axes are of seed"),
        ("-p x --x seed=1 --y steps=2 --z steps=3", 2, "two axes are of steps"),
        ("-p x --x seed=1 --seed 3", 2, "--seed is an axis already"),
        ("-p x --x steps=1 --steps 3", 2, "--steps is an axis already"),
        ("-p x --x prompt", 2, "several prompts are an axis, and one is none"),
        ("-p x -p y --x seed=1", 2, "several prompts are an axis, and one is none"),
        ("-p x --x strength=1", 1, "expected one concept that it is of, found none"),
        ("-p x --x strength:none=1", 1, "expected strength:NAME of a concept that is given; there is none"),
        ("-p <dsas:{concept}:2> --x strength=1 -c {concept}", 1, "found none"),
        ("-p x --x seed=1 --out {new}.gif", 1, "a grid is written as .png, .jpg"),
        ("-p x --x seed=1 --model builtin:chat", 2, "is a language model, which draws nothing"),
        ("-p x --x seed=1 --words a=b", 1, "words for 'a', but steered are none"),
    ],
)
def test_bad_input_is_told_in_one_line(
    dsas: Run, placed: str, tmp_path: Path, argv: str, code: int, message: str
) -> None:
    out = tmp_path / "out"
    given = argv.format(new=out, concept=placed).split()
    result = dsas("grid", "--out", out.with_suffix(".png"), *given, "--quiet")
    assert result[0] == code
    assert_one_line(result[2].splitlines(keepends=True)[-1], message)
    assert list(tmp_path.iterdir()) == []
