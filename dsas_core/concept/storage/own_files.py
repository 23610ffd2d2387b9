"""Which files of a folder a concept's save wrote: what is not known to be ours, is never replaced.

The header of the tensors has a mark: the SHA-256 of the other files of the save, and of the tensors. Concepts
of earlier versions have none; theirs are the files that can be nobody else's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...errors import ArtifactError
from ...utils.saving.files import digest_of
from ...utils.saving.folders import names_in
from ..samples import STRIP
from .reading import CARD, CONFIG, MAX_HEADER, TENSORS

#: stands in the header until the digest of what is behind it is known, which is as long
_NO_DIGEST = "0" * 64
#: the first lines of a card
_CARD_BEGINS = b"---\nlibrary_name: dsas\n"


def serialise(tensors: Mapping[str, torch.Tensor], files: Mapping[str, bytes], version: int) -> bytes:
    """Tensors as safetensors, with the mark of a save.

    Args:
        tensors: by name.
        files: the other files of the save, by name.
        version: of the format.

    Example:
        >>> content = serialise({"a": torch.zeros(1)}, {"config.json": b"{}"}, version=2)
        >>> sorted(_metadata_of(content))
        ['data', 'dsas', 'files', 'format']
    """
    from safetensors.torch import save

    marks = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    mark = {"files": json.dumps(marks), "data": _NO_DIGEST}
    content = save(dict(tensors), metadata={"format": "pt", "dsas": str(version), **mark})
    start = 8 + int.from_bytes(content[:8], "little")
    header = content[:start].replace(_NO_DIGEST.encode(), _digest_of_data(content).encode())
    return b"".join((header, content[start:]))


def recognise_concept(folder: Path, overwrite: bool) -> dict[str, str]:
    """The files of a concept's folder that a save wrote -> their SHA-256 when it did.

    Args:
        folder: the folder to save into.
        overwrite: whether a concept that is there may be replaced.

    Raises:
        ArtifactError: nothing may be saved there.
    """
    if folder.is_dir() and not names_in(folder):
        return {}
    if not overwrite:
        raise ArtifactError(f"{folder} is there and not empty: choose another folder, or pass overwrite (--overwrite)")
    settings = _read_settings(folder / CONFIG)
    if settings is None:
        raise ArtifactError(
            f"{folder} holds something else than a concept, which overwrite would lose: choose another folder"
        )
    content = (folder / TENSORS).read_bytes() if (folder / TENSORS).is_file() else b""
    metadata = _metadata_of(content)
    known = {TENSORS: hashlib.sha256(content).hexdigest()} if "dsas" in metadata else {}
    if "data" in metadata:  # another digest than that of the file, where it was changed
        known = known if metadata["data"] == _digest_of_data(content) else {}
        return known | _marks_in(metadata)
    known[CONFIG] = digest_of(folder / CONFIG)
    if (folder / CARD).is_file() and (folder / CARD).read_bytes().startswith(_CARD_BEGINS):
        known[CARD] = digest_of(folder / CARD)
    if (folder / STRIP).is_file() and settings.get("samples") is not None:
        known[STRIP] = digest_of(folder / STRIP)
    return known


def _read_settings(path: Path) -> dict[str, Any] | None:
    """The settings of a concept, of whichever format; None where a file is none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        return None
    return content if isinstance(content.get("interventions"), list) and "name" in content else None


def _metadata_of(content: bytes) -> dict[str, str]:
    """The metadata in the header of safetensors; {} where it is none."""
    length = int.from_bytes(content[:8], "little")
    if not 2 <= length <= min(MAX_HEADER, len(content) - 8):
        return {}
    try:
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    except (ValueError, RecursionError, AttributeError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _digest_of_data(content: bytes) -> str:
    """The SHA-256 of safetensors without their header."""
    return hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()


def _marks_in(metadata: Mapping[str, str]) -> dict[str, str]:
    try:
        marks = json.loads(metadata["files"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    plain = isinstance(marks, dict) and all(
        isinstance(digest, str) and Path(name).name == name for name, digest in marks.items()
    )
    return marks if plain else {}
