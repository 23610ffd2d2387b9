"""Output of commands: tables, messages, and files that are written completely or not at all."""

from __future__ import annotations

import io
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from dsas_core.errors import DSASError
from dsas_core.utils.files import as_json, replace_folder

#: suffix -> format of the pictures that can be written
IMAGE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def one_line(message: object) -> str:
    """A message without its line breaks.

    Example:
        >>> one_line("no such\\nfolder")
        'no such folder'
    """
    return " ".join(str(message).split())


def print_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table, columns of text to the left and the others to the right; with lines in a terminal.

    Example:
        >>> print_table(("site", "h"), [("up.0", 0.25), ("mid", None)])
        site      h
        up.0  0.250
        mid       –
    """
    left = [all(isinstance(value, str) for value in column) for column in zip(*rows, strict=True)]
    cells = [[_cell(value) for value in row] for row in rows]
    if sys.stdout.isatty():
        _print_rich_table(headings, cells, left)
        return
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    for line in (headings, *cells):
        padded = [f"{text:{'<' if is_left else '>'}{n}}" for text, n, is_left in zip(line, widths, left, strict=True)]
        print("  ".join(padded).rstrip())


def print_records(columns: Sequence[str] | Mapping[str, str], records: Iterable[Mapping[str, object]]) -> None:
    """Print records as a table.

    Args:
        columns: keys of the records, or heading -> key.
        records: a row each; what a record lacks is printed as "–".

    Example:
        >>> print_records({"mean h": "mean_h"}, [{"mean_h": 0.5}, {}])
        mean h
         0.500
             –
    """
    keys = columns.values() if isinstance(columns, Mapping) else columns
    print_table(list(columns), [[record.get(key) for key in keys] for record in records])


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _print_rich_table(headings: Sequence[str], cells: Sequence[Sequence[str]], left: Sequence[bool]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    rich_table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading, is_left in zip(headings, left, strict=True):
        rich_table.add_column(heading, justify="left" if is_left else "right", overflow="fold")
    for row in cells:
        rich_table.add_row(*row)
    Console(markup=False, highlight=False).print(rich_table)


# ---- files ----------------------------------------------------------------------------------------------------------


def check_output_folder(out: str | Path, ours: str, overwrite: bool) -> Path:
    """Check the folder to write before the long work that fills it.

    Args:
        out: the folder; it need not exist.
        ours: a regular expression for the names of files that may be overwritten.
        overwrite: whether a folder that is not empty may be replaced.

    Returns:
        The folder's absolute path.

    Raises:
        DSASError: it is a file, holds something that we did not write, is not empty, or cannot be written.
    """
    folder = Path(out).expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise DSASError(f"{out} is a file: choose a folder")
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if foreign := [name for name in names if not re.fullmatch(ours, name)]:
        raise DSASError(f"{out} holds {foreign[0]}, which this command did not write: choose another folder")
    if names and not overwrite:
        raise DSASError(f"{out} is there and not empty: choose another folder, or pass --overwrite")
    check_writable(folder)
    return folder


def check_output_files(paths: Sequence[Path], overwrite: bool) -> None:
    """Check the files to write before the long work that fills them.

    Raises:
        DSASError: a file is there and may not be overwritten, is a folder, or cannot be written.
    """
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
    """Replace a folder by one with these files and nothing else; if writing fails, it stays as it was."""
    with replace_folder(folder) as draft:
        for name, content in files.items():
            (draft / name).write_bytes(content)


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write these files, or none of them where the disk cannot hold all.

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


def encode_picture(picture: Image.Image, settings: Any, suffix: str = ".png") -> bytes:
    """Encode a picture as the content of a file.

    Args:
        picture: the picture.
        settings: how it was drawn; a PNG has it in its text chunk "dsas", as JSON.
        suffix: of the file, a key of IMAGE_FORMATS.
    """
    options: dict[str, Any] = {"quality": 95}
    if suffix == ".png":
        note = PngImagePlugin.PngInfo()
        note.add_text("dsas", as_json(settings))
        options = {"pnginfo": note}
    content = io.BytesIO()
    picture.convert("RGB").save(content, IMAGE_FORMATS[suffix], **options)
    return content.getvalue()


def unknown_words_message(words: Sequence[str]) -> str:
    """The warning about words of a prompt that the model does not know.

    Example:
        >>> unknown_words_message(["zebra", "yak"])
        'the model does not know zebra, yak, and cannot heed it'
    """
    return f"the model does not know {', '.join(words)}, and cannot heed it"
