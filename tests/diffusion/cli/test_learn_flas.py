"""`dsas learn --method flas`: a network of many concepts, and a concept of a text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsas_core import Concept, llm
from dsas_diffusion.cli import main
from tests.fixtures.checks import assert_one_line

CONCEPTS = "be kind:\n  - [hello, thank you for your message.]\nbe brief:\n  - {prompt: hello, answer: 'no.'}\n"


def test_a_network_is_trained_and_makes_concepts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "concepts.yaml").write_text(CONCEPTS)
    learn = ["learn", "--method", "flas", "--model", "builtin:chat", "--json"]
    network, concept = str(tmp_path / "network"), str(tmp_path / "kind")
    options = ["--option", "steps=2", "--option", "batch=2", "--option", "layer=3"]
    assert main([*learn, "--concepts", str(tmp_path / "concepts.yaml"), *options, "--out", network]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["concepts"], document["examples"], document["layer"]) == (2, 2, 3)
    assert llm.flas.load(network).model == "builtin:chat"
    assert main([*learn, "--network", network, "--to", "be kind", "--out", concept]) == 0
    capsys.readouterr()
    loaded = Concept.from_pretrained(concept)
    assert (loaded.name, loaded.method, loaded.gate) == ("be kind", "flas", "on")
    assert main(["chat", "--json", "-c", f"{concept}=0.5", "-m", "hello"]) == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--concepts", "none.yaml"], "no file of concepts none.yaml"),
        (["--concepts", "none.yaml", "--gate", "on"], "neither gate nor text"),
        (["--network", "none"], "goes with --to"),
        (["--network", "none", "--to", "be kind"], "no folder of a FLAS network"),
        (["--prompts", "none.yaml"], "takes --concepts FILE"),
        (["--network", "none", "--to", "be kind", "--option", "rate=1"], "takes gating, steps"),
        (["--concepts", "none.yaml", "--option", "network=it"], "takes layer, steps, batch"),
        (["--concepts", "none.yaml", "--method", "caa"], "of the method flas"),
        (["--concepts", "none.yaml", "--model", "builtin:emoji"], "steers language models"),
    ],
)
def test_mistakes_are_told_in_one_line(
    given: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["learn", "--method", "flas", "--model", "builtin:chat", "--out", str(tmp_path / "out"), *given]
    assert main(command) in (1, 2)
    assert_one_line(capsys.readouterr().err, message)
