"""How the built-in picture model is trained: captions, held-out content, tokenizer; a training of a small network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from benchmarks.builtin_models import trainer
from benchmarks.builtin_models.optimise import TrainingRun, optimise
from benchmarks.builtin_models.picture_architecture import PRESETS, TEXT_POSITIONS, build_tokenizer
from benchmarks.builtin_models.picture_scenes import noun_phrase, sample_scene, vocabulary
from dsas_core.errors import ArtifactError
from dsas_diffusion.builtin.scenes import BACKGROUNDS, NAMES, RELATIONS, STYLES


@pytest.mark.parametrize(
    ("noun", "style", "trailing", "expected"),
    [
        ("banana", "sharp", False, "a banana"),
        ("apple", "sharp", False, "an apple"),
        ("grapes", "sharp", False, "grapes"),
        ("grapes", "blurred", False, "blurred grapes"),
        ("apple", "blurred", False, "a blurred apple"),
        ("apple", "grey", True, "an apple that is grey"),
        ("banana", "sharp", True, "a banana"),
    ],
)
def test_noun_phrases(noun: str, style: str, trailing: bool, expected: str) -> None:
    assert noun_phrase(noun, style, trailing=trailing) == expected


@given(seed=st.integers(0, 2**32 - 1), held_out=st.booleans())
def test_scenes_are_repeatable_described_in_known_words_and_kept_apart(seed: int, held_out: bool) -> None:
    scene = sample_scene(np.random.default_rng(seed), held_out=held_out)
    assert scene == sample_scene(np.random.default_rng(seed), held_out=held_out)
    assert scene.held_out == held_out
    assert set(scene.caption.split()) <= set(vocabulary())
    assert len(scene.caption.split()) <= TEXT_POSITIONS - 2
    assert scene.background in BACKGROUNDS
    assert all(item.thing in NAMES and item.style in STYLES for item in scene.items)
    for item in scene.items:
        assert item.style == "sharp" or item.style in scene.caption
        assert 0 < item.x < 1
        assert 0 < item.y < 1


@given(seed=st.integers(0, 2**32 - 1))
def test_what_is_said_about_places_is_true(seed: int) -> None:
    scene = sample_scene(np.random.default_rng(seed))
    assert (scene.relation is None) or len(scene.items) == 2
    if scene.relation:
        across, down = RELATIONS[scene.relation]
        first, second = scene.items
        assert (first.x - second.x) * across + (first.y - second.y) * down > 0.1
        assert scene.relation in scene.caption


def test_every_word_is_one_token_and_any_text_is_readable(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(tmp_path)
    for word in vocabulary():
        ids = tokenizer(word).input_ids
        assert len(ids) == 3, word
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == word
    unknown = tokenizer("Zeppelin, 7 ünïcode!").input_ids
    assert max(unknown) < len(tokenizer)
    assert len(tokenizer("a " * 50, padding="max_length", truncation=True).input_ids) == TEXT_POSITIONS


def test_a_tokenizer_that_is_built_again_is_the_same(tmp_path: Path) -> None:
    vocabularies = [build_tokenizer(tmp_path / str(i)).get_vocab() for i in range(4)]
    assert all(other == vocabularies[0] for other in vocabularies)


STEPS = 9


class StoppedError(Exception):
    pass


def trained(folder: Path, stop: int | None = None, **changes: Any) -> dict[str, torch.Tensor]:
    """The weights of a small network after its training; it is interrupted at step `stop`, if that is given."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16))
    run = replace(TrainingRun(PRESETS["cpu"], folder, 3, 0, 1, torch.device("cpu")), **changes)
    steps = 0

    def loss(rng: np.random.Generator) -> torch.Tensor:
        nonlocal steps
        if steps == stop:
            raise StoppedError
        steps += 1
        inputs = torch.from_numpy(rng.standard_normal((8, 16), np.float32)).to(torch.bfloat16)
        return (network(inputs) - inputs).float().pow(2).mean()

    optimise(run, "copy", network, loss, STEPS, 1e-2)
    return network.state_dict()


@pytest.fixture(autouse=True)
def _checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "CHECKPOINT_STEPS", 2)


def test_a_stopped_training_goes_on_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for folder in (whole, halves):
        folder.mkdir()
    expected = trained(whole)
    with pytest.raises(StoppedError):
        trained(halves, stop=5)
    with pytest.raises(ArtifactError, match="another run"):
        trained(halves, seed=4)
    found = trained(halves)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert [path.name for path in halves.iterdir()] == ["copy.safetensors"], "no checkpoint is left"
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load_file(halves / "copy.safetensors").items())


def test_a_finished_stage_is_not_trained_again(tmp_path: Path) -> None:
    expected = trained(tmp_path)
    again = trained(tmp_path, stop=0)
    assert all(torch.equal(again[name], expected[name]) for name in expected)
