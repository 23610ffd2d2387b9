"""Concepts that come with the package: they are all there, fit its models, and do what they say."""

from __future__ import annotations

import io
import tomllib
import warnings
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from PIL import Image

import dsas_core
import dsas_diffusion as dsas
from benchmarks.builtin_models import concepts
from dsas_core import DSASError, llm, shipped
from dsas_core.concept.builtin import FOLDER
from dsas_core.concept.card import render_card
from dsas_core.concept.concept import Concept
from dsas_core.concept.format import CARD, FILES
from dsas_core.concept.samples import STRIP
from dsas_core.learning.prompts.held_out import split_held_out
from dsas_core.learning.prompts.prompt_file import load_prompts
from dsas_core.llm.evaluation.toxicity import LexiconScorer
from dsas_diffusion.cli import main
from dsas_diffusion.generation.compare import UNCHANGED, change
from dsas_diffusion.generation.pictures import pictures_of, seeds_for
from dsas_diffusion.generation.settings import settings_of
from dsas_diffusion.pipelines.adapter import adapt
from dsas_diffusion.vision.judges import judge_from
from tests.fixtures.checks import assert_one_line, document_of

ROOT = Path(__file__).resolve().parents[2]
NAMES = [f"builtin:{name}" for name in concepts.CONCEPTS]
#: of prompts that learning never drew: one that shows the concept, one that does not
UNSEEN = {
    "builtin:banana-blur": ("a picture of a banana on a black background", "a lemon and a fox on a yellow background"),
    "builtin:dog-grey": ("a crown above a dog at night", "a picture of a fox on a black background"),
    "builtin:vehicles-grey": ("a picture of a bus on a yellow background", "a lion and a crown at night"),
    "builtin:animals-blurred": ("a picture of a fox on a black background", "a lemon and a crown at night"),
    "builtin:pear-grey": ("a picture of a pear on a black background", "a panda and a guitar at night"),
    "builtin:fruit-blurred": ("a picture of a strawberry on a black background", "a rabbit and a house at night"),
    "builtin:guitar-blurred": ("a picture of a guitar at night", "a lion and a clock at night"),
    "builtin:frog-blurred": ("a picture of a frog on a black background", "a lion and a clock at night"),
}
#: the folder of a concept, in kB at most
SIZE = 300


@pytest.fixture(scope="module")
def pipe() -> Any:
    return dsas.load_pipeline("builtin:emoji", device="cpu")


@cache
def model_of(name: str) -> tuple[Any, Any]:
    return llm.load(name, device="cpu")


def test_what_ships_is_what_the_table_says() -> None:
    found = shipped()
    assert sorted(one.name for one in found) == sorted(NAMES)
    for one in found:
        assert one.model == concepts.CONCEPTS[one.folder.name].model
        assert one.description == load_prompts(ROOT / "prompts" / f"{one.folder.name}.yaml").description
    assert [one.name for one in shipped("builtin:chat")] == ["builtin:address-to-trade", "builtin:rudeness"]
    assert len(shipped("builtin:emoji")) == len(found) - 2
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(concepts.CONCEPTS), "nothing half-written"


def test_the_readme_has_their_table() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert concepts.readme_with(readme) == readme, "make concepts"
    assert all(f"| `{name}` |" in readme for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_whole_and_calibrated(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    concept = Concept.from_pretrained(name)
    folder = next(one.folder for one in shipped() if one.name == name)
    texts = concepts.CONCEPTS[name.removeprefix("builtin:")].model == "builtin:chat"
    files = {path.name: path for path in folder.iterdir()}
    assert set(files) == set(FILES) - ({STRIP} if texts else set())
    assert sum(path.stat().st_size for path in files.values()) < SIZE * 1000
    assert files[CARD].read_text(encoding="utf-8") == render_card(concept, name)
    assert f'"{name}"' in files[CARD].read_text(encoding="utf-8")
    assert str(ROOT) not in "".join(files[file].read_text() for file in (CARD, "config.json"))

    assert concept.name == folder.name
    assert concept.provenance["prompts"] == load_prompts(ROOT / "prompts" / f"{concept.name}.yaml").to_dict(), (
        "make concepts"
    )
    assert concept.provenance["seed"] == concepts.SEED
    assert concept.range is not None
    low, high = concept.range
    assert low <= 0 < 1 <= high
    assert concept.evidence["unit"]["trials"]
    useful = [trial["strength"] for trial in concept.evidence["range"]["trials"] if trial["useful"]]
    assert {high, low} <= {0.0, *useful}
    assert any(site["auroc"] > 0.9 for site in concept.evidence["sites"])

    assert concept.samples is not None
    _, held_out = split_held_out(
        load_prompts(concept.provenance["prompts"]).draw(concept.provenance["count"], concepts.SEED)
    )
    if texts:
        assert len(concept.samples.texts) == 2
    else:
        assert concept.samples.prompts == (held_out["source"][0], held_out["control"][0])
        assert {low, 0.0, 1.0, high} >= set(concept.samples.strengths) >= {low, 0.0, high}
        assert Image.open(io.BytesIO(concept.samples.strip)).width > 500
    shown = document_of((main(["show", name, "--json"]), *capsys.readouterr()))
    assert shown["bytes"] == {file: path.stat().st_size for file, path in files.items()}


@pytest.mark.parametrize("name", UNSEEN)
def test_pictures_change_where_they_show_it(name: str, pipe: Any) -> None:
    concept = Concept.from_pretrained(name)
    prompts = list(UNSEEN[name])
    settings = settings_of(pipe, 8)  # of which half are late
    base = pictures_of(adapt(pipe), prompts, seeds_for(prompts, 3), settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with dsas.steer(pipe, {name: 1.0}):
            made = pictures_of(adapt(pipe), prompts, seeds_for(prompts, 3), settings)
    judge = judge_from(load_prompts(concept.provenance["prompts"]).judges[0], device="cpu")
    assert judge.target_scores([base[0], made[0]], [prompts[0]] * 2).tolist() == [0, 1]
    assert change(base[:1], made[:1])[0] > UNCHANGED
    assert change(base[1:], made[1:])[0] < UNCHANGED / 2


def test_rude_answers_turn_polite_and_calm_ones_stay() -> None:
    model, tokenizer = model_of("builtin:chat")
    angry, calm = "you useless clown! my washer does not start.", "my washer does not start. i waited for three days."

    def answer(message: str) -> str:
        turn = [{"role": "user", "content": message}]
        inputs = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        out = model.generate(**inputs, max_new_tokens=40, do_sample=False)
        return str(tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

    base = [answer(angry), answer(calm)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with llm.steer(model, {"builtin:rudeness": 1.0}):
            made = [answer(angry), answer(calm)]
    told = load_prompts(ROOT / "prompts" / "rudeness.yaml").judges[1]
    rude = LexiconScorer(told["words"]["any"])
    assert rude(base)[0] > 0.5
    assert rude(made)[0] < 0.5
    assert len(made[0].split()) > 5
    assert made[1] == base[1]


@pytest.mark.parametrize("name", ["builtin:nothing", "builtin:emoji", "builtin:", "builtin:../concepts/rudeness"])
def test_other_names_are_refused(name: str, pipe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for ask in (Concept.from_pretrained, lambda given: dsas.steer(pipe, {given: 1.0})):
        with pytest.raises(DSASError, match="no built-in concept") as caught:
            ask(name)
        assert all(known in str(caught.value) for known in NAMES)
    assert main(["generate", "--prompt", "a dog", "--concept", f"{name}=1"]) == 1
    assert_one_line(capsys.readouterr().err, "no built-in concept", *NAMES)


def test_commands_take_them(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    listed = document_of((main(["show", "--json"]), *capsys.readouterr()))
    assert [one["name"] for one in listed["builtin"]] == [one.name for one in shipped()]
    assert main(["show"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in NAMES)
    drawn = ["generate", "--prompt", "a dog", "--steps", "1", "--out", str(tmp_path / "dog.png"), "--json"]
    given = ["-c", "builtin:dog-grey=-0.5", "-c", "builtin:banana-blur=auto:0.1"]
    document = document_of((main([*drawn, *given]), *capsys.readouterr()))
    assert [(one["name"], one["strength"]) for one in document["concepts"]] == [
        ("dog-grey", -0.5),
        ("banana-blur", "auto:0.1"),
    ]
    assert main(["calibrate", "--concept", "builtin:dog-grey", "--in-place"]) == 1
    assert_one_line(capsys.readouterr().err, "pass --out")


def test_the_wheel_takes_them_along() -> None:
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["dsas_core"]
    package = Path(dsas_core.__file__).parent
    files = [PurePosixPath(path.relative_to(package)) for path in FOLDER.rglob("*") if path.is_file()]
    assert len(files) >= 3 * len(NAMES)
    assert [file for file in files if not any(file.match(pattern) for pattern in packaged)] == []


def test_writing_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    concept = Concept.from_pretrained("builtin:dog-grey")
    concepts.write_shipped("dog-grey", concept, tmp_path)
    assert Concept.from_pretrained(tmp_path / "dog-grey") == concept
    before = {path.name: path.read_bytes() for path in (tmp_path / "dog-grey").iterdir()}
    monkeypatch.setattr(concepts, "render_card", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(DSASError, match="disk full"):
        concepts.write_shipped("dog-grey", concept, tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / "dog-grey").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["dog-grey"]
