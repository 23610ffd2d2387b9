"""What visitors bring is checked before it is read, and what they take is whole."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dsas_core import Concept, DSASError
from dsas_core.concept.samples import Samples
from dsas_core.learning.prompts.draft import draft
from dsas_core.learning.prompts.prompt_file import load_prompts
from dsas_core.learning.prompts.prompt_set import SIDES
from dsas_diffusion.ui.services import uploads
from dsas_diffusion.ui.services.picture_service import PictureService

Upload = Callable[..., str]


@pytest.fixture
def upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Upload:
    """Put a file where Gradio puts uploads."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))

    def put(name: str, content: bytes | str) -> str:
        path = tmp_path / "uploads" / "digest" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return put


def refused(found: Callable[[], Any], *expected: str) -> None:
    """One line that has these texts, and no path of the server."""
    with pytest.raises(DSASError) as error:
        found()
    told = str(error.value)
    for text in expected:
        assert text in told
    assert "\n" not in told
    assert len(told) < 600
    assert "/tmp" not in told


def test_prompts_come_as_yaml_or_json_without_who_judges(upload: Upload) -> None:
    content = {**draft("banana", "blurred banana"), "masks": {"segmentation": {"model": "user/huge"}}}
    for name in ("a.yaml", "b.yml", "c.JSON"):
        found = uploads.read_prompts(upload(name, json.dumps(content)))
        assert found.to_dict() == load_prompts(draft("banana", "blurred banana")).to_dict()


BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
PRODUCT = {
    **draft("banana", "blurred banana"),
    "placeholders": {f"p{i}": [f"v{i}-{j}" for j in range(20)] for i in range(6)},
    **{side: ["{p0} {p1} {p2} {p3} {p4} {p5}"] for side in SIDES},
    "source_unnamed": [],
    "held_out": {},
    "spans": [],
}
LONG = {"name": "x", "placeholders": {"p": ["x" * 1000] * 20}, **{side: ["{p}" * 1000] for side in SIDES}}


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.yaml", "a: !!python/object/apply:os.system ['touch /tmp/owned']", "has the tag !!python"),
        ("a.yaml", BOMB, "more than 10,000 texts"),
        ("a.yaml", "[" * 200_000, "within one another"),
        ("a.json", "[" * 200_000, "is not JSON"),
        ("a.json", '{"name": "a", "name": "b"}', "a key stands twice"),
        ("a.yaml", "- x\n" * 20_000, "more than 10,000 texts"),
        ("a.yaml", "name: [", "is not YAML"),
        ("a.yaml", "a: 2001-99-99", "is read as a date: put it in quotes"),
        ("a.yaml", "just text", "lacks name"),
        ("a.json", json.dumps({**draft("a", "b"), "private": True}), "is private, and the demo shows"),
        ("a.yaml", "x" * (256 * 2**10 + 1), "larger than 256 kB"),
        ("a.yaml", b"\xff\xfe\x00", "is not in UTF-16"),
        ("a.yaml", json.dumps(PRODUCT), "192,000,000 prompts, which is more than can be handled"),
        ("a.yaml", json.dumps(LONG), "more than can be handled"),
        ("a.yaml", json.dumps({**draft("a", "b"), "name": "../x"}), "must be letters"),
        ("a.yaml", json.dumps({**draft("a", "b"), "name": "x" * 65}), "up to 64 letters"),
        ("a.yaml", json.dumps({**draft("a", "b"), "source": {"<b>": "y" * 5000}}), "expected a list of texts"),
        ("a.py", "print()", "is not taken: expected a prompt file"),
        ("concept.safetensors", b"", "is not taken"),
    ],
)
def test_bad_prompt_files_are_refused(upload: Upload, name: str, content: bytes | str, expected: str) -> None:
    refused(lambda: uploads.read_prompts(upload(name, content)), expected)


def test_nothing_but_uploads_is_read(upload: Upload, tmp_path: Path) -> None:
    inside = Path(upload("good.yaml", json.dumps(draft("a", "b"))))
    secret = tmp_path / "secret.yaml"
    secret.write_text(inside.read_text())
    (inside.parent / "link.yaml").symlink_to(secret)
    (inside.parent / "folder").symlink_to(tmp_path)
    (inside.parent / "dir.yaml").mkdir()
    for path in (
        str(secret),
        f"{inside.parent}/../../secret.yaml",
        f"{inside.parent}/link.yaml",
        f"{inside.parent}/folder/secret.yaml",
        f"{inside.parent}/none.yaml",
        "secret.yaml",
        f"{inside}\0.yaml",
    ):
        refused(lambda path=path: uploads.read_prompts(path), "is not an upload")
    refused(lambda: uploads.read_prompts(f"{inside.parent}/dir.yaml"), "is not a file")
    refused(lambda: uploads.read_prompts(None), "no file came")
    assert uploads.read_prompts(str(inside)).name == "a-to-b"


@pytest.fixture
def saved(concepts: list[Concept], tmp_path: Path) -> dict[str, bytes]:
    """The two files of a concept."""
    folder = concepts[1].save_pretrained(tmp_path / "concept")
    return {name: (folder / name).read_bytes() for name in ("config.json", "concept.safetensors")}


def test_a_concept_goes_out_as_a_zip_and_comes_back(
    upload: Upload, service: PictureService, concepts: list[Concept]
) -> None:
    packed = zipfile.ZipFile(io.BytesIO(uploads.zip_concept(concepts[1])))
    assert {"patches/config.json", "patches/concept.safetensors", "patches/README.md"} == set(packed.namelist())
    names = ("config.json", "concept.safetensors")
    found = uploads.read_concept([upload(name, packed.read(f"patches/{name}")) for name in names])
    assert found == concepts[1]
    service.check(found)


def header(**tensors: Any) -> bytes:
    told = json.dumps(tensors).encode()
    return len(told).to_bytes(8, "little") + told


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (pickle.dumps({"a": 1}), "is a pickle"),
        (b"PK\x03\x04" + b"\0" * 60, "is a pickle"),
        (b"\xff" * 64, "is not safetensors"),
        (b"", "is not safetensors"),
        ((20).to_bytes(8, "little") + b"{not json at all....", "damaged header"),
        (header(a={"dtype": "I64", "shape": [2**40], "data_offsets": [0, 2**43]}), "holds I64"),
        (header(a={"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}), "damaged or cut short"),
        (b"x" * (64 * 2**20 + 1), "larger than 64 MB"),
    ],
)
def test_bad_tensors_are_refused(upload: Upload, saved: dict[str, bytes], content: bytes, expected: str) -> None:
    both = [upload("config.json", saved["config.json"]), upload("concept.safetensors", content)]
    refused(lambda: uploads.read_concept(both), "concept.safetensors", expected)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda config: "{" * 100_000, "is not JSON"),
        (lambda config: b"\xff", "no text"),
        (lambda config: "[]", "not a concept's"),
        (lambda config: json.dumps({**config, "evidence": json.loads("[" * 40 + "]" * 40)}), "more than 24 lists"),
        (lambda config: json.dumps({**config, "format": 99}), "format 99"),
        (lambda config: json.dumps({**config, "name": "../../x"}), "name '../../x'"),
        (lambda config: json.dumps({**config, "name": "<script>"}), "name '<script>'"),
        (lambda config: json.dumps({**config, "base": {}}), "on which unet it was learned"),
        (lambda config: json.dumps({**config, "interventions": []}), "no interventions"),
        (lambda config: json.dumps({**config, "base": None}), "base must be a mapping"),
        (lambda config: json.dumps({**config, "evidence": ["x"]}), "evidence must be a mapping"),
        (lambda config: json.dumps({**config, "evidence": {"sites": [1]}}), "evidence.sites[0] must be a mapping"),
        (lambda config: json.dumps({**config, "evidence": {"unit": "x"}}), "evidence.unit must be a mapping"),
        (
            lambda config: json.dumps({**config, "interventions": [{**config["interventions"][0], "maps": []}]}),
            "in every bin",
        ),
        (lambda config: " " * (4 * 2**20 + 1), "larger than 4 MB"),
    ],
)
def test_bad_configurations_are_refused(
    upload: Upload, saved: dict[str, bytes], change: Callable[[Any], bytes | str], expected: str
) -> None:
    config = change(json.loads(saved["config.json"]))
    both = [upload("config.json", config), upload("concept.safetensors", saved["concept.safetensors"])]
    refused(lambda: uploads.read_concept(both), expected)


def test_both_files_are_asked_for(upload: Upload, saved: dict[str, bytes]) -> None:
    config = upload("config.json", saved["config.json"])
    refused(lambda: uploads.read_concept(config), "only config.json came", "concept.safetensors")
    refused(lambda: uploads.read_concept(None), "nothing came")
    refused(lambda: uploads.read_concept([config, upload("x.pt", b"")]), "x.pt is not taken")


@pytest.mark.parametrize("strip", [b"", b"RIFF"], ids=["bare", "illustrated"])
def test_the_zip_that_is_offered_is_taken_back(upload: Upload, concepts: list[Concept], strip: bytes) -> None:
    concept = concepts[1]
    if strip:
        picture = io.BytesIO()
        Image.new("RGB", (8, 4)).save(picture, "WEBP")
        concept = replace(concept, samples=Samples(("a", "b"), (0.0, 1.0), strip=picture.getvalue()))
    path = upload("patches.zip", uploads.zip_concept(concept))
    assert uploads.read_concept([path]) == concept
    assert uploads.read_concept(path).samples == concept.samples
    refused(lambda: uploads.read_concept([path, upload("config.json", "{}")]), "choose the zip file alone")


def packed(**files: bytes) -> bytes:
    """A zip file."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, held in files.items():
            archive.writestr(name, held)
    return content.getvalue()


def encrypted(content: bytes) -> bytes:
    """A zip file whose first entry says that it is."""
    start, directory = content.index(b"PK\x03\x04"), content.index(b"PK\x01\x02")
    found = bytearray(content)
    found[start + 6] |= 1
    found[directory + 8] |= 1
    return bytes(found)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda files: b"", "no zip file"),
        (lambda files: b"PK\x03\x04" + b"\0" * 60, "no zip file"),
        (lambda files: packed(**files)[:-30], "no zip file"),
        (lambda files: encrypted(packed(**files)), "encrypted"),
        (lambda files: packed(**{"../config.json": files["config.json"]}), "holds '../config.json'"),
        (lambda files: packed(**{"/etc/config.json": files["config.json"]}), "config.json'"),
        (lambda files: packed(**{"a/b/config.json": files["config.json"]}), "holds 'a/b/config.json'"),
        (lambda files: packed(**files, **{"x.py": b"print()"}), "holds 'x.py'"),
        (lambda files: packed(**files, **{"other/README.md": b""}), "of one concept"),
        (lambda files: packed(**{"a/config.json": files["config.json"]}), "no concept.safetensors"),
        (lambda files: packed(**{"readme.txt": b"hello"}), "holds 'readme.txt'"),
        (lambda files: packed(**{f"{i}/README.md": b"" for i in range(17)}), "more than 16 files"),
        (lambda files: packed(**{**files, "README.md": b"\0" * (2**20 + 1)}), "is larger than 1 MB"),
        (lambda files: packed(**{**files, "config.json": b"[" * 2**21}), "is damaged"),
        (lambda files: packed(**{**files, "concept.safetensors": pickle.dumps(1)}), "is a pickle"),
    ],
)
def test_foreign_zips_are_refused(
    upload: Upload, saved: dict[str, bytes], make: Callable[[Any], bytes], expected: str, tmp_path: Path
) -> None:
    path = upload("patches.zip", make(saved))
    before = sorted(tmp_path.rglob("*"))
    refused(lambda: uploads.read_concept(path), expected)
    assert sorted(tmp_path.rglob("*")) == before, "nothing is unpacked"


def test_other_archives_are_not_taken(upload: Upload, saved: dict[str, bytes]) -> None:
    content = packed(**saved)
    for name in ("concept.rar", "config.json.gz", "x.tar.gz", "x.pt"):
        refused(lambda name=name: uploads.read_concept([upload(name, content)]), "is not taken: expected")
    for name in ("config.json", "concept.safetensors"):
        both = [upload(key, content if key == name else value) for key, value in saved.items()]
        refused(lambda both=both: uploads.read_concept(both), name, "is damaged")


def test_saving_overwrites_nothing_and_stays_in_its_folder(concepts: list[Concept], tmp_path: Path) -> None:
    saves, outside = tmp_path / "saves", tmp_path / "outside"
    outside.mkdir()
    assert uploads.save_concept(concepts[1], saves) == "patches"
    assert Concept.from_pretrained(saves / "patches") == concepts[1]
    refused(lambda: uploads.save_concept(concepts[1], saves), "is saved already")
    broken = replace(concepts[1], name="broken", evidence={"unit": "x"})
    refused(lambda: uploads.save_concept(broken, saves), "evidence.unit must be a mapping")
    assert not (saves / "broken").exists(), "the name is free for others"
    (saves / "words").symlink_to(outside)
    refused(lambda: uploads.save_concept(concepts[0], saves), "is saved already")
    refused(lambda: uploads.save_concept(replace(concepts[0], name="../x"), saves), "name '../x'")
    (tmp_path / "file").write_text("")
    refused(lambda: uploads.save_concept(concepts[0], tmp_path / "file"), "cannot be saved")
    assert list(outside.iterdir()) == []
