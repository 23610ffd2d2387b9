"""`dsas generate` on a tiny random pipeline: pictures, grids and the settings beside them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

from dsas_core import Concept
from dsas_diffusion import steer
from dsas_diffusion.cli import output
from dsas_diffusion.generation.pictures import pictures_of, seeds_for
from dsas_diffusion.generation.settings import Settings
from dsas_diffusion.pipelines import load
from dsas_diffusion.pipelines.adapter import adapt
from tests.fixtures.checks import assert_one_line, document_of
from tests.fixtures.concepts import unseen

PROMPTS = ("--prompt", "a banana", "--prompt", "a dog on the grass")


def test_generate_fills_a_folder_reproducibly(dsas, model: str, concept: str, tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    given = f"{concept}=0"
    written = document_of(
        dsas(
            "generate",
            "--model",
            model,
            *PROMPTS,
            "--concept",
            given,
            "--steps",
            2,
            "--seed",
            3,
            "--out",
            out,
            "--json",
        )
    )
    assert {path.name for path in out.iterdir()} == {"001.png", "002.png", "generate.json"}
    beside = json.loads((out / "generate.json").read_text())
    assert {"out": str(out), **beside} == written
    assert (beside["steps"], beside["seed"], beside["gate"], beside["combine"]) == (2, 3, "own", "sum")
    read = Concept.from_pretrained(concept)
    known = {"unit": read.unit, "digest": read.digest}
    assert beside["concepts"] == [{"concept": concept, "name": "banana", "strength": 0.0, **known}]
    texts, seeds = PROMPTS[1::2], seeds_for(PROMPTS[1::2], 3)
    expected = pictures_of(adapt(load.load_pipeline(model)), texts, seeds, Settings(2, written["guidance"]))
    for i, picture in enumerate(expected):
        with Image.open(out / f"00{i + 1}.png") as read:
            assert read.tobytes() == picture.tobytes()  # a strength of 0 is the base model
            note = json.loads(read.text["dsas"])  # type: ignore[attr-defined]
        assert note["pictures"] == [beside["pictures"][i]]
        assert note["pictures"][0]["noise_seed"] == seeds[i]


def test_generate_compares(dsas, model: str, concept: str, tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    arguments = ("generate", "--model", model, "--prompt", "a banana", "--concept", f"{concept}=8", "--gate", "on")
    code, text, progress = dsas(*arguments, "--steps", 2, "--compare", "--out", out)
    assert code == 0
    assert f"wrote 1 picture to {out}" in text
    assert "denoising" in progress
    names = {"001.png", "001-base.png", "001-where-banana.png", "compare.png", "generate.json"}
    assert {path.name for path in out.iterdir()} == names
    assert (out / "001.png").read_bytes() != (out / "001-base.png").read_bytes()
    code, _, _ = dsas(*arguments, "--steps", 2, "--out", out, "--overwrite", "--quiet")
    assert code == 0
    assert {path.name for path in out.iterdir()} == {"001.png", "generate.json"}


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_generate_writes_one_file(dsas, model: str, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / "new" / f"grid{suffix}"
    assert dsas("generate", "--model", model, *PROMPTS, "--steps", 1, "--out", out, "--quiet")[0] == 0
    assert {path.name for path in out.parent.iterdir()} == {out.name, "grid.json"}
    settings = json.loads(out.with_suffix(".json").read_text())
    with Image.open(out) as grid:
        assert grid.width > 160
        assert grid.height > 2 * 160
        assert suffix != ".png" or json.loads(grid.info["dsas"]) == settings
    single = tmp_path / f"single{suffix}"
    assert dsas("generate", "--model", model, "--prompt", "", "--steps", 1, "--out", single, "--quiet")[0] == 0
    with Image.open(single) as picture:
        assert picture.size == (32, 32)


def test_files_are_written_together_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()  # stands in the way
    with pytest.raises(output.DSASError, match="cannot write"):
        output.write_files({tmp_path / "b" / "x" / "a": b"1", tmp_path / ("n" * 300): b"2"})
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


def test_generate_blends_and_chooses_strengths(dsas, model: str, concept: str, tmp_path: Path) -> None:
    other = replace(Concept.from_pretrained(concept), name="other").save_pretrained(tmp_path / "other")
    command = ("generate", "--model", model, "-p", "a banana", "--steps", 2, "--combine", "blend", "-c", f"{other}=-1")
    out = tmp_path / "out"
    code, _, err = dsas(*command, "-c", f"{concept}=auto:0.3", "--out", out, "--quiet")
    assert code == 0
    assert "'other' and 'banana' work against one another" in err.splitlines()[0]
    written = json.loads((out / "generate.json").read_text())
    assert written["combine"] == "blend"
    assert [one["strength"] for one in written["concepts"]] == [-1.0, "auto:0.3"]


def test_unknown_words_are_warned_of(dsas, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "dsas_diffusion.cli.picture_arguments.unknown_words", lambda _, prompts: tuple(prompts[0].split()[1:])
    )
    out = tmp_path / "a.png"
    code, _, err = dsas("generate", "--model", model, "-p", "a unicorn", "--steps", "1", "--out", out, "--quiet")
    assert (code, err) == (0, "dsas: warning: the model does not know unicorn, and cannot heed it\n")


# ---- the rest of the picture is kept ---------------------------------------------------------------------------------


def half(path: Path) -> Path:
    """A mask in a file: the left half may change."""
    mask = np.zeros((32, 32), np.uint8)
    mask[:, :16] = 255
    Image.fromarray(mask).save(path)
    return path


@pytest.mark.parametrize("how", ["", "latents", "mask"])
def test_what_is_preserved_is_what_python_preserves(dsas, model: str, placed: str, tmp_path: Path, how: str) -> None:
    out, given = tmp_path / "out", str(half(tmp_path / "half.png")) if how == "mask" else how
    asked = ("--concept", placed, "--steps", 2, "--guidance", 3, "--seed", 3, "--out", out, "--json", "--compare")
    written = document_of(dsas("generate", "--model", model, *PROMPTS, *asked, "--preserve", *filter(None, [given])))
    assert written["preserve"] == (given or True)
    preserve = Image.open(given) if how == "mask" else given or True
    pipe, concept = load.load_pipeline(model), Concept.from_pretrained(placed)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds_for(PROMPTS[1::2], 3)]
    with steer(pipe, {concept: 1.0}) as steering:
        options = {"num_inference_steps": 2, "guidance_scale": 3.0, "generator": generators}
        made = steering.generate(list(PROMPTS[1::2]), preserve=preserve, **options)
    for i, (picture, base) in enumerate(zip(made.images, made.unsteered, strict=True), 1):
        read = {kind: Image.open(out / f"00{i}{kind}.png") for kind in ("", "-base", "-changed")}
        assert read[""].tobytes() == picture.tobytes() != base.tobytes()
        assert read["-base"].tobytes() == base.tobytes()
        apart = np.asarray(ImageChops.difference(picture, base), int)
        assert (np.asarray(read["-changed"]) == np.minimum(255, 4 * apart)).all()
        if how != "latents":
            outside = made.masks[i - 1] == 0
            assert outside.any()
            assert not apart[outside].any()


def test_preserve_off_needs_no_concept(dsas, model: str, tmp_path: Path) -> None:
    given = ("-p", "x", "--steps", 1, "--preserve", "off", "--out", tmp_path / "a.png", "--json")
    assert document_of(dsas("generate", "--model", model, *given))["preserve"] is False


def test_what_is_not_seen_is_told_and_leaves_json_readable(dsas, model: str, placed: str, tmp_path: Path) -> None:
    folder = replace(unseen(Concept.from_pretrained(placed)), base={}).save_pretrained(tmp_path / "unseen")
    given = ("--model", model, "-p", "a banana", "--steps", 1, "--quiet", "--preserve", "--concept")
    document = document_of(dsas("generate", *given, folder, "--out", tmp_path / "a.png", "--json"))
    assert [entry["seen"] for entry in document["pictures"]] == [False]
    told = "1 of 1 pictures stay as they are: nothing that is steered is seen in them"
    assert told in dsas("generate", *given, folder, "--out", tmp_path / "b.png")[1]
    assert told not in dsas("generate", *given, placed, "--out", tmp_path / "c.png")[1]


def test_the_unsteered_picture_is_drawn_once(dsas, model: str, placed: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("dsas_diffusion.drawing.draw.pictures_of", lambda *_: pytest.fail("drawn twice"))
    given = ("--concept", placed, "--steps", 1, "--out", tmp_path / "a.png", "--quiet", "--preserve", "--compare")
    assert dsas("generate", "--model", model, "-p", "a banana", *given)[0] == 0
    with Image.open(tmp_path / "a.png") as grid:
        assert grid.width == 190 + 5 * 168 + 8, "unsteered, steered, where it was seen, what changed, and the mask"


def test_a_concept_without_a_place_is_warned_of(dsas, model: str, placed: str, tmp_path: Path) -> None:
    blind = replace(Concept.from_pretrained(placed), evidence={}).save_pretrained(tmp_path / "blind")
    given = ("--concept", blind, "--steps", 1, "--quiet", "--preserve", "--compare", "--out", tmp_path / "out")
    code, _, err = dsas("generate", "--model", model, *PROMPTS, *given)
    assert code == 0
    assert_one_line(err, "warning: banana: no probes that see it at some place of the picture")
    assert (tmp_path / "out" / "001-changed.png").is_file()


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        (["--preserve"], 2, "--preserve leaves what is not a --concept's: give one"),
        (
            ["--preserve", "nowhere.png", "-c"],
            1,
            "--preserve nowhere.png: no such file: expected no value, latents, or a grey",
        ),
        (["--preserve", "TEXT", "-c"], 1, "no picture: expected no value, latents, or a grey picture file"),
        (["--preserve", "COLOUR", "-c"], 1, "in colour or with transparency (mode RGBA): expected a grey picture"),
        (["--preserve", "WIDE", "-c"], 1, "a mask of 64 × 32 for pictures of 32 × 32: expected the same aspect"),
    ],
)
def test_bad_masks_are_told_in_one_line(
    dsas, model: str, placed: str, tmp_path: Path, given: list[str], code: int, message: str
) -> None:
    files = {name: tmp_path / f"{name}.png" for name in ("TEXT", "COLOUR", "WIDE")}
    files["TEXT"].write_text("no picture")
    Image.new("RGBA", (32, 32)).save(files["COLOUR"])
    Image.new("L", (64, 32), 255).save(files["WIDE"])
    argv = [str(files.get(part, part)) for part in given] + ([placed] if "-c" in given else [])
    result = dsas("generate", "--model", model, "-p", "x", "--steps", 1, "--out", tmp_path / "out", "--quiet", *argv)
    assert result[0] == code
    assert_one_line(result[2], message)
    assert not (tmp_path / "out").exists()
