"""What can be told of texts without any model."""

from __future__ import annotations

import re

_REPEATED = re.compile(r"\b(\w+) \1\b|\b(\w+ \w+ \w+) \2\b")


def degenerate(text: str) -> bool:
    """Whether a text is broken: it repeats a word or three words at once, is empty, or does not end a sentence."""
    text = text.strip()
    return not text or bool(_REPEATED.search(text)) or text[-1] not in ".?!"
