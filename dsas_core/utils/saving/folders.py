"""Files that belong together in a folder: saved all at once, read all from one save, and never at the cost of others.

A save writes the new files into a draft, and links to what they replace. Then the draft is renamed to `SAVE`, at which
moment the save is made, and its files move to their places. Who finds a `SAVE` that nobody is at work on, finishes it.
So a reader sees the folder before a save or after it, whenever the writer was killed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from ...errors import ArtifactError, DSASError
from .drafts import draft_name, finish, flush, is_draft, lock, open_draft, write_flushed
from .files import check_replaceable, digest_of, keep_link, make_folder, remove_empty, set_aside, warn_of, writing

Result = TypeVar("Result")

#: the files of a save that is under way, in the folder itself
SAVE = ".dsas-save"
#: within it: what the save is, the new files, and links to those that they replace
_PLAN, _NEW, _OLD = "plan.json", "new", "old"
#: times that a folder may change while it is read
_TRIES = 20


def names_in(folder: Path) -> list[str]:
    """What is in a folder, without what killed processes left there; [] where there is no folder."""
    return sorted(path.name for path in folder.iterdir() if not is_draft(path)) if folder.is_dir() else []


def save_folder(
    folder: Path,
    files: Mapping[str, bytes],
    recognise: Callable[[Path], Mapping[str, str]],
    obsolete: Callable[[str], bool] = lambda _: False,
) -> None:
    """Write files into a folder, all or none of them, in place of those that an earlier save wrote there.

    Other files stay. Files of an earlier save that were changed since are kept as `NAME.old`, with a warning.

    Args:
        folder: the folder; it is created if need be. A link to a folder is followed.
        files: name -> content.
        recognise: of an existing folder, the names of the files that an earlier save wrote -> their SHA-256 then.
            Raises a DSASError where nothing may be written.
        obsolete: whether a file of an earlier save, by its name, goes if it is none of `files`.

    Raises:
        DSASError: it cannot be written; what was there is as it was.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as parent:
        ...     save_folder(Path(parent, "it"), {"a.txt": b"a"}, recognise=lambda folder: {})
        ...     names_in(Path(parent, "it"))
        ['a.txt']
    """
    kept: dict[Path, Path] = {}
    with writing(folder):
        folder = Path(os.path.realpath(folder))
        if folder.exists():
            settle(folder)
            recognise(folder)  # before anything is done
        made = make_folder(folder)
        try:
            with open_draft(folder) as draft:
                (draft / _NEW).mkdir()
                (draft / _OLD).mkdir()
                for name, content in files.items():
                    write_flushed(draft / _NEW / name, content)
                with lock(folder):
                    _finish_earlier(folder, kept)
                    known = {name: digest for name, digest in recognise(folder).items() if _is_plain(name)}
                    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
                    gone = [name for name in known if name not in files and obsolete(name)]
                    _commit(folder, draft, {"files": digests, "over": known, "gone": gone}, kept)
        except BaseException:
            remove_empty(made)
            raise
    warn_of(kept)


def _commit(folder: Path, draft: Path, plan: dict[str, Any], kept: dict[Path, Path]) -> None:
    for name in (*plan["files"], *plan["gone"]):
        check_replaceable(folder / name)
        keep_link(folder / name, draft / _OLD / name, draft / _NEW / name)
    write_flushed(draft / _PLAN, json.dumps(plan).encode())

    def go_on() -> None:
        if not (folder / SAVE).exists():
            if not draft.exists():
                return  # all is done
            os.rename(draft, folder / SAVE)
            flush(folder)
        _roll_forward(folder, plan, kept)

    try:
        finish(go_on)
    except OSError as error:
        _roll_back(folder, plan)
        if (folder / SAVE).exists():
            raise ArtifactError(
                f"saving into {folder} was cut off ({error.strerror or error}): load it or save it again, which first "
                "finishes that"
            ) from None
        raise


def _roll_forward(folder: Path, plan: Mapping[str, Any], kept: dict[Path, Path]) -> None:
    """Move the files of a save to their places, as far as they are not there."""
    save, over = folder / SAVE, plan["over"]
    for name, digest in plan["files"].items():
        source, target = save / _NEW / name, folder / name
        if not source.exists():
            continue
        if target.exists() and digest_of(target) not in (digest, over.get(name)):
            kept[target] = set_aside(target)
        os.replace(source, target)
    for name in plan["gone"]:
        target = folder / name
        if target.exists():
            if digest_of(target) != over.get(name):
                kept[target] = set_aside(target)
            target.unlink(missing_ok=True)
    _end(folder)


def _roll_back(folder: Path, plan: Mapping[str, Any]) -> None:
    """Put back what a save that cannot be finished has replaced.

    The new files go back into the draft, so that where this fails too, the save can still be finished.
    """
    save = folder / SAVE
    if not save.exists():
        return
    with suppress(OSError):
        for name, digest in plan["files"].items():
            target, new, old = folder / name, save / _NEW / name, save / _OLD / name
            if not new.exists() and target.exists() and digest_of(target) == digest:
                os.replace(target, new)
            if old.exists() and not target.exists():
                os.replace(old, target)
        for name in plan["gone"]:
            if (save / _OLD / name).exists():
                os.replace(save / _OLD / name, folder / name)
        _end(folder)


def _end(folder: Path) -> None:
    """A save is no more, from one moment to the next; its draft, which nobody reads, goes afterwards."""
    draft = folder / draft_name()
    flush(folder)
    os.rename(folder / SAVE, draft)
    shutil.rmtree(draft, ignore_errors=True)


def settle(folder: Path) -> None:
    """Finish a save into a folder that was cut off, or wait for one that is under way.

    Raises:
        ArtifactError: it cannot be finished.
    """
    kept: dict[Path, Path] = {}
    try:
        if not (folder / SAVE).exists():
            return
        with lock(folder):
            _finish_earlier(folder, kept)
    except OSError as error:
        raise ArtifactError(
            f"saving into {folder} was cut off, and cannot be finished ({error.strerror or error}): make it writable, "
            "or copy it to where it is"
        ) from None
    warn_of(kept)


def _finish_earlier(folder: Path, kept: dict[Path, Path]) -> None:
    """Finish a save that was cut off; the folder is locked, so nobody else is at work on it."""
    if (folder / SAVE).exists():
        plan = _read_plan(folder / SAVE)
        finish(lambda: _roll_forward(folder, plan, kept) if (folder / SAVE).exists() else None)


def _read_plan(save: Path) -> dict[str, Any]:
    """The plan of a save. It may be anybody's: it names files of this folder only, and all of them are files."""
    try:
        plan = json.loads((save / _PLAN).read_bytes())
        names = [*plan["files"], *plan["over"], *plan["gone"]]
        valid = all(isinstance(name, str) and _is_plain(name) for name in names)
        valid = valid and not save.is_symlink() and not any((save / part).is_symlink() for part in (_NEW, _OLD))
        valid = valid and not any((save / _NEW / name).is_symlink() for name in plan["files"])
    except (ValueError, KeyError, TypeError, FileNotFoundError, NotADirectoryError, RecursionError):
        valid = False
    if not valid:
        raise ArtifactError(f"{save} is not what saving leaves when it is cut off: remove it, or get the files again")
    return plan  # type: ignore[no-any-return]


def _is_plain(name: str) -> bool:
    return name not in ("", ".", "..") and not set(name) & set("/\\\0:") and not name.startswith(".dsas-")


# ---- reading --------------------------------------------------------------------------------------------------------


def read_folder(folder: Path, names: Sequence[str], read: Callable[[], Result]) -> Result:
    """Read files of a folder that are all of one save, also while others are saved into it.

    Args:
        folder: the folder.
        names: the files.
        read: reads them.

    Raises:
        ArtifactError: the folder changes all the time, or was left by a save that cannot be finished.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.txt").write_text("a")
        ...     read_folder(Path(folder), ["a.txt"], Path(folder, "a.txt").read_text)
        'a'
    """
    for _ in range(_TRIES):
        settle(folder)
        before = _stamp(folder, names)
        try:
            result = read()
        except DSASError:
            if _stamp(folder, names) == before:
                raise
            continue
        if None not in before and _stamp(folder, names) == before:
            return result
    raise ArtifactError(f"{folder} is written again and again while it is read: try again when that is done")


def _stamp(folder: Path, names: Sequence[str]) -> tuple[Any, ...]:
    """What tells whether files were replaced; it holds None while a save is being finished."""
    stamp: list[Any] = [None] if (folder / SAVE).exists() else []
    for name in names:
        with suppress(OSError):
            found = (folder / name).stat()
            stamp.append((name, found.st_ino, found.st_mtime_ns, found.st_size))
    return tuple(stamp)


# ---- folders that are filled in many steps --------------------------------------------------------------------------


@contextmanager
def fill_folder(folder: Path, last: str) -> Iterator[Path]:
    """Yield a draft to fill; its content is moved into `folder` when the block succeeds, and removed otherwise.

    Args:
        folder: where it goes; its parents are created. What is there stays, but for files of the same names, which are
            kept as `NAME.old`.
        last: the file that tells that the folder is complete.

    Raises:
        DSASError: it cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as parent:
        ...     with fill_folder(Path(parent, "it"), last="a.txt") as draft:
        ...         _ = (draft / "a.txt").write_text("a")
        ...     names_in(Path(parent, "it"))
        ['a.txt']
    """
    with writing(folder):
        make_folder(folder.parent)
        with open_draft(folder.parent) as draft:
            yield draft
            for path in draft.rglob("*"):
                if path.is_file():
                    flush(path)
            with lock(folder.parent):
                finish(lambda: _move_folder(draft, folder, last))


def _move_folder(draft: Path, folder: Path, last: str) -> None:
    if not draft.exists() or (folder / last).is_file():  # it is done, or was by another process
        return
    if not names_in(folder):
        with suppress(OSError):
            os.replace(draft, folder)
            return
    folder.mkdir(exist_ok=True)
    for path in sorted(draft.iterdir(), key=lambda path: path.name == last):
        target = folder / path.name
        if target.is_file() and not target.is_symlink():
            set_aside(target)
        os.replace(path, target)
