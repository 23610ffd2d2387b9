"""The command line, driven through `main`: what all commands share, and how errors are reported."""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import pytest
import torch

from dsas_core import Auto
from dsas_diffusion import __version__
from dsas_diffusion.cli import output
from dsas_diffusion.cli.argument_types import concept_and_strength, name_and_value
from dsas_diffusion.pipelines import load
from tests.fixtures.checks import assert_one_line, document_of


def test_methods_env_version_and_help(dsas) -> None:
    assert {"caa", "dsas", "on", "off"} <= {method["name"] for method in document_of(dsas("methods", "--json"))}
    assert "--gate" in dsas("methods")[1]
    text = dsas("methods")[1]
    assert "support=null" in text
    assert "gaps(threshold=0.1, soft=false)" in text
    assert document_of(dsas("env", "--json"))["torch"] == torch.__version__
    assert "torch threads" in dsas("env")[1]
    assert dsas("--version")[:2] == (0, f"dsas {__version__}\n")
    for command in ((), ("learn",), ("generate",), ("show",), ("doctor",), ("methods",), ("env",)):
        code, text, err = dsas(*command, "--help")
        assert (code, err) == (0, "")
        assert "usage: dsas" in text


# ---- bad input -------------------------------------------------------------------------------------------------------


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
        (
            "learn --from banana --to pear --out {new} --edges 500,",
            2,
            "argument --edges: expected a number from 0 to 1000, found ''",
        ),
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
        ("learn --prompts x --out {new} --keep-prompts some", 2, "--keep-prompts"),
        ("learn --from banana --to pear --out {new} --keep-prompts hash", 2, "--keep-prompts goes with --prompts"),
        ("learn --from banana --to pear --out {concept}", 1, "--overwrite"),
        ("learn --from banana --to pear --out {model} --overwrite", 1, "model_index.json, which this command did not"),
        ("learn --from banana --to pear --out {concept}/config.json", 1, "is a file"),
        ("learn --from banana --to pear --out {concept}/config.json/x", 1, "is a file"),
        ("learn --model {new} --prompts {concept}/prompts.yaml --out {new}", 1, "no model"),
        ("learn --model {model} --prompts {concept}/prompts.yaml --out {new} --sites [", 1, "not a regular expression"),
        ("generate", 2, "--prompt"),
        ("generate -p x -c {concept}=much", 2, "expected a number"),
        ("generate -p x -c {concept}=inf", 2, "expected a number"),
        ("generate -p x -c {concept}:0.5", 2, "banana=0.5? (see dsas generate"),
        ("generate -p x -c {concept}=auto:1.5", 2, "a probability between 0 and 1, found 1.5"),
        ("generate -p x -c {concept}=auto:some", 2, "found 'some'"),
        ("generate -p x --combine mix", 2, "--combine"),
        ("generate --model {model} -p x -c {concept}=auto --gate on --out {new}", 1, "the gate 'on' reads nothing"),
        ("generate -p x --guidance nan", 2, "expected a number"),
        ("generate -p x --gate maybe", 2, "--gate"),
        ("generate -p x --compare --out {new}", 2, "--compare needs"),
        ("generate -p x -c {new}/none --out {new}", 1, "no concept"),
        ("generate -p x -c {concept} -c {concept}=2 --out {new}", 1, "two concepts"),
        ("generate -p x --out {concept}", 1, "did not write"),
        ("generate -p x --out {new}.gif", 1, "written as .png"),
        ("generate -p x --out {new}.txt", 1, "written as .png"),
        ("sweep -p x -c {concept}=1", 2, "strengths are not given here"),
        ("calibrate -c {concept}=auto --in-place", 2, "strengths are not given here"),
        ("eval -c {concept}=2 --out {new}", 2, "strengths are not given here"),
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
    def warn_and_raise(*_: object, **__: object) -> None:
        warnings.warn_explicit("sites were\nnever reached", UserWarning, "steer.py", 1, "dsas_diffusion.steering.steer")
        warnings.warn_explicit("old", FutureWarning, "x.py", 1, "sklearn")
        raise output.DSASError("stop")

    monkeypatch.setattr("dsas_diffusion.cli.arguments.open_pipeline", warn_and_raise)
    code, _, err = dsas("doctor", "-c", concept, "-p", "x")
    assert (code, err) == (1, "dsas: warning: sites were never reached\ndsas: error: stop\n")


# ---- pieces ----------------------------------------------------------------------------------------------------------


def test_a_concept_may_have_a_strength(tmp_path: Path) -> None:
    assert concept_and_strength("folder") == ("folder", 1.0)
    assert concept_and_strength("user/name=-0.5") == ("user/name", -0.5)
    for name in ("a=b", "a:2"):
        (tmp_path / name).mkdir()
    assert concept_and_strength(f"{tmp_path}/a:2") == (f"{tmp_path}/a:2", 1.0)
    assert concept_and_strength("builtin:banana-blur") == ("builtin:banana-blur", 1.0)
    for given, meant in (("a:1e-3", "a=1e-3"), ("b:auto", "b=auto"), ("builtin:c:auto:0.3", "builtin:c=auto:0.3")):
        with pytest.raises(argparse.ArgumentTypeError, match=f"did you mean {meant}\\?"):
            concept_and_strength(given)
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


@pytest.mark.parametrize(
    "value", ["!!timestamp x", "!!bool x", "!!int", "2024-01-01", "!!set {a}", "!!binary aGk=", "["]
)
def test_an_option_has_no_other_value(value: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected NAME=VALUE, the value as in YAML"):
        name_and_value(f"top={value}")


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


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["generate", "-p", "\udce9t\udce9"], "is no text in UTF-8"),
        (["show", "a\0b"], "is no text in UTF-8"),
        (["generate", "--prompt=--"], "-- is no value"),
        (["generate", "-p--"], "-- is no value"),
        (
            ["generate", "-p", "x", "--steps", "2147483647"],
            "expected a whole number from 1 to 1000, found '2147483647'",
        ),
        (["generate", "-p", "x", "--steps", "9" * 400], "expected a whole number from 1 to 1000"),
        (["generate", "-p", "x", "--size", "2"], "expected a whole number from 8 to 8192, found '2'"),
        (["generate", "-p", "x", "--size", "1000000"], "expected a whole number from 8 to 8192"),
        (["generate", "-p", "x", "--seed", "9223372036854775808"], "expected a whole number from 0 to"),
        (["generate", "-p", "x", "--seed", "1_0"], "expected a whole number from 0 to"),
        (["generate", "-p", "x", "--guidance", "1e39"], "expected a number from -1000 to 1000"),
        (["generate", "-p", "x", "-c", "x=1e39"], "expected a number from -1e+06 to 1e+06, found '1e39'"),
        (["generate", "-p", "x", "--schedule", "linear:nan:0"], "expected a number from -1e+06 to 1e+06"),
        (["generate", "-p", "x", "--schedule", "table:1e9=1"], "expected a number from 0 to 1000"),
        (["generate", "-p", "x", "--out", " "], "expected something, found ' '"),
        (["generate", "-p", "x", "--dtype", "float8"], "invalid choice"),
        (["learn", "--out", "x", "--prompts", "x", "--option", "a=2024-99-99"], "the value as in YAML"),
        (["learn", "--out", "x", "--prompts", "x", "--option", "a=" + "[" * 3000], "the value as in YAML"),
        (["sweep", "-p", "x", "-c", "x", "--count", "1000000000"], "expected a whole number from 2 to 1000"),
        (["app", "--port", "65536"], "expected a whole number from 1 to 65535"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_values_out_of_bounds_are_wrong_usage(dsas, argv: list[str], expected: str) -> None:
    code, _, err = dsas(*argv)
    assert code == 2
    assert_one_line(err, "error: ", expected)
    assert len(err) < 600


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--device", "meta"], "device 'meta' cannot be used"),
        (["--device", "cuda:99"], "device 'cuda:99' cannot be used"),
        (["--device", "cpu:3"], "there is one cpu"),
        (["--size", "12"], "draws sides of a multiple of 8 pixels: try 8"),
        (["--size", "8000"], "and at most 16 times that is taken"),
        (["--variant", "fp16"], "no weights of variant 'fp16'"),
        (["--model", "x.ckpt"], "x.ckpt is a pickle"),
        (["--model", "m/x.safetensors"], "no file m/x.safetensors"),
    ],
    ids=str,
)
def test_what_the_model_cannot_do_is_one_line(
    dsas, model: str, tmp_path: Path, options: list[str], expected: str
) -> None:
    code, _, err = dsas("generate", "--model", model, "-p", "x", "--out", tmp_path / "new", "--quiet", *options)
    assert code == 1
    assert_one_line(err, expected)
    assert list(tmp_path.iterdir()) == []
