"""Writing: folders that are there whole or not at all, and strict JSON."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import DSASError


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A temporary sibling that becomes `folder` when the block succeeds, and disappears when it does not.

    Raises:
        DSASError: it cannot be written; what was there is there still.
    """
    folder = folder.absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise DSASError(f"cannot write {folder}: {error.strerror}") from None
    try:
        yield draft
        draft.chmod(0o755)
        if folder.exists():
            old = draft.with_name(f"{draft.name}-old")
            os.replace(folder, old)
            try:
                os.replace(draft, folder)
            except OSError:
                os.replace(old, folder)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(draft, folder)
    except OSError as error:
        raise DSASError(f"cannot write {folder}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def as_json(document: Any) -> str:
    """Strict JSON: what is not a finite number becomes null.

    Example:
        >>> as_json(float("nan"))
        'null'
    """

    def strict(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): strict(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [strict(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(strict(document), indent=2, ensure_ascii=False, allow_nan=False)


def as_lines(document: Any, indent: int = 0) -> str:
    """JSON to be read by people: every list or mapping that holds no other is on one line."""
    values = document.values() if isinstance(document, dict) else document if isinstance(document, list) else ()
    if not any(isinstance(value, dict | list) for value in values):
        return json.dumps(document)
    pad, inner = " " * indent, " " * (indent + 2)
    if isinstance(document, dict):
        items = [f"{json.dumps(key)}: {as_lines(value, indent + 2)}" for key, value in document.items()]
    else:
        items = [as_lines(value, indent + 2) for value in document]
    opening, closing = "{}" if isinstance(document, dict) else "[]"
    return f"{opening}\n{inner}" + f",\n{inner}".join(items) + f"\n{pad}{closing}"
