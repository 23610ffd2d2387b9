"""Texts that repeat themselves, or do not end."""

from __future__ import annotations

import pytest

from dsas_core.llm.evaluation.repetition import degenerate, repeats


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("it is fine.", False),
        ("it is is fine.", True),
        ("go to the go to the shop.", True),
        ("it does not end", True),
        ("", True),
        ("that that", True),
        ("clean it with a cloth, then clean it with a cloth, then clean it with a cloth, then clean it.", True),
        ("clean it with a cloth, then rinse it with water, then dry it with a cloth.", False),
        ("is that so?", False),
    ],
)
def test_broken_texts(text: str, broken: bool) -> None:
    assert degenerate(text) == broken
    assert repeats(text) == (broken and text != "it does not end")
