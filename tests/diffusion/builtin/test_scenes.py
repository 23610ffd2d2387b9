"""The world of the built-in model: captions, held-out content, tokenizer, and how the judge reads its own maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsas_diffusion.builtin.architecture import TEXT_POSITIONS, build_tokenizer
from dsas_diffusion.builtin.judge import Judge, JudgeNetwork
from dsas_diffusion.builtin.scenes import BACKGROUNDS, NAMES, RELATIONS, STYLES, noun_phrase, sample_scene, vocabulary


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


class Painted(JudgeNetwork):
    """A judge network that sees what it is told: things and styles per 2x2 block."""

    def __init__(self, things: torch.Tensor, styles: torch.Tensor) -> None:
        super().__init__()
        self.things, self.styles = things, styles

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        def maps(labels: torch.Tensor, count: int) -> torch.Tensor:
            return 20.0 * torch.nn.functional.one_hot(labels, count).permute(2, 0, 1).float()[None]

        return maps(self.things, 1 + len(NAMES)), maps(self.styles, len(STYLES))


def test_the_judge_names_what_covers_enough() -> None:
    things, styles = torch.zeros(32, 32, dtype=torch.long), torch.zeros(32, 32, dtype=torch.long)
    things[2:14, 4:12] = 1 + NAMES.index("banana")
    styles[2:14, 4:12] = STYLES.index("blurred")
    things[18:28, 16:28] = 1 + NAMES.index("dog")
    things[0, 30:] = 1 + NAMES.index("cat")  # two specks are no cat
    (verdict,) = Judge(Painted(things, styles)).look(np.zeros((1, 64, 64, 3), np.uint8))
    assert verdict.styles == {"banana": "blurred", "dog": "sharp"}
    assert verdict.things == {"banana", "dog"}
    assert verdict.centres["banana"] == pytest.approx((0.25, 0.25), abs=0.02)
    assert verdict.masks["dog"].shape == (64, 64)
    assert verdict.masks["dog"].sum() == pytest.approx(4 * 10 * 12, rel=0.15)


def test_the_judge_of_nothing() -> None:
    nothing = torch.zeros(32, 32, dtype=torch.long)
    judge = Judge(Painted(nothing, nothing))
    assert judge.look([]) == []
    (verdict,) = judge.look(np.zeros((1, 64, 64, 3), np.uint8))
    assert verdict.things == frozenset()


def test_the_network_of_the_judge_sees_half_the_size() -> None:
    things, styles = JudgeNetwork()(torch.zeros(2, 3, 64, 48))
    assert things.shape == (2, 1 + len(NAMES), 32, 24)
    assert styles.shape == (2, len(STYLES), 32, 24)


def test_a_judge_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="make train-builtin"):
        Judge.load(tmp_path)
