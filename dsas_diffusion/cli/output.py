"""What commands put out: tables, JSON, and files that are written whole or not at all."""

from __future__ import annotations

import io
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from dsas_core.errors import DSASError
from dsas_core.utils.files import as_json, replace_folder

#: suffix -> format of the pictures that can be written
IMAGE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def one_line(message: object) -> str:
    """A message without its line breaks."""
    return " ".join(str(message).split())


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table, columns of text to the left and the others to the right; with lines in a terminal."""
    left = [all(isinstance(value, str) for value in column) for column in zip(*rows, strict=True)]
    cells = [[_cell(value) for value in row] for row in rows]
    if sys.stdout.isatty():
        _rich_table(headings, cells, left)
        return
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    for line in (headings, *cells):
        padded = [
            text.ljust(width) if to_left else text.rjust(width)
            for text, width, to_left in zip(line, widths, left, strict=True)
        ]
        print("  ".join(padded).rstrip())


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _rich_table(headings: Sequence[str], cells: Sequence[Sequence[str]], left: Sequence[bool]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    drawn = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading, to_left in zip(headings, left, strict=True):
        drawn.add_column(heading, justify="left" if to_left else "right", overflow="fold")
    for row in cells:
        drawn.add_row(*row)
    Console(markup=False, highlight=False).print(drawn)


# ---- files ----------------------------------------------------------------------------------------------------------


def free_folder(out: str | Path, ours: str, overwrite: bool) -> Path:
    """The folder to write, checked before the long work that fills it.

    Args:
        ours: a regular expression for the names of files that may be overwritten. Whatever else lies in the folder is
            not ours to lose.

    Raises:
        DSASError: something is there and may not be overwritten, or nothing can be written there.
    """
    folder = Path(out).expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise DSASError(f"{out} is a file: choose a folder")
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    foreign = [name for name in names if not re.fullmatch(ours, name)]
    if foreign:
        raise DSASError(f"{out} holds {foreign[0]}, which this command did not write: choose another folder")
    if names and not overwrite:
        raise DSASError(f"{out} is there and not empty: choose another folder, or pass --overwrite")
    check_writable(folder)
    return folder


def free_files(paths: Sequence[Path], overwrite: bool) -> None:
    """Raise a DSASError when a file is there and may not be overwritten, or cannot be written."""
    for path in paths:
        if path.is_dir():
            raise DSASError(f"{path} is a folder: choose another name")
        if path.exists() and not overwrite:
            raise DSASError(f"{path} is there: choose another name, or pass --overwrite")
    check_writable(paths[0])


def check_writable(path: Path) -> None:
    """Raise a DSASError when a file or folder cannot be written."""
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not parent.is_dir():
        raise DSASError(f"cannot write {path}: {parent} is a file")
    if not os.access(parent, os.W_OK):
        raise DSASError(f"cannot write {path}: no permission to write in {parent}")


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make `folder` hold these files and nothing else, whole or not at all."""
    with replace_folder(folder) as draft:
        for name, content in files.items():
            (draft / name).write_bytes(content)


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write these files; none of them when the disk does not hold all.

    Raises:
        DSASError: writing failed.
    """
    drafts: dict[Path, Path] = {}
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, draft = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
            drafts[path] = Path(draft)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
        for path, draft_path in drafts.items():
            draft_path.chmod(0o644)
            os.replace(draft_path, path)
    except OSError as error:
        raise DSASError(f"cannot write {error.filename or path}: {error.strerror or error}") from None
    finally:
        for draft_path in drafts.values():
            draft_path.unlink(missing_ok=True)


def encoded(picture: Image.Image, settings: Any, suffix: str = ".png") -> bytes:
    """A picture as a file's content; a PNG has the settings in its text chunk "dsas", as JSON."""
    options: dict[str, Any] = {"quality": 95}
    if suffix == ".png":
        note = PngImagePlugin.PngInfo()
        note.add_text("dsas", as_json(settings))
        options = {"pnginfo": note}
    content = io.BytesIO()
    picture.convert("RGB").save(content, IMAGE_FORMATS[suffix], **options)
    return content.getvalue()


def warn_unknown_words(words: Sequence[str]) -> str:
    """What is to be said of words that the model does not know."""
    return f"the model does not know {', '.join(words)}, and cannot heed it"
