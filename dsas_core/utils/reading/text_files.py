"""Texts in files of the user's: their encoding is told by their first bytes, or is UTF-8; nothing is guessed."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from ...errors import PromptError

#: first bytes -> encoding; those of UTF-32 begin like those of UTF-16
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def encoding_of(start: bytes) -> str:
    """The encoding of a text, by its byte order mark.

    Args:
        start: its first bytes, four or more.

    Example:
        >>> encoding_of("ü".encode("utf-16")), encoding_of("ü".encode())
        ('utf-16', 'utf-8')
    """
    return next((encoding for mark, encoding in _MARKS.items() if start.startswith(mark)), "utf-8")


def decode(content: bytes, where: str) -> str:
    """The text in the bytes of a file: UTF-8, or UTF-16 or UTF-32 with a byte order mark.

    Args:
        content: the bytes.
        where: what they are, for errors.

    Raises:
        PromptError: another encoding; the message tells the byte, its line, and how to convert the file.

    Example:
        >>> decode("ü".encode("utf-16"), "a.yaml")
        'ü'
    """
    try:
        text = content.decode(encoding_of(content[:4]))
    except UnicodeDecodeError as error:
        raise not_decoded(where, content.count(b"\n", 0, error.start) + 1, error) from None
    if "\0" in text:
        raise not_utf_8(where, text.count("\n", 0, text.index("\0")) + 1)
    return text


def not_decoded(where: str, line: int | None, error: UnicodeDecodeError) -> PromptError:
    """The error of bytes that are in another encoding.

    Args:
        where: the file.
        line: the line of the byte, as far as it is known.
        error: what decoding raised.
    """
    name = error.encoding.upper().replace("_", "-")
    is_utf_8 = name.startswith("UTF-8")
    advice = "`iconv -f LATIN1 -t UTF-8`, if it is in Latin-1" if is_utf_8 else "`iconv -t UTF-8`, or an editor"
    byte = f"byte 0x{error.object[error.start]:02x}" if error.start < len(error.object) else "its end"
    return PromptError(
        f"{where}{f', line {line}' if line else ''} is not in {'UTF-8' if is_utf_8 else name}: {byte} "
        f"({error.reason}); "
        f"expected UTF-8, or UTF-16 with a byte order mark: convert it with {advice}"
    )


def not_utf_8(where: str, line: int) -> PromptError:
    """The error of a text with a zero byte."""
    return PromptError(
        f"{where}, line {line}: a byte is 0, as in UTF-16 without a byte order mark, or in files that are no text: "
        "expected UTF-8; save it as UTF-8, for example with `iconv -f UTF-16LE -t UTF-8`"
    )


def read_bytes(path: str | Path, limit: int, what: str, kind: str = "prompt file") -> bytes:
    """The bytes of a file.

    Args:
        path: the file.
        limit: bytes that it may have.
        what: what to do, and where there are examples, for errors.
        kind: of the file, for errors.

    Raises:
        PromptError: no such file, a folder, a file that cannot be read, or that is larger.
    """
    try:
        path = Path(path)
        if not path.is_file():
            raise PromptError(f"{path} is a folder: {what}" if path.is_dir() else f"no {kind} {path}: {what}")
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise PromptError(f"cannot read {path}: {error.strerror or error}; {what}") from None
    if len(content) > limit:
        raise PromptError(f"{path} has more than {limit // 2**20} MiB: use placeholders in place of long lists")
    return content


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """Open a text in UTF-8, or in UTF-16 or UTF-32 with a byte order mark; line breaks stay as they are.

    Args:
        path: the file, which may be too large to be read as a whole.

    Raises:
        PromptError: in the block that reads it: another encoding.
    """
    with open(path, "rb") as file:
        start = file.read(4)
    encoding = encoding_of(start)
    try:
        with open(path, encoding="utf-8-sig" if encoding == "utf-8" else encoding, newline="") as text:
            yield text
    except UnicodeDecodeError as error:  # its position is that in what was read last
        if not encoding.startswith("utf-8"):
            raise not_decoded(str(path), None, error) from None
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    line.decode()
                except UnicodeDecodeError as found:
                    raise not_decoded(str(path), number, found) from None
        raise
