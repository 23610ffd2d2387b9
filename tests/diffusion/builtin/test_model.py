"""The model that ships: it draws what it is asked for, and concepts learned on it do what they say."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import dsas_diffusion as dsas
from benchmarks.builtin_models.picture_scenes import vocabulary
from benchmarks.common import builtin_metrics
from benchmarks.common.builtin_metrics import StyleEdit
from dsas_diffusion.builtin.judge import Judge
from dsas_diffusion.builtin.scenes import NAMES, STYLES
from dsas_diffusion.cli import main
from dsas_diffusion.generation.compare import UNCHANGED, change
from dsas_diffusion.generation.pictures import pictures_of, seeds_for
from dsas_diffusion.generation.settings import settings_of
from dsas_diffusion.pipelines.adapter import adapt
from dsas_diffusion.pipelines.load import BUILTIN

pytestmark = pytest.mark.timeout(300)  # two concepts are learned in earnest

COUNT, STEPS = 12, 6
PLACES = ("on a green background", "on a pink background", "on the beach") * 2
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


@dataclass
class Learned:
    """A concept, what it should make of its thing, and prompts that it should leave alone."""

    concept: dsas.Concept
    wanted: StyleEdit
    others: Sequence[str]


def blurred_bananas(pipe: Any) -> Learned:
    """Learned in Python, from a prompt file, in the denoiser."""
    concept = dsas.learn(pipe, PROMPTS, sites="denoiser", count=COUNT, steps=STEPS)
    others = ["a dog on a green background", "a frog and a hat on the beach", "a guitar at night", "a clock on a table"]
    return Learned(concept, StyleEdit("banana", "blurred"), others)


def pixelated_cars(folder: Path) -> Learned:
    """Learned on the command line, from two phrases, in the text encoder."""
    learned = ["learn", "--from", "car", "--to", "pixelated car", "--sites", "text", "--out", str(folder), "--json"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main([*learned, "--count", str(COUNT), "--steps", str(STEPS)]) == 0
    assert json.loads(out.getvalue())
    assert (folder / "prompts.yaml").is_file()
    others = [
        "a banana on a green background",
        "a frog and a pear on a table",
        "a clock at night",
        "a dog on the beach",
    ]
    return Learned(dsas.Concept.from_pretrained(folder), StyleEdit("car", "pixelated"), others)


@pytest.fixture(scope="module")
def pipe() -> Any:
    return dsas.load_pipeline("builtin:emoji", device="cpu")


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load()


@pytest.fixture(scope="module", params=["bananas", pytest.param("cars", marks=pytest.mark.slow)])
def learned(pipe: Any, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Learned:
    if request.param == "bananas":
        return blurred_bananas(pipe)
    return pixelated_cars(tmp_path_factory.mktemp("learned") / "pixel-car")


def test_weights_are_small_enough_to_ship() -> None:
    folder = BUILTIN["builtin:emoji"]
    assert sum(path.stat().st_size for path in folder.rglob("*.safetensors")) <= 20e6
    assert sum(path.stat().st_size for path in (folder.parent / "judge").iterdir()) <= 3e6


def test_every_word_of_the_vocabulary_is_one_token(pipe: Any) -> None:
    assert [word for word in vocabulary() if len(pipe.tokenizer.tokenize(word)) != 1] == []


def test_it_draws_what_is_asked_for(pipe: Any, judge: Judge) -> None:
    prompts = [f"a {thing} on a white background" for thing in ("banana", "dog", "car", "pear", "cat", "heart")]
    prompts += ["a blurred banana on a blue background", "a pixelated dog on a blue background"]
    verdicts = judge.look(pictures_of(adapt(pipe), prompts, seeds_for(prompts, 0), settings_of(pipe)))
    asked = [next(word for word in prompt.split() if word in NAMES) for prompt in prompts]
    styles = [next((word for word in prompt.split() if word in STYLES), "sharp") for prompt in prompts]
    right = [v.styles.get(thing) == style for v, thing, style in zip(verdicts, asked, styles, strict=True)]
    assert np.mean(right) >= 0.75


def test_a_concept_changes_its_thing_and_little_else(pipe: Any, judge: Judge, learned: Learned) -> None:
    wanted, things = learned.wanted, [f"a {learned.wanted.thing} {place}" for place in PLACES]

    def drawn(prompts: Sequence[str]) -> list[Image.Image]:
        return pictures_of(adapt(pipe), prompts, seeds_for(prompts, 5), settings_of(pipe, 8))

    def shown(prompts: Sequence[str]) -> float:
        return float(builtin_metrics.detect_edit(judge, drawn(prompts), wanted).mean())

    base = drawn(learned.others)
    assert shown(things) == 0
    asked = shown([wanted.in_words(prompt) for prompt in things])
    with dsas.steer(pipe, {learned.concept: 1.0}):
        hits, moved = shown(things), change(base, drawn(learned.others))
    with dsas.steer(pipe, {learned.concept: 1.0}, gate="on"):
        vanilla = change(base, drawn(learned.others))
    assert hits >= max(0.5, asked - 0.34)
    assert moved.mean() < 0.5 * vanilla.mean()
    assert (moved <= UNCHANGED).mean() >= 0.6


def test_strength_zero_off_and_detach_are_exact(pipe: Any, learned: Learned) -> None:
    concept = learned.concept

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


def test_saved_concepts_are_equal(learned: Learned, tmp_path: Path) -> None:
    concept = learned.concept
    concept.save_pretrained(tmp_path / "concept")
    assert dsas.Concept.from_pretrained(tmp_path / "concept") == concept


def test_every_transformers_finds_its_text_encoder() -> None:
    """Under other names than these, those before 5.6 would make do with random weights, and say nothing."""
    with safe_open(BUILTIN["builtin:emoji"] / "text_encoder" / "model.safetensors", framework="pt") as file:
        assert all(name.startswith("text_model.") for name in file.keys())  # noqa: SIM118


@pytest.mark.parametrize("kind", ["StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"])
@pytest.mark.parametrize("auto", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_other_pipelines_are_made_of_its_parts_and_steered(pipe: Any, kind: str, auto: bool) -> None:
    """diffusers compares the class of the autoencoder with the one that a pipeline's signature names."""
    import diffusers

    name = {True: "AutoPipelineForInpainting", False: "AutoPipelineForImage2Image"}["Inpaint" in kind] if auto else kind
    other = getattr(diffusers, name).from_pipe(pipe)
    assert type(other).__name__ == kind
    assert other.vae is pipe.vae
    other.set_progress_bar_config(disable=True)
    source = Image.new("RGB", (64, 64), "green")
    mask = {"mask_image": Image.new("L", (64, 64), 255), "height": 64, "width": 64} if "Inpaint" in kind else {}

    def draw() -> np.ndarray:
        random = torch.Generator().manual_seed(0)
        made = other("a banana", image=source, strength=0.9, num_inference_steps=3, generator=random, **mask)
        return np.asarray(made.images[0], dtype=int)

    base = draw()
    with dsas.steer(other, {"builtin:banana-blur": 1.0}):
        assert np.abs(draw() - base).mean() > 0.2
    assert (draw() == base).all()


def test_its_autoencoder_is_copied_pickled_and_saved_as_what_it_is(pipe: Any, tmp_path: Path) -> None:
    from diffusers import AutoencoderKL, AutoencoderTiny, DiffusionPipeline

    for same in (copy.deepcopy(pipe.vae), pickle.loads(pickle.dumps(pipe.vae))):
        assert type(same) is type(pipe.vae)
        assert type(same) == AutoencoderKL  # noqa: E721 - as diffusers compares
        assert all(map(torch.equal, same.parameters(), pipe.vae.parameters()))
    pipe.save_pretrained(tmp_path)
    assert '"AutoencoderTiny"' in (tmp_path / "vae" / "config.json").read_text()
    assert type(DiffusionPipeline.from_pretrained(tmp_path).vae) is AutoencoderTiny
