"""Settings in files of pictures: all that is written is read back, and nothing else is taken."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

import dsas_diffusion as dsas
from dsas_core.errors import ArtifactError
from dsas_diffusion.drawing.picture_files import encode_picture, read_all_settings
from dsas_diffusion.drawing.picture_settings import (
    DrawnConcept,
    HowSteered,
    Origin,
    PictureSettings,
    as_document,
    from_document,
)
from dsas_diffusion.generation.settings import Settings

PICTURE = Image.new("RGB", (64, 64), "red")
CONCEPT = DrawnConcept("builtin:dog-grey", "dog-grey", 0.5, 2.0, "0123456789abcdef")
MADE = PictureSettings(
    "builtin:emoji",
    "a “dog”\nand <a cat>",
    2**63 - 1,
    Settings(4, 2.5, "DDIMScheduler", (96, 64)),
    3,
    1,
    "blurry",
    (CONCEPT, replace(CONCEPT, name="other", strength=dsas.Auto(0.25))),
    HowSteered("on", "blend", "target", ((0.0, 0.5), (1000.0, 1.0)), True, "both", "processor", {"other": ["dog"]}),
    "latents",
    Origin("cuda:0", "float16", "fp16", "folder", "a" * 16, "b" * 16, {"torch": "2.0"}),
)
PLAIN = PictureSettings("builtin:emoji", "a dog", 7, Settings(1, 1.0))


def png(document: Any = None, text: str | None = None, keyword: str = "dsas", **options: Any) -> bytes:
    note = PngImagePlugin.PngInfo()
    note.add_text(keyword, json.dumps(document) if text is None else text)
    content = io.BytesIO()
    PICTURE.save(content, "PNG", pnginfo=note, **options)
    return content.getvalue()


@pytest.mark.parametrize("made", [MADE, PLAIN], ids=["all", "plain"])
def test_all_that_is_written_is_read_back(made: PictureSettings, tmp_path: Path) -> None:
    content = encode_picture(PICTURE, made.to_dict())
    path = tmp_path / "a picture.png"
    path.write_bytes(content)
    beside = json.dumps(made.to_dict()).encode()
    for source in (content, path, str(path), io.BytesIO(content), beside):
        assert dsas.read_settings(source) == made


def test_pictures_of_one_file_keep_what_differs(tmp_path: Path) -> None:
    others = [
        replace(MADE, prompt="x", noise_seed=1, seed=None, place=None, concepts=()),
        replace(MADE, settings=replace(MADE.settings, steps=9, guidance=0.0), concepts=MADE.concepts[:1]),
    ]
    document = as_document([MADE, *others])
    assert [concept["strength"] for concept in document["concepts"]] == [[0.5, None, 0.5], ["auto:0.25", None, None]]
    content = encode_picture(PICTURE, document)
    assert read_all_settings(content) == [MADE, *others]
    with pytest.raises(ArtifactError, match="shows 3 pictures: take the file of one"):
        dsas.read_settings(content)


def test_a_picture_of_the_first_version_is_read() -> None:
    old: dict[str, Any] = {
        "model": "builtin:emoji",
        "concepts": [{"concept": "builtin:dog-grey", "name": "dog-grey", "strength": "auto:0.3", "unit": 1.0}],
        **{"gate": "own", "combine": "sum", "within": None, "schedule": None, "interpolate_bins": False},
        **{"rows": "conditional", "attach": "hooks", "words": {}, "preserve": False, "seed": 3, "steps": 12},
        **{"guidance": 3.0, "size": None, "device": "cpu", "dtype": "float32"},
        "pictures": [{"prompt": "a dog", "noise_seed": 7, "files": {"picture": "001.png"}}],
        "versions": {"dsas": "0.1.0"},
    }
    read = dsas.read_settings(png(old))
    assert (read.prompt, read.noise_seed, read.seed, read.place) == ("a dog", 7, 3, None)
    assert read.concepts == (DrawnConcept("builtin:dog-grey", "dog-grey", dsas.Auto(0.3), 1.0),)


def jpeg() -> bytes:
    return encode_picture(PICTURE, MADE.to_dict(), ".jpg")


WHOLE = encode_picture(Image.effect_noise((64, 64), 90), MADE.to_dict())
FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "is no picture that can be read"),
    "text": (lambda: b"hello", "is no picture that can be read"),
    "jpeg": (jpeg, "is a JPEG, from which no settings are read"),
    "foreign": (lambda: png(keyword="Software", text="x"), "has no settings of dsas: an editor or website"),
    "a1111": (lambda: png(keyword="parameters", text="a dog\nSteps: 20"), "settings of AUTOMATIC1111 or its like"),
    "comfy": (lambda: png(keyword="workflow", text="{}"), "settings of ComfyUI"),
    "cut": (lambda: WHOLE[: len(WHOLE) * 2 // 3], "is damaged or cut short"),
    "cut early": (lambda: WHOLE[:60], "is no picture that can be read, or a damaged one"),
    "changed": (lambda: WHOLE.replace(b"blurry", b"Blurry"), "is no picture that can be read, or a damaged one"),
    "no JSON": (lambda: png(text="{"), "has damaged settings"),
    "list": (lambda: png([1]), "that are no mapping"),
    "deep": (lambda: png(text="[" * 100_000), "has damaged settings"),
    "twice": (lambda: png(text='{"model": 1, "model": 2}'), "the key 'model' twice"),
    "sweep": (lambda: png({"rows": []}), "is a sheet of another command"),
    "mask": (lambda: png({**MADE.to_dict(), "kind": "mask"}), "shows 'mask', which is drawn beside a picture"),
}


@pytest.mark.parametrize("kind", FILES)
def test_other_files_are_told_in_one_line(kind: str, tmp_path: Path) -> None:
    make, message = FILES[kind]
    path = tmp_path / "it.png"
    path.write_bytes(make())
    for source, name in ((path, str(path)), (make(), "this file")):
        with pytest.raises(ArtifactError) as caught:
            dsas.read_settings(source)
        assert message in str(caught.value)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "no.png", "is not there"), (tmp_path, "is a folder")):
        with pytest.raises(ArtifactError, match=message):
            dsas.read_settings(path)


ENTRY = PLAIN.to_dict()["pictures"][0]
STEERED = replace(PLAIN, concepts=(CONCEPT,)).to_dict()["concepts"][0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"model": 3}, "settings.model must be a line of text"),
        ({"model": "a\nb"}, "settings.model must be a line of text"),
        ({"model": None}, "settings.model must be"),
        ({"steps": 0}, "steps: expected a whole number from 1"),
        ({"steps": 10**9}, "steps: expected a whole number from 1"),
        ({"steps": True}, "settings.steps must be a count"),
        ({"guidance": "3"}, "settings.guidance must be a number"),
        ({"guidance": 1e300}, "guidance: expected a number"),
        ({"size": [64]}, "size: expected pixels of a side, or"),
        ({"size": [64, 0]}, "height: expected a whole number"),
        ({"size": "big"}, "size: expected a whole number"),
        ({"gate": "maybe"}, "gate 'maybe': expected own or on or off"),
        ({"attach": "tape"}, "attach 'tape'"),
        ({"schedule": [[1, 2, 3]]}, "schedule: expected (timestep, factor) pairs"),
        ({"schedule": [["a"]]}, "must be a number"),
        ({"words": {"a": "b"}}, "must be a list"),
        ({"preserve": 1}, "preserve must be true, false or a text"),
        ({"unheard": 1}, "'unheard' is no setting of this version"),
        ({"pictures": []}, "found 0 pictures"),
        ({"pictures": [ENTRY] * 10_001}, "found 10001 pictures"),
        ({"pictures": [{"prompt": "x"}]}, "lacks noise_seed"),
        ({"pictures": [{**ENTRY, "noise_seed": -1}]}, "noise_seed must be a count"),
        ({"pictures": [{**ENTRY, "noise_seed": 2**63}]}, "noise_seed: expected a whole number"),
        ({"pictures": [{**ENTRY, "prompt": "x" * 20_001}]}, "a prompt has more than 20000 characters"),
        ({"pictures": [{**ENTRY, "clip_skip": 2}]}, "'clip_skip' is no setting of this version"),
        ({"concepts": [STEERED, STEERED]}, "a concept stands twice"),
        ({"concepts": [{**STEERED, "strength": "much"}]}, "expected a number"),
        ({"concepts": [{**STEERED, "strength": 1e9}]}, "expected a number"),
        ({"concepts": [{**STEERED, "strength": [1, 2]}]}, "has 2 strengths for 1 pictures"),
        ({"concepts": [{**STEERED, "strength": {"a": 1}}]}, "expected a number"),
        ({"concepts": [{**STEERED, "name": "../up"}]}, "such as no folder may have"),
        ({"concepts": [{**STEERED, "concept": 5}]}, "must be a line of text"),
        ({"versions": {"torch": 2}}, "must be a line of text"),
    ],
)
def test_settings_that_nobody_wrote_are_refused(damage: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        from_document({**PLAIN.to_dict(), **damage})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 500


@pytest.mark.parametrize("key", ["model", "steps", "guidance", "pictures"])
def test_settings_that_lack_something_are_refused(key: str) -> None:
    document = PLAIN.to_dict()
    del document[key]
    with pytest.raises(ArtifactError, match=f"lacks {key}"):
        from_document(document)


def test_what_changes_pixels_is_told_where_both_sides_know_it() -> None:
    here = Origin("cpu", "float32", None, None, "c" * 16, "d" * 16, {"torch": "2.1", "diffusers": "1"})
    assert MADE.origin.differences(here) == [
        "device cuda, now cpu",
        "dtype float16, now float32",
        "torch 2.0, now 2.1",
        "other weights or scheduler",
        "another mask",
    ]
    assert Origin().differences(here) == here.differences(here) == []
