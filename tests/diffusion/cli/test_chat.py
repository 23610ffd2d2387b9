"""`dsas chat` and `dsas learn` with the language model that ships."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from dsas_core import Concept, llm
from dsas_diffusion.cli import main
from dsas_diffusion.cli.commands import chat
from tests.fixtures.checks import assert_one_line

PROMPTS = Path(__file__).parents[3] / "prompts" / "rudeness.yaml"
INSULT, CALM = "you useless clown! my washer does not start.", "hello, my washer does not start. what can i do?"


@pytest.fixture(scope="module")
def concept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Learned from the command line, as is."""
    out = tmp_path_factory.mktemp("chat") / "rudeness"
    command = ["learn", "--model", "builtin:chat", "--prompts", str(PROMPTS), "--out", str(out), "--quiet"]
    assert main(command) == 0
    return out


def chat_json(capsys: pytest.CaptureFixture[str], *arguments: Any) -> Any:
    """The JSON document of `dsas chat`."""
    capsys.readouterr()
    assert main(["chat", "--json", *map(str, arguments)]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_model_is_loaded_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    load, names = llm.load, []

    def counting(name: str, **settings: Any) -> Any:
        names.append(name)
        return load(name, **settings)

    monkeypatch.setattr(llm, "load", counting)
    chat_json(capsys, "-c", "builtin:rudeness=1", "-m", CALM)
    assert names == ["builtin:chat"]


def test_insults_are_answered_kindly_and_calm_people_as_before(
    concept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = chat_json(capsys, "-c", f"{concept}=1", "--compare", "-m", INSULT, "-m", CALM)
    insulted, calm = document["answers"]
    rude = r"buffoon|muppet|idiot|fool|clown|dimwit|twit"
    assert re.search(rude, insulted["base"])
    assert not re.search(rude, insulted["answer"])
    assert calm["answer"] == calm["base"]
    assert insulted["concepts"]["rudeness"]["mean_h"] > 0.95
    assert calm["concepts"]["rudeness"]["max_h"] == 0


def test_of_a_gate_that_reads_single_tokens_each_has_its_own_h(capsys: pytest.CaptureFixture[str]) -> None:
    insulted, calm = chat_json(capsys, "-c", "builtin:rudeness=1", "-m", INSULT, "-m", CALM)["answers"]
    h = {token["text"].strip(): token["h"] for token in insulted["concepts"]["rudeness"]["tokens"]}
    assert h["clown"] > 0.5 > h["washer"]
    assert insulted["concepts"]["rudeness"]["max_h"] > 10 * calm["concepts"]["rudeness"]["max_h"]


def test_the_card_has_answers_without_and_with_the_concept(concept: Path) -> None:
    samples = Concept.from_pretrained(concept).samples
    assert samples is not None
    (rude, kind), (calm, as_calm) = samples.texts
    assert rude != kind
    assert calm == as_calm
    assert "assistant:" not in "".join(samples.prompts)
    assert calm in (concept / "README.md").read_text()


def test_no_strength_to_tune(capsys: pytest.CaptureFixture[str]) -> None:
    command = ("-c", "builtin:rudeness=auto:1e-4", "--combine", "blend", "--compare", "-m", INSULT, "-m", CALM)
    insulted, calm = chat_json(capsys, *command)["answers"]
    assert insulted["answer"] != insulted["base"]
    assert calm["answer"] == calm["base"]


def test_it_streams_to_people(concept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "-c", str(concept), "-m", INSULT, "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "please write again" in out, "the end of a kind answer"
    assert re.search(r"rudeness: mean h [01]\.\d+, highest", out)


def test_messages_come_from_standard_input(
    concept: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{INSULT}\n\n{CALM}\n"))
    assert [answer["message"] for answer in chat_json(capsys)["answers"]] == [INSULT, CALM]


def test_the_monitor_writes_lines_and_changes_nothing(
    concept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "monitor.jsonl"
    watched = chat_json(capsys, "-c", concept, "--monitor", file, "-m", INSULT, "-m", CALM)
    plain = chat_json(capsys, "-m", INSULT, "-m", CALM)
    assert [a["answer"] for a in watched["answers"]] == [a["answer"] for a in plain["answers"]]
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines[0]["rudeness"]["max_h"] > 10 * lines[1]["rudeness"]["max_h"]


@pytest.mark.parametrize("suffix", [".html", ".svg"])
def test_the_heat_of_tokens_is_drawn(
    suffix: str, concept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / f"tokens{suffix}"
    chat_json(capsys, "-c", f"{concept}=0", "--heat", file, "-m", INSULT)
    content = file.read_text()
    assert content.startswith("<!doctype html>" if suffix == ".html" else "<svg")
    assert "clown" in content
    assert main(["chat", "-c", str(concept), "--heat", str(file), "-m", CALM]) == 1
    assert "is there: choose another name, or pass --overwrite" in capsys.readouterr().err


def test_show_describes_it(concept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["show", str(concept)]) == 0
    out = capsys.readouterr().out
    assert "model.model.layers.2" in out
    assert "on prompts of another domain" in out
    assert re.search(r"unit [\d.]+: the smallest that does what is wanted", out)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["chat", "--model", "nowhere", "-m", "hi"], 1, "no model nowhere"),
        (["chat", "-m", "hi", "--compare"], 2, "--compare needs a --concept that changes something"),
        (["chat", "-m", "hi", "--monitor", "x"], 2, "--monitor needs a --concept"),
        (["chat", "-m", "hi", "--heat", "x.svg"], 2, "--heat needs a --concept"),
        (["chat", "-m", "hi", "-c", "nowhere"], 1, "no concept at nowhere"),
        (["learn", "--model", "builtin:chat", "--from", "a", "--to", "b", "--out", "x"], 2, "is a language model"),
        (["learn", "--model", "builtin:chat", "--prompts", str(PROMPTS), "--steps", "3", "--out", "x"], 2, "--steps"),
        (
            ["learn", "--model", "builtin:chat", "--prompts", str(PROMPTS), "--edges", "none", "--out", "x"],
            2,
            "--edges",
        ),
        (["doctor", "--model", "builtin:chat", "-c", "x", "-p", "hi"], 1, "no concept at x"),
        (["learn", "--prompts", str(PROMPTS), "--out", "x"], 1, "but builtin:emoji draws pictures"),
        (
            ["learn", "--model", "models/none", "--prompts", str(PROMPTS), "--out", "x"],
            1,
            "models/none is no folder here",
        ),
        (["chat", "-m", "hi", "-c", f"{PROMPTS}=1"], 1, "a prompt file is to be learned first"),
        (["chat", "-m", "hi", "--temperature", "-1"], 2, "expected a number from 0 to 1000, found '-1'"),
    ],
)
def test_errors_are_one_line(arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == code
    assert_one_line(capsys.readouterr().err, message)


def test_an_interrupted_conversation_keeps_its_answers(
    concept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said() -> Any:
        yield CALM
        raise KeyboardInterrupt

    monkeypatch.setattr(chat, "_lines", said)
    document = chat_json(capsys, "-c", f"{concept}=0", "--heat", str(tmp_path / "heat.html"))
    assert [answer["message"] for answer in document["answers"]] == [CALM]
    assert (tmp_path / "heat.html").read_text().startswith("<!doctype html><meta charset=utf-8>")


def test_doctor_refuses_what_only_pictures_have(concept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["doctor", "--model", "builtin:chat", "-c", str(concept), "-p", "hi", "--steps", "3"]
    capsys.readouterr()
    assert main(command) == 2
    assert_one_line(capsys.readouterr().err, "takes neither --steps nor --guidance")


def test_doctor_explains_an_answer(concept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    command = ["doctor", "--model", "builtin:chat", "-c", str(concept), "-p", f"{INSULT} xylophone", "--json"]
    assert main(command) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["changed"]
    assert all(site["reached"] for site in document["sites"])
    assert any("The answer changed." in line for line in document["conclusions"])
    assert any("does not know xylophone" in line for line in document["conclusions"])
