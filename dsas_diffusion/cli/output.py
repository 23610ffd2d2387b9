"""Output of commands: tables, messages, and files that are written completely or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dsas_core.errors import DSASError, shorten
from dsas_core.utils.saving import files as files_of_core
from dsas_core.utils.saving.files import as_json, check_replaceable, writing
from dsas_core.utils.saving.folders import names_in, settle
from dsas_core.utils.saving.signature import PNG_KEYWORD, UNSIGNED, is_signed, sign

from ..drawing.picture_files import SIGNATURE


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


def check_output_folder(
    out: str | Path, ours: str, overwrite: bool, recognise: Callable[[Path], Mapping[str, str]] | None = None
) -> Path:
    """Check the folder to write before the long work that fills it.

    Args:
        out: the folder; it need not exist.
        ours: a regular expression for the names of files that may be overwritten.
        overwrite: whether what an earlier run wrote there may be replaced.
        recognise: raises a DSASError where files of these names are of something else.

    Returns:
        The folder's absolute path.

    Raises:
        DSASError: it is a file, holds something that we did not write, is not empty, or cannot be written.
    """
    with writing(Path(out)):
        folder = Path(out).expanduser().resolve()
        if folder.exists() and not folder.is_dir():
            raise DSASError(f"{out} is a file: choose a folder")
        settle(folder)
        names = names_in(folder)
        if foreign := [name for name in names if not re.fullmatch(rf"({ours})(\.old\d*)?", name)]:
            raise DSASError(
                f"{out} holds {shorten(foreign[0], 80)}, which this command did not write: choose another folder"
            )
        if names and not overwrite:
            raise DSASError(f"{out} is there and not empty: choose another folder, or pass --overwrite")
        if names and recognise:
            recognise(folder)
        check_writable(folder / "any")
    return folder


def check_output_files(paths: Sequence[Path], overwrite: bool) -> None:
    """Check the files to write before the long work that fills them.

    Raises:
        DSASError: a file is there and may not be overwritten, is a folder, or cannot be written.
    """
    for path in paths:
        with writing(path):
            if path.is_dir():
                raise DSASError(f"{path} is a folder: choose another name")
            if path.exists() and not overwrite:
                raise DSASError(f"{path} is there: choose another name, or pass --overwrite")
            target = Path(os.path.realpath(path))
            check_replaceable(target)
            check_writable(target)


def check_writable(path: Path) -> None:
    """Raise a DSASError when a file or folder cannot be made."""
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not parent.is_dir():
        raise DSASError(f"cannot write {path}: {parent} is a file")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise DSASError(f"cannot write {path}: no permission to write in {parent}")


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write these files in this order, or none of them; what is there and not ours is kept under another name.

    Raises:
        DSASError: writing failed.
    """
    files_of_core.write_files(files, is_ours)


def is_ours(path: Path) -> bool:
    """Whether a file is one that we wrote, and as we wrote it.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "generate.json")
        >>> _ = file.write_bytes(encode_settings({"seed": 0}))
        >>> is_ours(file), file.write_text("{}"), is_ours(file)
        (True, 2, False)
    """
    return is_signed(path.read_bytes())


def recognise_pictures(folder: Path) -> dict[str, str]:
    """The files of a folder of pictures that we wrote, and that are as we wrote them -> their SHA-256."""
    contents = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    ours = {name: content for name, content in contents.items() if is_signed(content) or _is_of_old(content)}
    return {name: hashlib.sha256(content).hexdigest() for name, content in ours.items()}


def _is_of_old(content: bytes) -> bool:
    """Whether this is a picture, or its settings, of a version that signed nothing."""
    if content.startswith(b"\x89PNG"):
        return re.search(rb"(iTXt|tEXt|zTXt)dsas\0", content) is not None and PNG_KEYWORD.encode() not in content
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return False
    versions = document.get("versions") if isinstance(document, dict) else None
    return isinstance(versions, dict) and "dsas" in versions and SIGNATURE not in document


def encode_settings(document: Mapping[str, Any]) -> bytes:
    """Settings as the content of a JSON file, which has its signature under `SIGNATURE`."""
    return sign(as_json({**document, SIGNATURE: UNSIGNED}).encode())


def unknown_words_message(words: Sequence[str]) -> str:
    """The warning about words of a prompt that the model does not know.

    Example:
        >>> unknown_words_message(["zebra", "yak"])
        'the model does not know zebra, yak, and cannot heed it'
    """
    return f"the model does not know {', '.join(words)}, and cannot heed it"
