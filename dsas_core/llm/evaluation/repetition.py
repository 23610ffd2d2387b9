"""Checks of texts that need no model: repetitions and unfinished sentences."""

from __future__ import annotations

import re

from ...utils.repetition import goes_in_circles

_REPEATED = re.compile(r"\b(\w+) \1\b|\b(\w+ \w+ \w+) \2\b")


def repeats(text: str) -> bool:
    """Whether a text repeats a word, or three words, right away, goes in circles, or is empty.

    Example:
        >>> repeats("it is is fine."), repeats("it is fine.")
        (True, False)
    """
    return not text.strip() or bool(_REPEATED.search(text)) or goes_in_circles(text.split())


def degenerate(text: str) -> bool:
    """Whether a complete text repeats itself, is empty, or does not end with a sentence.

    Example:
        >>> degenerate("it does not end"), degenerate("it is fine.")
        (True, False)
    """
    return repeats(text) or text.strip()[-1] not in ".?!"
