"""Reading prompt files; `prompt_set` explains the format."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import PromptError, quote, shorten
from ...utils.reading.text_files import decode, read_bytes
from .checks import as_settings, as_texts, is_missing
from .prompt_set import KEYS, MAX_BYTES, OTHER, SIDES, PromptSet


def load_prompts(source: str | Path | Mapping[str, Any] | PromptSet) -> PromptSet:
    """Read and check a prompt file.

    Args:
        source: path of the YAML file, in UTF-8, or in UTF-16 with a byte order mark; or its content; a `PromptSet` is
            returned as it is.

    Raises:
        PromptError: no such file, no YAML, a key missing, unknown or twice, what is no text, too few prompts, source
            equal to target.

    Example:
        >>> load_prompts("prompts/banana-blur.yaml").name
        'banana-blur'
    """
    if isinstance(source, PromptSet):
        return source
    if isinstance(source, Mapping):
        return _parse(source, "prompts")
    if not isinstance(source, str | Path):
        raise PromptError(f"prompts: expected the path of a prompt file, or its content, found {quote(source)}")
    from ...utils.reading.plain_yaml import parse_yaml

    where = shorten(str(source), 200)
    raw = read_bytes(source, MAX_BYTES, "write a prompt file (see prompts/)")
    return _parse(parse_yaml(decode(raw, where), where), where, hashlib.sha256(raw).hexdigest())


def _parse(content: Any, where: str, sha256: str = "") -> PromptSet:
    if not isinstance(content, Mapping):
        raise PromptError(f"{where}: expected a mapping with name, source, target and control, found {quote(content)}")
    missing = [key for key in ("name", *SIDES) if is_missing(content.get(key))]
    unknown = sorted({shorten(str(key), 40) for key in content if key not in KEYS})
    faults = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(unknown)}"] * bool(unknown)
    if faults:
        raise PromptError(f"{where}: {shorten(' and '.join(faults), 200)}; known are {', '.join(sorted(KEYS))}")
    for key in ("name", "description"):
        if not isinstance(content.get(key), str | None):
            raise PromptError(f"{where}: {key} must be a text, found {quote(content[key])}: put it in quotes")
    private = content.get("private", False)
    if not isinstance(private, bool):
        raise PromptError(f"{where}: private must be true or false, found {quote(private)}")
    judges, masks = content.get("judge"), content.get("masks")
    judges = () if is_missing(judges) else judges if isinstance(judges, list | tuple) else (judges,)
    expected = "must map one kind of judge to its settings, or list several; found"
    try:
        return PromptSet(
            content["name"],
            **{key: as_texts(content[key], f"{where}: {key}") for key in SIDES},
            description=content.get("description") or "",
            placeholders=_text_lists(content, "placeholders", "values", where),
            evaluation=_text_lists(content, "evaluation", "templates", where),
            held_out=_text_lists(content, "held_out", "templates", where),
            **{key: as_texts(content[key], f"{where}: {key}") for key in OTHER if not is_missing(content.get(key))},
            judges=tuple(as_settings(judge, f"{where}: judge", expected) for judge in judges),
            masks={}
            if is_missing(masks)
            else as_settings(masks, f"{where}: masks", "must map one kind to its settings, found"),
            private=private,
            sha256=sha256,
        )
    except RecursionError:
        raise PromptError(
            f"{where}: too many lists or mappings are within one another: expected lists of texts"
        ) from None


def _text_lists(content: Mapping[str, Any], key: str, what: str, where: str) -> dict[str, tuple[str, ...]]:
    """Lists of texts by name, the format of placeholders and of the evaluation."""
    lists = content.get(key)
    if is_missing(lists):
        return {}
    if not isinstance(lists, Mapping):
        raise PromptError(f"{where}: {key} must map names to lists of {what}, found {quote(lists)}")
    found: dict[str, tuple[str, ...]] = {}
    for name, value in lists.items():
        if not isinstance(name, str):
            raise PromptError(f"{where}: {key}: the name {quote(name)} is no text: put it in quotes")
        same = unicodedata.normalize("NFC", name)
        if same in found:
            raise PromptError(f"{where}: {key}: the name {quote(name)} stands twice: rename one")
        found[same] = as_texts(value, f"{where}: {key.removesuffix('s')} {shorten(name, 40)}")
    return found
