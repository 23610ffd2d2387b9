"""`dsas generate`: strengths in prompts, several pictures, and pictures that are drawn again by their files."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from dsas_core import Concept
from dsas_diffusion import load_pipeline, read_settings
from dsas_diffusion.generation.pictures import seeds_for
from dsas_diffusion.generation.strips import overlay
from tests.fixtures.checks import assert_one_line, document_of

Run = Callable[..., tuple[int, str, str]]
PROMPT = ("-p", "a banana")


@pytest.fixture(scope="module")
def other(placed: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A second concept, beside the first."""
    concept = replace(Concept.from_pretrained(placed), name="other")
    return str(concept.save_pretrained(tmp_path_factory.mktemp("other concepts") / "other"))


@pytest.fixture
def generate(dsas: Run, model: str) -> Callable[..., Any]:
    """Run `dsas generate` with two steps: its document."""

    def run(*argv: object, by: tuple[object, ...] = ("--model", model, "--steps", 2)) -> Any:
        return document_of(dsas("generate", *by, *argv, "--json"))

    return run


def pixels(path: Path) -> bytes:
    with Image.open(path) as picture:
        return picture.tobytes()


def dark(path: Path) -> bytes:
    """A picture under a map of nothing."""
    with Image.open(path) as picture:
        return overlay(picture, np.zeros(picture.size[::-1])).tobytes()


@pytest.mark.parametrize("suffix", ["", ".png"])
def test_prompts_of_other_concepts_and_of_none_are_compared_too(
    generate: Callable[..., Any], placed: str, other: str, tmp_path: Path, suffix: str
) -> None:
    out, tags = tmp_path / f"all{suffix}", (f"<dsas:{placed}:2>", f"<dsas:{other}:2>", "")
    given = [part for tag in tags for part in ("-p", f"a banana {tag}")]
    assert len(generate(*given, "--seed", 3, "--compare", "--out", out)["pictures"]) == 3
    if not suffix:
        for name, steered in (("banana", 1), ("other", 2)):
            seen = [pixels(out / f"00{i}-where-{name}.png") != dark(out / f"00{i}.png") for i in (1, 2, 3)]
            assert seen == [i == steered for i in (1, 2, 3)]


def test_steps_that_no_probe_of_patches_reads_leave_the_map_dark(dsas: Run, tmp_path: Path) -> None:
    given = ("--model", "builtin:emoji", "-p", "a banana <dsas:banana-blur>", "--steps", 1, "--compare", "--quiet")
    code, _, err = dsas("generate", *given, "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    assert pixels(tmp_path / "out" / "001-where-banana-blur.png") == dark(tmp_path / "out" / "001.png")


def test_one_concept_by_two_paths_is_one(generate: Callable[..., Any], placed: str, tmp_path: Path) -> None:
    copied = shutil.copytree(placed, tmp_path / "copy")
    document = generate("-p", f"a banana <dsas:{copied}:0.5>", "-c", placed, "--out", tmp_path / "a.png")
    assert [(concept["name"], concept["strength"]) for concept in document["concepts"]] == [("banana", 0.5)]


def test_another_concept_where_one_was_drawn_by_is_told(
    dsas: Run, generate: Callable[..., Any], placed: str, other: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(placed, tmp_path / "mine")
    generate(*PROMPT, "-c", folder, "--out", tmp_path / "a.png")
    shutil.rmtree(folder)
    shutil.copytree(other, folder)
    code, _, err = dsas(
        "generate", "--from", tmp_path / "a.png", "-c", f"{folder}=1", "--out", tmp_path / "b.png", "--quiet"
    )
    assert code == 1
    assert_one_line(err, "holds the concept 'other', and the picture was drawn by 'banana'")


def test_a_tag_is_a_strength_for_its_prompt(
    generate: Callable[..., Any], placed: str, other: str, tmp_path: Path
) -> None:
    tagged = (f"a banana <dsas:{placed}:0.5>, yellow", f"<dsas:other:1> a banana <dsas:{placed}>", "a banana")
    given = [part for prompt in tagged for part in ("-p", prompt)]
    document = generate(*given, "-c", f"{other}=2", "--seed", 3, "--out", tmp_path / "all")
    assert [entry["prompt"] for entry in document["pictures"]] == ["a banana, yellow", "a banana", "a banana"]
    assert {concept["name"]: concept["strength"] for concept in document["concepts"]} == {
        "banana": [0.5, 1.0, None],
        "other": [2.0, 1.0, 2.0],
    }
    lists = (
        ("a banana, yellow", [(other, 2), (placed, 0.5)]),
        ("a banana", [(other, 1), (placed, 1)]),
        ("a banana", [(other, 2)]),
    )
    for i, (clean, strengths) in enumerate(lists):
        options = [part for source, strength in strengths for part in ("-c", f"{source}={strength}")]
        padding = ["-p", "x"] * i  # so that the prompt is at the same place, and has the same noise
        generate(*padding, "-p", clean, *options, "--seed", 3, "--out", tmp_path / f"plain-{i}")
        expected = pixels(tmp_path / f"plain-{i}" / f"00{i + 1}.png")
        assert pixels(tmp_path / "all" / f"00{i + 1}.png") == expected


def test_several_pictures_of_a_prompt_have_the_seeds_from_the_first_on(
    generate: Callable[..., Any], dsas: Run, model: str, tmp_path: Path
) -> None:
    given = ("-p", "a dog", "-p", "a cat", "--seed", 7)
    document = generate(*given, "--count", 2, "--out", tmp_path / "two")
    assert [(entry["prompt"], entry["seed"]) for entry in document["pictures"]] == [
        ("a dog", 7),
        ("a dog", 8),
        ("a cat", 7),
        ("a cat", 8),
    ]
    seeds = [[entry["noise_seed"] for entry in document["pictures"]][i::2] for i in range(2)]
    assert seeds == [seeds_for("12", 7), seeds_for("12", 8)]
    generate("-p", "a dog", "-p", "a cat", "--seed", 8, "--out", tmp_path / "eight")
    assert pixels(tmp_path / "two" / "004.png") == pixels(tmp_path / "eight" / "002.png")
    code, text, _ = dsas("generate", "--model", model, *given, "-n", 2, "--steps", 1, "--out", tmp_path / "a.png")
    assert code == 0
    assert "1: seed 7, a dog\n2: seed 8, a dog\n" in text
    with Image.open(tmp_path / "a.png") as grid:
        assert grid.size == (190 + 2 * 168 + 8, 34 + 2 * 168 + 8), "a row for each prompt, a column for each seed"


def test_size_scheduler_and_negative_prompt_are_the_pipelines_own(
    generate: Callable[..., Any], model: str, tmp_path: Path
) -> None:
    out = tmp_path / "a.png"
    given = ("--size", "64x32", "--negative-prompt", "a cat", "--scheduler", "UniPCMultistepScheduler", "--guidance", 4)
    document = generate(*PROMPT, *given, "--out", out)
    assert (document["size"], document["negative_prompt"]) == ([64, 32], "a cat")
    pipe = load_pipeline(model)
    from diffusers import UniPCMultistepScheduler

    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config)
    options = {"width": 64, "height": 32, "negative_prompt": "a cat", "num_inference_steps": 2, "guidance_scale": 4.0}
    generator = torch.Generator().manual_seed(seeds_for("1", 0)[0])
    assert pixels(out) == pipe("a banana", generator=generator, **options).images[0].tobytes()
    generate("--out", tmp_path / "again.png", "--from", out, by=())
    assert pixels(tmp_path / "again.png") == pixels(out)


# ---- drawn again ----------------------------------------------------------------------------------------------------

EVERYTHING = (
    *("--seed", 5, "--guidance", 4, "--negative-prompt", "a dog", "--gate", "on", "--combine", "blend"),
    *("--schedule", "linear:0.5:1", "--interpolate-bins", "--rows", "both", "--attach", "processor"),
)


@pytest.mark.parametrize("how", [(), EVERYTHING, ("--preserve",)], ids=["plain", "everything", "preserve"])
def test_a_picture_is_drawn_again_by_its_file_alone(
    generate: Callable[..., Any], placed: str, tmp_path: Path, how: tuple[object, ...]
) -> None:
    given = ("-p", "a dog", "-p", f"a banana <dsas:{placed}:2>", "-n", 2, *how, "--out", tmp_path / "all")
    first = generate(*given)
    again = generate("--from", tmp_path / "all" / "004.png", "--out", tmp_path / "again", by=())
    assert pixels(tmp_path / "again" / "001.png") == pixels(tmp_path / "all" / "004.png")
    assert again["pictures"] == [{**first["pictures"][3], "files": {"picture": "001.png"}}]
    differing = {key for key in first if first[key] != again[key]} - {
        "out",
        "pictures",
        "concepts",
        "seed",
        "signature",
    }
    assert differing == set()
    assert [concept["strength"] for concept in again["concepts"]] == [2.0]
    generate("--from", tmp_path / "all" / "generate.json", "--out", tmp_path / "whole", by=())
    for i in range(1, 5):
        assert pixels(tmp_path / "whole" / f"00{i}.png") == pixels(tmp_path / "all" / f"00{i}.png")


def test_other_options_override_the_file(generate: Callable[..., Any], placed: str, other: str, tmp_path: Path) -> None:
    start, made = ("-c", f"{placed}=2", "--seed", 5), tmp_path / "made.png"
    generate(*PROMPT, *start, "--preserve", "--out", made)
    generate(*PROMPT, *start, "--preserve", "--out", tmp_path / "compared", "--compare")

    def again(*options: object) -> tuple[dict[str, Any], bytes]:
        out = tmp_path / "again.png"
        return generate("--from", made, *options, "--out", out, "--overwrite", by=()), pixels(out)

    def fresh(*options: object) -> bytes:
        generate(*PROMPT, *options, "--out", tmp_path / "fresh.png", "--overwrite")
        return pixels(tmp_path / "fresh.png")

    for options in (
        ("-c", f"{placed}=-1"),
        ("-c", f"{other}=1"),
        ("--seed", 9),
        ("-p", "a dog"),
        ("--guidance", 6),
        ("--preserve", "off"),
    ):
        kept = () if f"{placed}=-1" in options else start[:2]
        seed = () if "--seed" in options else start[2:]
        preserved = () if "--preserve" in options else ("--preserve",)
        given = [*kept, *seed, *preserved, *options]
        if "-p" in options:
            assert again(*options)[0]["pictures"][0]["prompt"] == "a dog"
            continue
        assert again(*options)[1] == fresh(*given), options
    document, _ = again("-p", "a dog", "-p", "a cat <dsas:banana:0.5>", "-n", 2)
    assert [(entry["prompt"], entry["seed"], entry["place"]) for entry in document["pictures"]] == [
        ("a dog", 5, 0),
        ("a dog", 6, 0),
        ("a cat", 5, 0),
        ("a cat", 6, 0),
    ]
    assert [concept["strength"] for concept in document["concepts"]] == [[2.0, 2.0, 0.5, 0.5]]
    base = generate("--from", tmp_path / "compared" / "001-base.png", "--out", tmp_path / "base.png", by=())
    assert base["concepts"] == []
    assert pixels(tmp_path / "base.png") == pixels(tmp_path / "compared" / "001-base.png")


def test_what_has_changed_since_is_told(
    dsas: Run, generate: Callable[..., Any], placed: str, model: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(placed, tmp_path / "mine"))
    concept = Concept.from_pretrained(folder)
    out = tmp_path / "a.png"
    generate(*PROMPT, "-c", folder, "--out", out)
    assert read_settings(out).concepts[0].digest == concept.digest
    concept.with_unit(2 * concept.unit).save_pretrained(folder, overwrite=True)
    again = ("generate", "--from", out, "--quiet", "--out")
    code, _, err = dsas(*again, tmp_path / "b.png")
    assert code == 0
    assert_one_line(err, "warning", "pixels may differ: concept 'banana' has changed")
    replace(concept, name="another").save_pretrained(folder, overwrite=True)
    code, _, err = dsas(*again, tmp_path / "c.png")
    assert code == 1
    assert_one_line(err, "holds the concept 'another', and the picture was drawn by 'banana'")
    shutil.rmtree(folder)
    code, _, err = dsas(*again, tmp_path / "c.png")
    assert code == 1
    assert_one_line(err, "no concept")


def foreign(path: Path) -> Path:
    """A picture of another tool."""
    note = PngImagePlugin.PngInfo()
    note.add_text("parameters", "a dog\nSteps: 20, Seed: 1")
    Image.new("RGB", (8, 8)).save(path, pnginfo=note)
    return path


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ("", 2, "give a --prompt, or a picture to draw again with --from"),
        ("--from {new}/none.png", 1, "none.png' is not there: expected a PNG that `dsas generate` wrote"),
        ("--from {new}/foreign.png", 1, "has settings of AUTOMATIC1111 or its like (a text 'parameters'), not of dsas"),
        ("--from {new}/a.jpg", 1, "is a JPEG, from which no settings are read"),
        ("-p a<dsas:x:much>", 1, "the prompt has the tag '<dsas:x:much>': strength: expected a number"),
        ("-p a<dsas:builtin:nothing>", 1, "nothing"),
        ("-p a<dsas:banana> -c {concept} -c {concept}=2", 1, "two concepts are named 'banana'"),
        ("-p <dsas:banana><dsas:{concept}:2> -c {concept}", 1, "the prompt sets the concept 'banana' twice"),
        ("-p a --negative-prompt <dsas:x>", 1, "the negative prompt has the tag '<dsas:x>', which steers only prompts"),
        ("-p a --count 0", 2, "expected a whole number from 1"),
        ("-p a --count 2 --seed 9223372036854775807", 1, "seed: expected a whole number from 0"),
        ("-p a --size 64x", 2, "expected a whole number from 8 to 8192, found ''"),
        ("-p a --size 64x64x64", 2, "expected PIXELS or WIDTHxHEIGHT, found '64x64x64'"),
        ("-p a --size 64x33", 1, "draws sides of a multiple of 8 pixels: try 32"),
        ("-p a --scheduler Nothing", 1, "scheduler 'Nothing' does not go with"),
        ("-p a --scheduler DDIMScheduler", 1, "scheduler 'DDIMScheduler' does not go with this model's DPMSolver"),
        ("-p a --words banana=dog -c {concept} --words none=dog", 1, "words for 'none', but steered are banana"),
    ],
)  # fmt: skip
def test_bad_input_is_told_in_one_line(
    dsas: Run, model: str, placed: str, tmp_path: Path, argv: str, code: int, message: str
) -> None:
    foreign(tmp_path / "foreign.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    given = argv.format(new=tmp_path, concept=placed).split()
    result = dsas("generate", "--model", model, *given, "--steps", 1, "--out", tmp_path / "out", "--quiet")
    assert result[0] == code
    assert_one_line(result[2].splitlines(keepends=True)[-1], message)
    assert not (tmp_path / "out").exists()


def test_a_negative_prompt_without_effect_is_told(dsas: Run, model: str, tmp_path: Path) -> None:
    given = ("--steps", 1, "--guidance", 1, "--negative-prompt", "a cat", "--out", tmp_path / "a.png", "--quiet")
    code, _, err = dsas("generate", "--model", model, *PROMPT, *given)
    assert code == 0
    assert_one_line(err, "at guidance 1 a negative prompt has no effect: raise guidance above 1")


def test_a_map_beside_a_picture_is_no_picture(
    dsas: Run, generate: Callable[..., Any], placed: str, tmp_path: Path
) -> None:
    generate(*PROMPT, "-c", placed, "--compare", "--out", tmp_path / "out")
    code, _, err = dsas("generate", "--from", tmp_path / "out" / "001-where-banana.png", "--out", tmp_path / "a.png")
    assert code == 1
    assert_one_line(err, "shows 'where banana', which is drawn beside a picture: take the file of the picture")
    several = io.BytesIO((tmp_path / "out" / "compare.png").read_bytes())
    assert read_settings(several).concepts[0].name == "banana"
    assert json.loads(Image.open(several).text["dsas"])["compare"] is True  # type: ignore[attr-defined]
