"""The command line, driven through `main` on a tiny random pipeline in a folder."""

from __future__ import annotations

import errno
import hashlib
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dsas_core import Auto, Concept, prompts
from dsas_diffusion import __version__, load
from dsas_diffusion.cli import doctor, output
from dsas_diffusion.cli.arguments import concept_and_strength, name_and_value
from dsas_diffusion.generation import Settings, pictures_of, seeds_for
from tests.diffusion.conftest import PHRASES

PROMPTS = ("--prompt", "a banana", "--prompt", "a dog on the grass")


def document_of(result: tuple[int, str, str]) -> Any:
    """The one JSON document of a command that succeeded without a word on standard error."""
    code, out, err = result
    assert (code, err) == (0, "")
    return json.loads(out)


def assert_one_line(err: str, *expected: str) -> None:
    assert err.count("\n") == 1
    assert "Traceback" not in err
    for text in expected:
        assert text in err


# ---- learn ----------------------------------------------------------------------------------------------------------


def test_a_learned_concept_holds_its_drafted_prompts(concept: str) -> None:
    written = {path.name for path in Path(concept).iterdir()}
    assert written == {"config.json", "concept.safetensors", "README.md", "strip.webp", "prompts.yaml"}
    drafted = prompts.read(Path(concept) / "prompts.yaml")
    told = Concept.from_pretrained(concept).provenance
    assert told["prompts"] == drafted.to_dict()
    assert told["prompts_sha256"] == hashlib.sha256((Path(concept) / "prompts.yaml").read_bytes()).hexdigest()
    assert told["command"].startswith("dsas learn --model ")


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


def test_what_cannot_be_shown_is_saved_all_the_same(
    dsas, concept: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = replace(Concept.from_pretrained(concept), provenance={})
    monkeypatch.setattr("dsas_diffusion.cli.learn.learn", lambda *_, **__: learned)
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
    for expected in ("- a {other} and a banana {place}", "balanced accuracy", "unit ", "drift", f"in {out}"):
        assert expected in text
    for expected in ("loading", "capturing", "fitting", "choosing the unit"):
        assert expected in progress
    steered = [item.site.root for item in Concept.from_pretrained(out).interventions if not item.watches]
    assert set(steered) == {"text_encoder"}


def test_learn_from_a_file_as_json_over_an_earlier_concept(dsas, model: str, concept: str, tmp_path: Path) -> None:
    out = tmp_path / "c"
    out.mkdir()
    (out / "config.json").write_text("old")
    file = Path(concept) / "prompts.yaml"
    arguments = ("--prompts", file, "--out", out, "--name", "other", "--steps", 2, "--count", 12, "--gate", "on")
    arguments += ("--option", "normalise=mean norm", "--no-strip")
    learned = document_of(dsas("learn", "--model", model, *arguments, "--overwrite", "--json"))
    assert Concept.from_pretrained(out).provenance["recipe"]["options"] == {"normalise": "mean norm"}
    assert (learned["name"], learned["gate"], learned["drafted"]) == ("other", "on", False)
    assert {path.name for path in out.iterdir()} == {"config.json", "concept.safetensors", "README.md"}


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

    monkeypatch.setattr("dsas_diffusion.cli.learn.learn", stopped)
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
    monkeypatch.setattr("dsas_diffusion.cli.learn.learn", lambda *_, **__: learned)
    monkeypatch.setattr(Path, "write_bytes", full)
    code, _, err = dsas("learn", "--model", model, *PHRASES, "--out", tmp_path / "c", "--overwrite", "--quiet")
    assert code == 1
    assert_one_line(err, "No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "c").iterdir()} == before


# ---- generate -------------------------------------------------------------------------------------------------------


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
    assert beside["concepts"] == [
        {"concept": concept, "name": "banana-to-blurred-banana", "strength": 0.0, "unit": beside["concepts"][0]["unit"]}
    ]
    texts, seeds = PROMPTS[1::2], seeds_for(PROMPTS[1::2], 3)
    expected = pictures_of(load.load_pipeline(model), texts, seeds, Settings(2, written["guidance"]))
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
    names = {"001.png", "001-base.png", "001-where-banana-to-blurred-banana.png", "compare.png", "generate.json"}
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
    assert "'other' and 'banana-to-blurred-banana' work against one another" in err.splitlines()[0]
    written = json.loads((out / "generate.json").read_text())
    assert written["combine"] == "blend"
    assert [one["strength"] for one in written["concepts"]] == [-1.0, "auto:0.3"]


# ---- show, doctor, methods, env -------------------------------------------------------------------------------------


def test_show(dsas, concept: str) -> None:
    shown = document_of(dsas("show", concept, "--json"))
    saved = Concept.from_pretrained(concept)
    assert shown["unit"] == saved.unit
    assert shown["sites"] == saved.evidence["sites"]
    assert shown["bytes"]["concept.safetensors"] == (Path(concept) / "concept.safetensors").stat().st_size
    parts = [part for item in saved.interventions for part in (*item.probes, *item.maps)]
    assert shown["parameters"] == sum(tensor.numel() for part in parts for tensor in part.tensors()) > 0
    code, text, _ = dsas("show", concept)
    assert code == 0
    for expected in (
        "balanced accuracy",
        "AUROC",
        "control h",
        "rank",
        "parameters",
        "concept.safetensors",
        "provenance",
    ):
        assert expected in text


def test_show_without_evidence(dsas, concept: str, tmp_path: Path) -> None:
    replace(Concept.from_pretrained(concept), evidence={}, provenance={}).save_pretrained(tmp_path / "bare")
    code, text, _ = dsas("show", tmp_path / "bare")
    assert code == 0
    assert "no evidence was recorded" in text


def test_doctor(dsas, model: str, concept: str) -> None:
    arguments = ("doctor", "--model", model, "--concept", concept, "--prompt", "a banana", "--steps", 2)
    found = document_of(dsas(*arguments, "--json"))
    interventions = Concept.from_pretrained(concept).interventions
    for site, item in zip(found["sites"], interventions, strict=True):
        assert site["reached"]
        assert 0 <= site["mean_h"] <= site["max_h"] <= site["weight"] + 1e-6
        assert site["dose"] == pytest.approx(0 if item.watches else found["unit"] * site["mean_h"])
        assert (site["relative_change"] > 0) == (site["mean_h"] > 0 and not item.watches)
    assert found["conclusions"]
    code, text, _ = dsas(*arguments, "--strength", 0)
    assert code == 0
    assert "The strength is 0" in text
    assert "0.00 of 255" in text


def test_doctor_tells_how_concepts_go_together(dsas, model: str, concept: str, tmp_path: Path) -> None:
    other = replace(Concept.from_pretrained(concept), name="other").save_pretrained(tmp_path / "other")
    command = ("doctor", "--model", model, "-c", concept, "-c", other, "-p", "a banana", "--steps", 2)
    found = document_of(dsas(*command, "--json"))
    assert found["beside"] == ["other"]
    assert {line["site"] for line in found["opposition"]} <= {site["site"] for site in found["sites"]}
    assert all(line["cosine"] == pytest.approx(1) and not line["opposed"] for line in found["opposition"])
    assert found["opposition"]
    assert "where shifts of two concepts go" in dsas(*command)[1]


def test_doctor_names_words_that_the_built_in_model_does_not_know(
    dsas, model: str, concept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(load.BUILTIN, "builtin:emoji", Path(model))
    prompt = "a xylophone, and a banana " + "on the grass " * 10
    found = document_of(dsas("doctor", "--concept", concept, "--prompt", prompt, "--steps", 1, "--json"))
    assert found["unknown_words"] == ["xylophone"]
    assert any("does not know xylophone" in line for line in found["conclusions"])
    assert any("cut off" in line for line in found["conclusions"])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"scores": (0.0, 0.01)}, "near 0 everywhere"),
        ({"scores": (0.1, 0.3)}, "low everywhere"),
        ({"scores": (1.0, 1.0)}, "near 1 on everything"),
        ({"scores": (0.2, 0.9)}, "1 of 1 sites fired"),
        ({"scores": (0.2, 0.9), "weight": 0.1}, "weights are small"),
        ({"scores": (0.2, 0.9), "pixel_difference": 0.3, "changed": False}, "dose is too small"),
        ({"scores": (0.2, 0.9), "reached": False}, "never reached"),
        ({"scores": (0.2, 0.9), "effect_reached_in_learning": False}, "expect less"),
    ],
)
def test_doctor_concludes(changes: dict[str, Any], expected: str) -> None:
    mean, highest = changes.pop("scores")
    site = {
        "site": "unet.x",
        "fired": highest >= doctor.FIRED,
        "mean_score": mean,
        "max_score": highest,
        "weight": changes.pop("weight", 0.9),
        "reached": changes.pop("reached", True),
    }
    document = {
        "strength": 1.0,
        "sites": [site],
        "pixel_difference": 9.0,
        "changed": True,
        "effect_reached_in_learning": True,
        "unknown_words": [],
        "tokens": 5,
        "tokens_read": 22,
    }
    assert any(expected in line for line in doctor.conclusions({**document, **changes}))


def test_methods_env_version_and_help(dsas) -> None:
    assert {"caa", "dsas", "on", "off"} <= {method["name"] for method in document_of(dsas("methods", "--json"))}
    assert "--gate" in dsas("methods")[1]
    told = dsas("methods")[1]
    assert "support=null" in told
    assert "gaps(threshold=0.1, soft=false)" in told
    assert document_of(dsas("env", "--json"))["torch"] == torch.__version__
    assert "torch threads" in dsas("env")[1]
    assert dsas("--version")[:2] == (0, f"dsas {__version__}\n")
    for command in ((), ("learn",), ("generate",), ("show",), ("doctor",), ("methods",), ("env",)):
        code, text, err = dsas(*command, "--help")
        assert (code, err) == (0, "")
        assert "usage: dsas" in text


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "code", "expected"),
    [
        ("", 2, "COMMAND"),
        ("bogus", 2, "invalid choice"),
        ("learn --out {new}", 2, "--prompts"),
        ("learn --from banana --out {new}", 2, "--from and --to"),
        ("learn --prompts x --to pear --out {new}", 2, "--from and --to"),
        ("learn --from banana --to pear --out {new} --steps 0", 2, "--steps"),
        ("learn --from banana --to pear --out {new} --seed -1", 2, "--seed"),
        ("learn --from banana --to banana --out {new}", 1, "nothing to learn"),
        ("learn --from banana --to pear --out {new} --count 3", 1, "at least 8"),
        ("learn --from banana --to pear --out {new} --method cca", 1, "did you mean caa"),
        ("learn --from banana --to pear --out {new} --gate caa", 1, "no gate named"),
        ("learn --from banana --to pear --out {new} --option unit", 2, "expected NAME=VALUE"),
        ("learn --from banana --to pear --out {new} --option normalise=[", 2, "the value as in YAML"),
        ("learn --from banana --to pear --out {new} --option normalise=max", 1, "expected none, unit or mean norm"),
        ("learn --from banana --to pear --out {new} --option top=3", 1, "CAA has no option 'top'; it has normalise"),
        ("learn --from banana --to pear --out {new} --recipe form", 2, "expected NAME=VALUE"),
        ("learn --from banana --to pear --out {new} --recipe shape=token", 1, "recipe has no field shape; it has"),
        ("learn --from banana --to pear --out {new} --recipe mode=best", 1, "learning mode 'best'"),
        ("learn --from banana --to pear --out {new} --masks numpy", 1, "numpy"),
        ("learn --model builtin:chat --prompts x --masks numpy:zeros --out {new}", 2, "name spans in the prompt file"),
        ("learn --from banana --to pear --out {new} --name a/b", 1, "name 'a/b'"),
        ("learn --prompts {new}/x.yaml --out {new}", 1, "no prompt file"),
        ("learn --from banana --to pear --out {concept}", 1, "--overwrite"),
        ("learn --from banana --to pear --out {model} --overwrite", 1, "model_index.json, which this command did not"),
        ("learn --from banana --to pear --out {concept}/config.json", 1, "is a file"),
        ("learn --from banana --to pear --out {concept}/config.json/x", 1, "is a file"),
        ("learn --model {new} --prompts {concept}/prompts.yaml --out {new}", 1, "no model"),
        ("learn --model {model} --prompts {concept}/prompts.yaml --out {new} --sites [", 1, "not a regular expression"),
        ("generate", 2, "--prompt"),
        ("generate -p x -c {concept}=much", 2, "expected a number"),
        ("generate -p x -c {concept}=inf", 2, "expected a number"),
        ("generate -p x -c {concept}=auto:1.5", 2, "a probability between 0 and 1, found 1.5"),
        ("generate -p x -c {concept}=auto:some", 2, "expected a number, found 'some'"),
        ("generate -p x --combine mix", 2, "--combine"),
        ("generate --model {model} -p x -c {concept}=auto --gate on --out {new}", 1, "the gate 'on' looks at nothing"),
        ("generate -p x --guidance nan", 2, "expected a number"),
        ("generate -p x --gate maybe", 2, "--gate"),
        ("generate -p x --compare --out {new}", 2, "--compare needs"),
        ("generate -p x -c {new}/none --out {new}", 1, "no concept"),
        ("generate -p x -c {concept} -c {concept}=2 --out {new}", 1, "two concepts"),
        ("generate -p x --out {concept}", 1, "did not write"),
        ("generate -p x --out {new}.gif", 1, "written as .png"),
        ("generate -p x --out {model}/model_index.json/a.png", 1, "is a file"),
        ("generate --model {model} -p x --device abacus --out {new}", 1, "device 'abacus'"),
        ("generate --model {concept} -p x --out {new}", 1, "no pipeline"),
        ("show {new}/none", 1, "no concept"),
        ("show {model}", 1, "no config.json"),
        ("doctor --model {model} --concept {concept}", 2, "--prompt"),
        ("doctor --model {model} --concept {concept} --prompt x --strength big", 2, "expected a number"),
    ],
)
def test_bad_input_is_one_line(
    dsas, model: str, concept: str, tmp_path: Path, argv: str, code: int, expected: str
) -> None:
    filled = [part.format(model=model, concept=concept, new=tmp_path / "new") for part in argv.split()]
    given = dsas(*filled, *(["--quiet"] if code == 1 else []))
    assert given[0] == code
    assert_one_line(given[2], "dsas", "error: ", expected)
    assert list(tmp_path.iterdir()) == []


def test_out_is_checked_before_the_model_is_loaded(
    dsas, concept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsas_diffusion.cli.arguments.load_pipeline", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "dir.png").mkdir()
    for out, why in (("a.png", "a.json is there"), ("dir.png", "is a folder"), ("", "did not write")):
        code, _, err = dsas("generate", "-p", "x", "-c", concept, "--out", f"{tmp_path}/{out}", "--quiet")
        assert code == 1
        assert_one_line(err, why)


def test_debug_shows_the_traceback(dsas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSAS_DEBUG", "1")
    with pytest.raises(ValueError, match="no such folder"):
        dsas("show", "./none")


def test_our_warnings_are_one_line_and_others_are_silent(
    dsas, concept: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warning(*_: object, **__: object) -> None:
        warnings.warn_explicit("sites were\nnever reached", UserWarning, "steer.py", 1, "dsas_diffusion.steer")
        warnings.warn_explicit("old", FutureWarning, "x.py", 1, "sklearn")
        raise output.DSASError("stop")

    monkeypatch.setattr("dsas_diffusion.cli.doctor.pipeline", warning)
    code, _, err = dsas("doctor", "-c", concept, "-p", "x")
    assert (code, err) == (1, "dsas: warning: sites were never reached\ndsas: error: stop\n")


# ---- pieces ---------------------------------------------------------------------------------------------------------


def test_a_concept_may_have_a_strength(tmp_path: Path) -> None:
    assert concept_and_strength("folder") == ("folder", 1.0)
    assert concept_and_strength("user/name=-0.5") == ("user/name", -0.5)
    (tmp_path / "a=b").mkdir()
    assert concept_and_strength(f"{tmp_path}/a=b") == (f"{tmp_path}/a=b", 1.0)
    assert concept_and_strength(f"{tmp_path}/a=b=2") == (f"{tmp_path}/a=b", 2.0)
    assert concept_and_strength("folder=auto") == ("folder", Auto())
    assert concept_and_strength("user/name=auto:0.3") == ("user/name", Auto(0.3))


@pytest.mark.parametrize(
    ("text", "value"),
    [("top=3", 3), ("top=0.5", 0.5), ("top=mean norm", "mean norm"), ("top=null", None), ("top=", None)],
)
def test_an_option_has_a_value_as_in_yaml(text: str, value: object) -> None:
    assert name_and_value(text) == ("top", value)


def test_json_is_strict() -> None:
    assert json.loads(output.as_json({"a": [float("nan"), 1.5, "ü"], "b": None})) == {"a": [None, 1.5, "ü"], "b": None}


def test_loading_is_quiet_and_puts_the_settings_back(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    from diffusers.utils import logging as of_diffusers
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging as of_transformers

    def settings() -> list[object]:
        libraries = (of_diffusers, of_transformers)
        levels = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
        return [*levels, are_progress_bars_disabled()]

    before = settings()
    load.load_pipeline(model)
    assert settings() == before
    assert capsys.readouterr().err == ""
