"""A visitor's own concepts as text, for their browser to keep: zip files in base64, which come back as uploads do."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any

from dsas_core.concept.concept import Concept
from dsas_core.errors import ArtifactError, DSASError

from .uploads import unzip_concept, zip_concept

#: letters of base64 that a browser keeps, of all concepts together; a call of the page holds them all
MAX_KEPT = 600_000


def pack(concepts: Iterable[Concept]) -> tuple[list[str], list[str]]:
    """Concepts as texts, and the names of those that do not fit.

    Example:
        >>> packed, left_out = pack([Concept.from_pretrained("builtin:banana-blur")])
        >>> [concept.name for concept in unpack(packed)[0]], left_out
        (['banana-blur'], [])
    """
    packed: list[str] = []
    left_out: list[str] = []
    for concept in concepts:
        text = base64.b64encode(zip_concept(concept)).decode()
        if sum(map(len, packed)) + len(text) > MAX_KEPT:
            left_out.append(concept.name)
        else:
            packed.append(text)
    return packed, left_out


def unpack(kept: Any) -> tuple[list[Concept], list[str]]:
    """The concepts that a browser has kept, and what is wrong with those that cannot be read.

    Args:
        kept: as `pack` made it; anybody may have written it.
    """
    concepts: list[Concept] = []
    problems: list[str] = []
    texts = kept if isinstance(kept, list) else []
    if sum(len(text) for text in texts if isinstance(text, str)) > MAX_KEPT:
        return [], [f"what this browser keeps has more than {MAX_KEPT} letters: bring your concepts again"]
    for text in texts:
        try:
            if not isinstance(text, str):
                raise ArtifactError("a kept concept is no text")
            concepts.append(unzip_concept(base64.b64decode(text, validate=True), "a kept concept"))
        except DSASError as error:
            problems.append(str(error))
        except ValueError:  # no base64, or no letters of it
            problems.append("a kept concept is damaged")
    return concepts, problems
