"""Errors that the user can fix: each is one line that says what was found, what was expected, and the way out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

#: longest message, and longest value that a message quotes, in characters
LONGEST_MESSAGE, LONGEST_QUOTE = 500, 80


def shorten(text: str, limit: int) -> str:
    """A text without its middle, if it is longer than `limit` characters.

    Example:
        >>> shorten("a very long name", 9)
        'a ve…name'
    """
    if len(text) <= limit:
        return text
    end = (limit - 1) // 2
    return f"{text[: limit - 1 - end]}…{text[len(text) - end :]}"


def quote(value: object, limit: int = LONGEST_QUOTE) -> str:
    """A value of the user's as messages quote it: its `repr`, shortened.

    Example:
        >>> quote("one line")
        "'one line'"
    """
    try:
        return shorten(repr(value), limit)
    except ValueError:  # a whole number of more digits than Python prints
        return f"{type(value).__name__} of thousands of digits"
    except RecursionError:
        return f"{type(value).__name__} of very many levels"


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the known one that comes nearest, or nothing.

    Letter case, and what is in front of a colon or slash, makes no difference.

    Args:
        name: what the user gave.
        known: the names that exist.

    Example:
        >>> did_you_mean("Banana-blurr", ["builtin:banana-blur", "builtin:dog-grey"])
        '; did you mean builtin:banana-blur?'
        >>> did_you_mean("seven", ["builtin:banana-blur"])
        ''
    """
    bare = {_last_part(other): other for other in known}
    near = get_close_matches(_last_part(str(name)), bare, 1)
    return f"; did you mean {bare[near[0]]}?" if near else ""


def _last_part(name: str) -> str:
    return re.split(r"[:/\\]", name)[-1].lower()


class DSASError(ValueError):
    """Bad input of any kind; the base of all errors that this project raises on purpose.

    The message is one line of printable characters, whatever of the user's it quotes, and its middle is left out where
    it is too long to read. Commands print it and exit with 1; no half-written file is left behind.

    Args:
        message: what was found, what was expected, the way out. Quote what users gave with `quote`.

    Example:
        >>> from dsas_core import Concept
        >>> try:
        ...     Concept.from_pretrained("builtin:none")
        ... except DSASError as error:
        ...     type(error).__name__
        'UnavailableError'
    """

    def __init__(self, message: str = "") -> None:
        line = " ".join(message.split())
        printable = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
        super().__init__(shorten(printable, LONGEST_MESSAGE))


class PromptError(DSASError):
    """A prompt, prompt file or labelled data set that cannot be used."""


class ArtifactError(DSASError):
    """A concept's folder, or another file of this project, that is missing, damaged, or of an unknown format."""


class ModelMismatchError(DSASError):
    """A concept or setting that belongs to another model than the given one."""


class UnsupportedError(DSASError):
    """Something that is not supported, or not in this combination; the message names an alternative."""


class UnavailableError(DSASError):
    """Something that is missing: a package, a download, a part of a pipeline, a device."""
