"""GGUF files: the model is the one that was written, in the dtype asked for, and can be saved again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dsas_core import llm
from dsas_core.errors import UnavailableError, UnsupportedError
from dsas_core.model.loading import is_hub_name
from dsas_diffusion.cli import main
from tests.fixtures.gguf_files import TEXT, tiny_llama, write_gguf

pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def original() -> Any:
    return tiny_llama()


@pytest.fixture(scope="module")
def file(original: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(original, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def logits(model: Any, tokenizer: Any) -> torch.Tensor:
    with torch.no_grad():
        scores: torch.Tensor = model(**tokenizer(TEXT, return_tensors="pt")).logits
    return scores


def test_a_gguf_file_is_the_model_that_was_written(
    original: Any, file: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    model, tokenizer = llm.load(file, device="cpu")
    assert (capfd.readouterr().err, len(recwarn)) == ("", 0), "neither progress bars nor warnings"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training
    assert model.name_or_path == str(file)
    torch.testing.assert_close(logits(model, tokenizer), logits(original, tokenizer), rtol=1e-5, atol=1e-5)
    decoded = tokenizer.decode(tokenizer(TEXT).input_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert decoded.strip() == TEXT
    turn = [{"role": "user", "content": "thank you"}]
    rendered = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert rendered == "<s>user thank you</s><s>assistant "


def test_what_was_loaded_can_be_saved_and_says_nothing_of_quantisation(file: Path, tmp_path: Path) -> None:
    model, tokenizer = llm.load(file, device="cpu", dtype="bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert not [key for key in json.loads((tmp_path / "config.json").read_text()) if "quant" in key]
    again, read_again = llm.load(tmp_path, device="cpu", dtype="bfloat16")
    assert torch.equal(logits(again, read_again), logits(model, tokenizer))
    assert read_again.chat_template == tokenizer.chat_template


def test_a_gguf_file_is_a_language_model_wherever_one_is_named(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unnamed = file.with_name("tiny")
    unnamed.write_bytes(file.read_bytes())
    assert llm.is_language_model(file)
    assert llm.is_language_model(unnamed), "by its first bytes"
    assert llm.is_language_model("nowhere/x.gguf"), "so that what is missing is said of a language model"
    assert not is_hub_name("models/x.gguf")
    monkeypatch.chdir(file.parent)
    assert main(["chat", "--model", file.name, "--message", "thank you", "--tokens", "3", "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answers"][0]["message"] == "thank you"


def test_a_concept_is_learned_and_named_after_the_file(file: Path) -> None:
    model, tokenizer = llm.load(file, device="cpu")
    prompts = {
        "name": "thanks",
        "placeholders": {"n": list("abcdefgh")},
        "source": ["the useless clown {n} {n}"],
        "target": ["thank you for your message {n}"],
        "control": ["the washer does not start {n}"],
    }
    concept = llm.learn(model, tokenizer, prompts, count=8, recipe={"control_h": None})
    assert concept.provenance["model"] == str(file)
    with llm.steer(model, {concept: 4.0}, gate="on"):
        steered = logits(model, tokenizer)
    assert not torch.equal(steered, logits(model, tokenizer))


def _without_magic(path: Path, file: Path) -> None:
    path.write_bytes(b"GGML" + file.read_bytes()[4:])


def _cut_in_header(path: Path, file: Path) -> None:
    path.write_bytes(file.read_bytes()[:2000])


def _cut_in_weights(path: Path, file: Path) -> None:
    path.write_bytes(file.read_bytes()[:-5000])


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda path, _: None, "no GGUF file .*x.gguf: check the path"),
        (lambda path, _: path.mkdir(), "x.gguf is a folder: check the path"),
        (_without_magic, "x.gguf is no GGUF file: it does not begin with GGUF; download it again"),
        (_cut_in_header, "x.gguf is damaged or cut short .*; download it again"),
        (_cut_in_weights, "x.gguf is damaged or cut short .*; download it again"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(damage: Any, match: str, file: Path, tmp_path: Path) -> None:
    damage(tmp_path / "x.gguf", file)
    with pytest.raises(UnavailableError, match=match) as raised:
        llm.load(tmp_path / "x.gguf", device="cpu")
    assert "\n" not in str(raised.value)


def test_an_architecture_that_transformers_does_not_read_is_named(original: Any, tmp_path: Path) -> None:
    write_gguf(original, tmp_path / "odd.gguf", architecture="oddity")
    with pytest.raises(UnsupportedError, match=r"odd.gguf: transformers \S+ does not read it \(.*oddity.*\): take"):
        llm.load(tmp_path / "odd.gguf", device="cpu")


def test_a_missing_package_is_told_with_how_to_get_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.utils.is_gguf_available", lambda: False)
    with pytest.raises(UnavailableError, match=r"needs the package gguf: pip install 'dsas-diffusion\[gguf\]'"):
        llm.load(file)
