"""Hints on prompts: each thing that goes wrong is told, and good prompts are left in peace."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsas_core.learning.prompts.draft import draft
from dsas_core.learning.prompts.hints import hints
from dsas_core.learning.prompts.prompt_file import load_prompts

PLACES = ("grass", "table", "beach", "snow", "road", "hill", "roof", "boat")
GOOD = {
    "source": [f"a banana on the {place}" for place in PLACES],
    "target": [f"a blurred banana on the {place}" for place in PLACES],
    "control": [f"a {look} dog on the {place}" for place in PLACES for look in ("big", "blurred")],
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"source": GOOD["source"][:5]}, "Too few: source has 5 prompts, 3 more needed."),
        ({"control": []}, "Too few: control has 0 prompts, 8 more needed."),
        ({"source": GOOD["source"] + [f"{text} at night" for text in GOOD["source"]] * 2}, "says the same twice (8 of"),
        ({"target": GOOD["target"] + [f"{t} {i}" for t in GOOD["target"] for i in range(2)]}, "One-sided: 8 prompts"),
        ({"target": [text.upper() for text in GOOD["source"]]}, "the same prompts: there is nothing to learn"),
        ({"control": GOOD["control"] + GOOD["source"][:2]}, "“a banana on the grass” and 1 more are on both sides"),
        ({"control": ["we sing"] * 8}, "No hard negatives: no control shares a word with a source"),
        ({"control": GOOD["control"][::2]}, "no control shows “blurred” on something else"),
        ({"source": [*GOOD["source"], "very " * 60]}, "has 60 words"),
    ],
)
def test_what_is_wrong_is_told(changes: dict[str, list[str]], expected: str) -> None:
    assert any(expected in hint for hint in hints({**GOOD, **changes}))


def test_good_prompts_and_drafts_are_left_in_peace() -> None:
    assert hints(GOOD) == []
    for source, target in (("banana", "blurred banana"), ("dog", "cat"), ("car", "car in the snow")):
        assert hints(load_prompts(draft(source, target)).draw(8)) == []


def test_texts_for_language_models_may_be_long() -> None:
    assert hints({**GOOD, "source": [*GOOD["source"], "very " * 60]}, pictures=False) == []


@pytest.mark.parametrize("name", ["banana-blur", "dog-to-cat", "fruit-to-pear", "red-to-blue"])
def test_shipped_prompts_are_left_in_peace(name: str) -> None:
    assert hints(load_prompts(Path("prompts") / f"{name}.yaml").draw(48)) == []
