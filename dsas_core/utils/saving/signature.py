"""Files that can tell that they are ours, and as we wrote them: the SHA-256 of all other bytes is among their bytes."""

from __future__ import annotations

import hashlib
import re
import zlib

#: what a file to be signed has in one place: as a comment, a text chunk, a value, …
UNSIGNED = f"dsas-sha256:{'0' * 64}"
#: the keyword of the text chunk that has it in a PNG, whose chunks end with checksums of their own
PNG_KEYWORD = "dsas-signature"

_SIGNATURE = re.compile(rb"dsas-sha256:([0-9a-f]{64})")
_IN_PNG = re.compile(b"tEXt" + PNG_KEYWORD.encode() + rb"\0dsas-sha256:([0-9a-f]{64})(.{4})", re.DOTALL)
_PNG = b"\x89PNG"


def sign(content: bytes) -> bytes:
    """Content whose last `UNSIGNED` is replaced by its signature.

    Example:
        >>> signed = sign(f"<p>a</p><!-- {UNSIGNED} -->".encode())
        >>> is_signed(signed), is_signed(signed.replace(b"a", b"b"))
        (True, False)
    """
    found = _find(content)
    if found is None:
        raise ValueError("content to be signed needs a place for the signature")
    begin, end = found.span(1)
    signature = _digest(content, found)
    signed = content[:begin] + signature + content[end:]
    if content.startswith(_PNG):
        chunk = signed[found.start() : end]
        signed = signed[:end] + zlib.crc32(chunk).to_bytes(4, "big") + signed[end + 4 :]
    return signed


def is_signed(content: bytes) -> bool:
    """Whether content is as `sign` returned it."""
    found = _find(content)
    return found is not None and found.group(1) == _digest(content, found)


def _find(content: bytes) -> re.Match[bytes] | None:
    pattern = _IN_PNG if content.startswith(_PNG) else _SIGNATURE
    return next(reversed([*pattern.finditer(content)]), None)  # texts of the user's may have others before


def _digest(content: bytes, found: re.Match[bytes]) -> bytes:
    """The SHA-256, in hexadecimal, of everything but the signature (and the checksum behind it)."""
    rest = content[: found.start(1)] + content[found.end(found.lastindex or 1) :]
    return hashlib.sha256(rest).hexdigest().encode()
