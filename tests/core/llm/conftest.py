"""A tokenizer for conversations with tiny models."""

from __future__ import annotations

import pytest

from tests.fixtures.language_models import PROMPTS, THINGS, Words


@pytest.fixture(scope="module")
def tokenizer() -> Words:
    """Knows every word of the prompts, so that its numbers stay below the vocabulary's size."""
    words = Words()
    for side in ("source", "target", "control"):
        for template in PROMPTS[side]:
            words(template.replace("user: ", "<user> ").replace("assistant: ", "<assistant> "))
    words(" ".join([*THINGS, *PROMPTS["placeholders"]["place"]]))
    assert len(words.words) < 61
    return words
