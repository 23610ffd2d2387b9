"""Files that are written whole or not at all, and strict JSON.

Nothing is written in place: new files lie in a draft (`saving.drafts`) and are moved from there one by one. What
belongs together in a folder is saved by `saving.folders`.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ...errors import DSASError, quote, shorten
from .drafts import finish, flush, open_draft, write_flushed

#: characters of a path in a message
_LONGEST_PATH = 250


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Raise errors of the system in the block as a DSASError that tells what cannot be written, and why.

    Example:
        >>> with writing(Path("a.txt")):
        ...     raise OSError("no room")
        Traceback (most recent call last):
        dsas_core.errors.DSASError: cannot write a.txt: no room
    """
    try:
        yield
    except OSError as error:
        where = shorten(str(place), _LONGEST_PATH)
        raise DSASError(f"cannot write {where}: {error.strerror or error}") from None
    except ValueError as error:
        if isinstance(error, DSASError) or not (isinstance(error, UnicodeError) or "null byte" in str(error)):
            raise
        raise DSASError(f"cannot write {quote(str(place))}: no file can have this name; choose another") from None


def write_files(files: Mapping[Path, bytes], is_ours: Callable[[Path], bool] = lambda _: True) -> None:
    """Write these files in this order, or none of them where the disk cannot hold all.

    What is there keeps its permissions, and its place if it is behind a link. What is not ours is kept under another
    name (`set_aside`), with a warning.

    Args:
        files: path -> content; parents are created.
        is_ours: whether what is at a path may be replaced.

    Raises:
        DSASError: writing failed; what was there is as it was.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as parent:
        ...     write_files({Path(parent, "new", "a.txt"): b"a"})
        ...     Path(parent, "new", "a.txt").read_text()
        'a'
    """
    made: list[Path] = []
    kept: dict[Path, Path] = {}
    drafts: dict[Path, Path] = {}
    moves: list[tuple[Path, Path]] = []

    def free(target: Path) -> None:
        if target.exists() and not is_ours(target):
            kept[target] = set_aside(target)

    try:
        with ExitStack() as stack:
            for path, content in files.items():
                with writing(path):
                    target = Path(os.path.realpath(path))
                    check_replaceable(target)
                    made += make_folder(target.parent)
                    if target.parent not in drafts:
                        drafts[target.parent] = stack.enter_context(open_draft(target.parent))
                    moves.append((drafts[target.parent] / str(len(moves)), target))
                    write_flushed(moves[-1][0], content)
            with writing(next(iter(files), Path())):
                move_all(moves, free)
    except BaseException:
        remove_empty(made)
        raise
    warn_of(kept)


def move_all(moves: Sequence[tuple[Path, Path]], free: Callable[[Path], None]) -> None:
    """Move files from drafts to their places; if one cannot be moved, all that was there is put back.

    Args:
        moves: a file in a draft, and its place in the same file system.
        free: called with every place before it is taken.
    """
    done: list[tuple[Path, Path | None]] = []

    def go_on() -> None:
        for source, target in moves:
            if source.exists():
                free(target)
                done.append((target, keep_link(target, source.with_name(f"{source.name}.old"), source)))
                os.replace(source, target)
        for parent in {target.parent for _, target in moves}:
            flush(parent)

    try:
        finish(go_on)
    except OSError:
        for target, old in reversed(done):
            with suppress(OSError):
                target.unlink() if old is None else os.replace(old, target)
        raise


def keep_link(path: Path, link: Path, successor: Path) -> Path | None:
    """Keep what is at a path under a second name too, to put it back if need be; hand its permissions on.

    Returns:
        The second name; None where nothing is at the path.
    """
    if not path.exists():
        return None
    if not link.exists():
        try:
            os.link(path, link)
        except OSError:  # a file system without hard links
            shutil.copy2(path, link)
    if successor.exists():
        there, new = path.stat(), successor.stat()
        if (there.st_uid, there.st_gid) != (new.st_uid, new.st_gid):
            with suppress(OSError, AttributeError):  # of another user: as root only
                os.chown(successor, there.st_uid, there.st_gid)
        successor.chmod(there.st_mode & 0o7777)
    return link


def check_replaceable(path: Path) -> None:
    """Raise a DSASError where no file can be written at a path, or its owner wants it to stay."""
    if path.is_symlink():
        raise DSASError(f"{path} is a link to {os.readlink(path)}: remove the link, or choose another place")
    if path.is_dir():
        raise DSASError(f"{path} is a folder, and a file is to be written: choose another name, or move it away")
    if path.exists() and not path.is_file():
        raise DSASError(f"{path} is neither a file nor a folder: choose another name")
    if path.is_file() and not path.stat().st_mode & 0o222:
        raise DSASError(f"{path} is read-only: make it writable (chmod u+w), or choose another place")


def set_aside(path: Path) -> Path:
    """Keep a file that is about to be replaced under another name beside it: `NAME.old`, or `NAME.old2`, …

    Returns:
        The other name; one that holds the same already is taken again.
    """
    number = 1
    while True:
        kept = path.with_name(f"{path.name}.old{number if number > 1 else ''}")
        if not kept.exists() and not kept.is_symlink():
            break
        if kept.is_file() and not kept.is_symlink() and digest_of(kept) == digest_of(path):
            return kept
        number += 1
    try:
        os.link(path, kept)
    except FileExistsError:  # by another process, just now
        return set_aside(path)
    except OSError:  # a file system without hard links; the file stays until another takes its place
        shutil.copy2(path, kept)
    return kept


def warn_of(kept: Mapping[Path, Path]) -> None:
    """Warn of files that were set aside, by their new names."""
    for path, new in kept.items():
        warnings.warn(f"{path} was not as an earlier run wrote it: it is kept as {new.name}", stacklevel=3)


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_to_append(file: Path) -> IO[str]:
    """Open a file of lines to append to; a last line that was cut off ends, so that the next one is whole."""
    opened = open(file, "a+b")  # noqa: SIM115
    if opened.tell():
        opened.seek(-1, os.SEEK_END)
        if opened.read() != b"\n":
            opened.write(b"\n")
    return io.TextIOWrapper(opened, encoding="utf-8")


def make_folder(folder: Path) -> list[Path]:
    """Create a folder with its parents; returns those that were not there, the outermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()][::-1]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except BaseException:
        remove_empty(missing)
        raise
    return missing


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders that `make_folder` made, as far as nothing is in them."""
    for folder in reversed(folders):
        with suppress(OSError):
            folder.rmdir()


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
