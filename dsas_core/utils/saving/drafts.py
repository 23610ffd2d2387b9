"""Drafts: hidden folders in which new files lie until they are moved to their places, and the locks that guard them.

A draft is locked while its process lives. One that nobody locks was left by a process that was killed; the next one
that writes into the same folder removes it.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ...errors import DSASError

try:
    import fcntl
except ImportError:  # not on Windows: what killed processes left is not removed there
    fcntl = None  # type: ignore[assignment]

_DRAFT = re.compile(r"\.dsas-draft-[0-9a-f]{8}")
#: seconds to wait for another process that writes into the same folder
PATIENCE = 20.0


def is_draft(path: Path) -> bool:
    """Whether a path within a folder is a draft of ours, and nothing to be kept.

    Example:
        >>> is_draft(Path("it/.dsas-draft-0123abcd")), is_draft(Path("it/draft"))
        (True, False)
    """
    return _DRAFT.fullmatch(path.name) is not None


def draft_name() -> str:
    """The name of a new draft."""
    return f".dsas-draft-{secrets.token_hex(4)}"


@contextmanager
def open_draft(parent: Path) -> Iterator[Path]:
    """A new hidden folder in `parent`, removed after the block; so are those that killed processes have left.

    Args:
        parent: an existing folder.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as parent:
        ...     with open_draft(Path(parent)) as draft:
        ...         _ = draft.joinpath("a.txt").write_text("a")
        ...     list(Path(parent).iterdir())
        []
    """
    draft, handle = parent / draft_name(), -1
    try:
        with lock(parent):  # between making a folder and locking it, it looks like one that was left
            _remove_left(parent)
            draft.mkdir()
            handle = _try_to_lock(draft)
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if handle >= 0:
            os.close(handle)


def remove_left(parent: Path) -> None:
    """Remove what killed processes have left in a folder, if there is one that can be written."""
    with suppress(OSError), lock(parent):
        _remove_left(parent)


def _remove_left(parent: Path) -> None:
    """Remove the drafts of processes that are no more."""
    for path in parent.iterdir():
        if is_draft(path) and path.is_dir() and not path.is_symlink():
            handle = _try_to_lock(path)
            if handle >= 0:
                shutil.rmtree(path, ignore_errors=True)
                os.close(handle)


def _try_to_lock(folder: Path) -> int:
    """A handle that locks a folder until it is closed; -1 where another process has it, or folders cannot be locked."""
    if fcntl is None:
        return -1
    handle = -1
    try:
        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if handle >= 0:
            os.close(handle)
        return -1
    return handle


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keep other processes of ours from moving files in a folder; where folders cannot be locked, nothing is done.

    Raises:
        DSASError: another process has it and does not let go.
    """
    if fcntl is None:
        yield
        return
    handle, until = os.open(folder, os.O_RDONLY), time.monotonic() + PATIENCE
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise DSASError(
                        f"{folder} is locked by another process that writes into it: try again when it is done"
                    ) from None
                time.sleep(0.01)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        os.close(handle)


def write_flushed(path: Path, content: bytes) -> None:
    """Write a file in a draft, and wait until it is on the disk."""
    path.write_bytes(content)
    flush(path)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk; not every file system can tell for folders."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with suppress(*([OSError] if path.is_dir() else [])):
            os.fsync(handle)
    finally:
        os.close(handle)


def finish(go_on: Callable[[], None]) -> None:
    """Do the last step of writing, which leaves nothing half done: Ctrl-C is raised after it.

    Args:
        go_on: does it, or what is left of it when it is called again.
    """
    try:
        with _uninterrupted():
            go_on()
    except KeyboardInterrupt:
        with _uninterrupted():
            go_on()
        raise


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Raise Ctrl-C after the block."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt
