"""What can be told of texts without any model."""

from __future__ import annotations

import re

_REPEATED = re.compile(r"\b(\w+) \1\b|\b(\w+ \w+ \w+) \2\b")


def repeats(text: str) -> bool:
    """Whether a text says a word or three words twice at once, or nothing at all."""
    return not text.strip() or bool(_REPEATED.search(text))


def degenerate(text: str) -> bool:
    """Whether a text that is whole is broken: it repeats itself, is empty, or does not end a sentence."""
    return repeats(text) or text.strip()[-1] not in ".?!"
