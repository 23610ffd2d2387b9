"""The model that ships: it draws what it is asked for, and concepts learned on it do what they say."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import dsas_diffusion as dsas
from dsas_diffusion import metrics
from dsas_diffusion.builtin.judge import Judge
from dsas_diffusion.builtin.scenes import NAMES, STYLES, vocabulary
from dsas_diffusion.cli import main
from dsas_diffusion.generation import UNCHANGED, change, pictures_of, seeds_for, settings_of
from dsas_diffusion.metrics import Wanted

pytestmark = pytest.mark.timeout(300)  # two concepts are learned in earnest

PROMPTS = {
    "name": "banana-blur",
    "placeholders": {
        "place": ["on the grass", "on a table", "in the snow", "on a white background", "on a blue background"],
        "other": ["dog", "car", "star", "hat"],
        "thing": ["lemon", "cat", "flower", "pear", "orange", "bus"],
    },
    "source": ["a banana {place}", "a banana and a {other} {place}"],
    "target": ["a blurred banana {place}", "a blurred banana and a {other} {place}"],
    "control": ["a {thing} {place}", "a {thing} and a {other} {place}", "a blurred {thing} {place}"],
}


@pytest.fixture(scope="module")
def pipe():
    return dsas.load_pipeline("builtin:emoji", device="cpu")


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load()


@pytest.fixture(scope="module", params=["text", "denoiser"])
def concept(pipe, request) -> dsas.Concept:
    return dsas.learn(pipe, PROMPTS, sites=request.param, count=20, steps=8)


def test_weights_are_small_enough_to_ship() -> None:
    from dsas_diffusion.load import BUILTIN

    folder = BUILTIN["builtin:emoji"]
    assert sum(path.stat().st_size for path in folder.rglob("*.safetensors")) <= 20e6
    assert sum(path.stat().st_size for path in (folder.parent / "judge").iterdir()) <= 3e6


def test_every_word_of_the_vocabulary_is_one_token(pipe) -> None:
    assert [word for word in vocabulary() if len(pipe.tokenizer.tokenize(word)) != 1] == []


def test_it_draws_what_is_asked_for(pipe, judge: Judge) -> None:
    prompts = [f"a {thing} on a white background" for thing in ("banana", "dog", "car", "pear", "cat", "heart")]
    prompts += ["a blurred banana on a blue background", "a pixelated dog on a blue background"]
    verdicts = judge.look(pictures_of(pipe, prompts, seeds_for(prompts, 0), settings_of(pipe)))
    asked = [next(word for word in prompt.split() if word in NAMES) for prompt in prompts]
    styles = [next((word for word in prompt.split() if word in STYLES), "sharp") for prompt in prompts]
    right = [v.styles.get(thing) == style for v, thing, style in zip(verdicts, asked, styles, strict=True)]
    assert np.mean(right) >= 0.75


def test_the_concept_changes_bananas_and_little_else(pipe, judge: Judge, concept: dsas.Concept) -> None:
    wanted, settings = Wanted("banana", "blurred"), settings_of(pipe)
    bananas = [f"a banana {place}" for place in ("on a green background", "on a pink background", "on the beach")] * 2
    others = ["a dog on a green background", "a frog and a hat on the beach", "a guitar at night", "a clock on a table"]
    arms = {}
    for arm, gate in (("base", "off"), ("vanilla", "on"), ("dsas", None)):
        with dsas.steer(pipe, {concept: 1.0}, gate=gate):
            arms[arm] = [pictures_of(pipe, p, seeds_for(p, 5), settings) for p in (bananas, others)]
    blurred = {arm: metrics.shown(judge, pictures[0], wanted).mean() for arm, pictures in arms.items()}
    moved = {arm: change(arms["base"][1], pictures[1]).mean() for arm, pictures in arms.items()}
    assert blurred["base"] == 0
    assert blurred["dsas"] >= 0.5
    assert moved["dsas"] < 0.5 * moved["vanilla"]


def test_strength_zero_off_and_detach_are_exact(pipe, concept: dsas.Concept) -> None:
    def drawn() -> torch.Tensor:
        noise = torch.Generator().manual_seed(3)
        return pipe("a banana and a dog", generator=noise, num_inference_steps=4, output_type="pt").images

    base = drawn()
    with dsas.steer(pipe, {concept: 0.0}) as steering:
        assert torch.equal(drawn(), base)
        steering.strengths[concept.name] = 1.0
        assert not torch.equal(drawn(), base)
    assert torch.equal(drawn(), base)
    with dsas.steer(pipe, {concept: 1.0}, gate="off"):
        assert torch.equal(drawn(), base)


def test_saved_concepts_are_equal(concept: dsas.Concept, tmp_path) -> None:
    concept.save_pretrained(tmp_path / "concept")
    assert dsas.Concept.from_pretrained(tmp_path / "concept") == concept


def test_pixelated_cars_from_the_command_line(pipe, judge: Judge, tmp_path, capsys) -> None:
    folder = tmp_path / "pixel-car"
    learned = ["learn", "--from", "car", "--to", "pixelated car", "--out", str(folder), "--count", "32", "--steps", "8"]
    assert main([*learned, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert (folder / "prompts.yaml").is_file()
    wanted, settings = Wanted("car", "pixelated"), settings_of(pipe)
    cars = [f"a car {place}" for place in ("on a green background", "on a pink background", "on a red background")] * 2
    others = ["a banana on a green background", "a frog and a pear on a table", "a clock at night"]
    asked = metrics.shown(judge, pictures_of(pipe, [wanted.in_words(p) for p in cars], range(6), settings), wanted)
    base = pictures_of(pipe, others, seeds_for(others, 1), settings)
    with dsas.steer(pipe, {folder: 1.0}):
        hits = metrics.shown(judge, pictures_of(pipe, cars, range(6), settings), wanted)
        moved = change(base, pictures_of(pipe, others, seeds_for(others, 1), settings))
    assert hits.mean() >= asked.mean() - 0.34
    assert (moved <= UNCHANGED).mean() >= 0.6
