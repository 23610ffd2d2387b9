"""What is checked of a prompt file's content, whatever it was read from."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from typing import Any

from ...errors import PromptError, quote

#: characters without a sign of their own that texts may hold
_ALLOWED = "\t\n\r\f"
#: lists and mappings within one another, in the settings of a judge
MAX_DEPTH = 24


def is_missing(value: Any) -> bool:
    """Whether nothing is given: null, or an empty text, list or mapping; false and 0 are something."""
    return value is None or (isinstance(value, str | list | tuple | Mapping) and not value)


def as_texts(value: Any, where: str) -> tuple[str, ...]:
    """A text or a list of texts as a tuple.

    Raises:
        PromptError: anything else, or a text that no prompt can be (`check_text`).
    """
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not texts:
        raise PromptError(f"{where}: expected a list of texts, found {quote(texts)}")
    for text in texts:
        if not isinstance(text, str):
            raise PromptError(
                f"{where}: expected a list of texts, found {quote(texts)}, in which {quote(text)} is no text: put it "
                "in quotes"
            )
        check_text(text, where)
    return tuple(texts)


def check_text(text: str, where: str) -> None:
    """Raise an error for a text in which nothing is seen, or with characters that no text has.

    Raises:
        PromptError: an empty text, only spaces or invisible characters, a control character, half a character.

    Example:
        >>> check_text("def f():\\n\\treturn 1", "source")
    """
    if text.isprintable() and text and not text.isspace():
        return
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs") and character not in _ALLOWED:
            kind = "half a character" if unicodedata.category(character) == "Cs" else "a control character"
            raise PromptError(f"{where}: {quote(text)} holds {kind}, U+{ord(character):04X}: leave it out")
    if not any(character.isprintable() and not character.isspace() for character in text):
        raise PromptError(f"{where}: expected a list of texts, found {quote(text)}, in which nothing is to be read")


def as_settings(value: Any, where: str, expected: str) -> dict[str, Any]:
    """One kind of judge, or of masks, and its settings: plain data that JSON holds as it is.

    Raises:
        PromptError: anything else.
    """
    if not isinstance(value, Mapping) or len(value) != 1:
        raise PromptError(f"{where} {expected} {quote(value)}")
    _check_plain(value, where)
    return dict(value)


def _check_plain(value: Any, where: str, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise PromptError(f"{where}: more than {MAX_DEPTH} lists or mappings are within one another: take some away")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise PromptError(f"{where}: expected keys that are texts, found {quote(key)}: put it in quotes")
            _check_plain(key, where, depth)
            _check_plain(item, where, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_plain(item, where, depth + 1)
    elif isinstance(value, str):
        if not value.isascii() and any(unicodedata.category(character) == "Cs" for character in value):
            raise PromptError(f"{where}: {quote(value)} holds half a character: leave it out")
    elif isinstance(value, float) and not math.isfinite(value):
        raise PromptError(f"{where}: expected finite numbers, found {value}")
    elif isinstance(value, int) and abs(value) > 2**63:
        raise PromptError(f"{where}: expected numbers below 2^63, found {quote(value)}")
    elif value is not None and not isinstance(value, int | float):
        raise PromptError(
            f"{where}: expected texts, numbers, true, false, null, lists and mappings, found {quote(value)}, "
            f"a {type(value).__name__}"
        )
