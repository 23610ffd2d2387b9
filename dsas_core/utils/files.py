"""Writing files: folders that are replaced as a whole or not at all, and strict JSON."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import DSASError


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder` that replaces it when the block succeeds, and is deleted otherwise.

    Args:
        folder: the folder to write; its parents are created.

    Raises:
        DSASError: it cannot be written; what was there before is still there.

    Example:
        >>> with TemporaryDirectory() as parent:
        ...     with replace_folder(Path(parent, "results")) as draft:
        ...         _ = (draft / "a.txt").write_text("a")
        ...     [path.name for path in Path(parent, "results").iterdir()]
        ['a.txt']
    """
    folder = folder.absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {"prefix": f".{folder.name}-", "dir": folder.parent, "ignore_cleanup_errors": True}
        with TemporaryDirectory(**options) as name:
            draft, old = Path(name), Path(f"{name}-old")
            yield draft
            draft.chmod(0o755)
            if not folder.exists():
                os.replace(draft, folder)
                return
            os.replace(folder, old)
            try:
                os.replace(draft, folder)
            except OSError:
                os.replace(old, folder)
                raise
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise DSASError(f"cannot write {folder}: {error.strerror or error}") from None


def as_json(document: Any) -> str:
    """Strict JSON, indented by 2; numbers that are not finite become null.

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


def to_readable_json(document: Any, indent: int = 0) -> str:
    """JSON for people to read: every list or mapping that contains no other is on one line.

    Args:
        document: plain data.
        indent: spaces in front of every line but the first.

    Example:
        >>> print(to_readable_json({"a": [1, 2], "b": {}}))
        {
          "a": [1, 2],
          "b": {}
        }
    """
    values = document.values() if isinstance(document, dict) else document if isinstance(document, list) else ()
    if not any(isinstance(value, dict | list) for value in values):
        return json.dumps(document)
    pad, inner = " " * indent, " " * (indent + 2)
    items = [to_readable_json(value, indent + 2) for value in values]
    if isinstance(document, dict):
        items = [f"{json.dumps(key)}: {item}" for key, item in zip(document, items, strict=True)]
    opening, closing = "{}" if isinstance(document, dict) else "[]"
    return f"{opening}\n{inner}" + f",\n{inner}".join(items) + f"\n{pad}{closing}"
