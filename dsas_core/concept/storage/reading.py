"""The files of a concept as they come, perhaps from somebody else: bytes, strict JSON, tensors, the picture.

Nothing is read that is no regular file, and nothing beyond a size. JSON is what RFC 8259 says and no more: keys occur
once, and NaN and infinity not at all. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import torch

from ...errors import ArtifactError, quote, shorten
from ..samples import STRIP

CONFIG, TENSORS, CARD = "config.json", "concept.safetensors", "README.md"
#: all files of a concept
FILES = (CONFIG, TENSORS, CARD, STRIP)

#: largest size of a file, in bytes; those that `learn` writes have a few MB at most
MAX_BYTES = {CONFIG: 2**26, TENSORS: 2**32, STRIP: 2**26}
#: largest size of the header of the safetensors, in bytes, and number of tensors in it
MAX_HEADER, MAX_TENSORS = 2**24, 200_000
#: deepest nesting of lists and mappings in the configuration; `learn` writes less than half of it
MAX_DEPTH = 24
#: largest whole number
MAX_INTEGER = 2**64
#: dtypes of tensors, as safetensors names them
DTYPES = {"F16", "BF16", "F32", "F64"}
#: what to do about a damaged file
AGAIN = "save or download it again"


def is_file(path: Path) -> bool:
    """Whether there is a regular file, or a link to one; False also where nobody may look."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def read_bytes(path: Path) -> bytes:
    """The content of a file of a concept.

    Raises:
        ArtifactError: no regular file, one that cannot be read, or one that is too large.
    """
    limit = MAX_BYTES[path.name]
    try:
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:  # a pipe is not waited for
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ArtifactError(f"{path} is not a file: {AGAIN}")
            content = file.read(limit + 1)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(content) > limit:
        raise ArtifactError(f"{path} is larger than {limit // 2**20} MB, which no concept is: {AGAIN}")
    return content


# ---- JSON -----------------------------------------------------------------------------------------------------------


def read_json(path: Path) -> Any:
    """What a JSON file of a concept holds.

    Raises:
        ArtifactError: it is not JSON, or holds what no concept needs, see `check_json`.
    """
    content = read_bytes(path)
    try:
        document = parse_json(content.decode())
        check_json(document)
    except UnicodeDecodeError:
        raise ArtifactError(f"{path} is damaged: it is no text; expected JSON, as `dsas learn` writes it") from None
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged: it is not JSON of a concept: {error}; {AGAIN}") from None
    return document


def parse_json(text: str | bytes) -> Any:
    """A JSON document whose keys occur once.

    Raises:
        ValueError: it is not JSON.
        RecursionError: it is nested too deeply.

    Example:
        >>> parse_json('{"a": 1, "a": 2}')
        Traceback (most recent call last):
        ValueError: it has the key 'a' twice
    """
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"it has the key {quote(next(key for key in keys if keys.count(key) > 1))} twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it has {name}, which is no number of JSON")


def check_json(document: Any) -> None:
    """Raise a ValueError where plain data is nested too deeply, or has texts or numbers that other programs choke on.

    Example:
        >>> check_json({"a": [1e400]})
        Traceback (most recent call last):
        ValueError: it has inf: expected finite numbers
    """
    level, depth = [document], 0
    while level:
        children: list[Any] = []
        for item in level:
            if isinstance(item, str):
                _check_text(item)
            elif isinstance(item, dict):
                any(map(_check_text, item))
                children += item.values()
            elif isinstance(item, list | tuple):
                children += item
            elif isinstance(item, float):
                if not math.isfinite(item):
                    raise ValueError(f"it has {item}: expected finite numbers")
            elif isinstance(item, int) and abs(item) > MAX_INTEGER:
                raise ValueError(f"it has {quote(item)}: expected numbers up to {MAX_INTEGER}")
        level, depth = children, depth + 1
        if depth > MAX_DEPTH and level:
            raise ValueError(f"it has more than {MAX_DEPTH} lists and mappings within one another")


def _check_text(text: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"it has half a character (a lone surrogate), in {quote(text)}") from None


# ---- tensors --------------------------------------------------------------------------------------------------------


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors in a safetensors file, float32.

    Raises:
        ArtifactError: a damaged file, or one that holds something else than finite numbers.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    content = read_bytes(path)
    _check_header(content, path)
    try:
        tensors = {name: tensor.float() for name, tensor in load(content).items()}
    except (SafetensorError, OSError, OverflowError, RuntimeError, TypeError, ValueError, MemoryError) as error:
        raise ArtifactError(f"{path} is damaged or cut short: {error}; {AGAIN}") from None
    if any(not bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise ArtifactError(f"{path} holds NaN or infinite values; learn the concept again")
    return tensors


def _check_header(content: bytes, path: Path) -> None:
    """Check the header before anything is parsed: refuse pickles, and files that are shorter than the header says."""
    damaged = f"{path} is damaged or cut short"
    length = int.from_bytes(content[:8], "little")
    if not 2 <= length <= min(MAX_HEADER, len(content) - 8) or content[8:9] != b"{":
        if content[:1] == b"\x80" or content[:4] == b"PK\x03\x04":
            raise ArtifactError(f"{damaged}: it is a pickle, which is never read; expected safetensors of `dsas learn`")
        raise ArtifactError(f"{damaged}: it is not safetensors; {AGAIN}")
    try:
        header = parse_json(content[8 : 8 + length])
        dtypes = {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        raise ArtifactError(f"{damaged}: it has a damaged header; {AGAIN}") from None
    if len(header) > MAX_TENSORS or not dtypes <= DTYPES:
        odd = shorten(", ".join(sorted(map(str, dtypes - DTYPES))), 80) or f"{len(header)} tensors"
        raise ArtifactError(f"{path} holds {odd}: expected up to {MAX_TENSORS} tensors of floats")


def refuse_unused(path: Path, names: Iterable[str], used: Iterable[str]) -> None:
    """Raise an ArtifactError where a file has tensors that no probe or map uses: it is of another save."""
    spare = sorted(set(names) - set(used))
    if spare:
        raise ArtifactError(
            f"{path} has {len(spare)} tensors that no probe or map in {CONFIG} uses, as {quote(spare[0])}: the two are "
            f"of different saves; {AGAIN}"
        )
