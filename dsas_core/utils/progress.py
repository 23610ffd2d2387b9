"""Progress of long work: bars in a terminal, or calls of a listener."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Progress:
    """How much of one piece of work is finished: `done` of `total`."""

    label: str
    done: int
    total: int


Listener = Callable[[Progress], object]


@dataclass
class ProgressListener:
    """A listener, and the last progress that it was called with."""

    listener: Listener
    last: Progress | None = None

    def notify(self, progress: Progress) -> None:
        self.last = progress
        self.listener(progress)


_LISTENER: ContextVar[ProgressListener | None] = ContextVar("listener", default=None)


@contextmanager
def progress_to(listener: Listener) -> Iterator[None]:
    """Report all progress of this thread to a listener, in place of progress bars, until the block ends.

    Args:
        listener: called when a piece of work begins, and at every update. What it raises ends the work.

    Example:
        >>> with progress_to(print), progress_bar(2, "work") as bar:
        ...     bar.update()
        Progress(label='work', done=0, total=2)
        Progress(label='work', done=1, total=2)
    """
    token = _LISTENER.set(ProgressListener(listener))
    try:
        yield
    finally:
        _LISTENER.reset(token)


def heartbeat() -> None:
    """Repeat the last progress to the listener, so that it can end the work where updates are rare."""
    current = _LISTENER.get()
    if current is not None and current.last is not None:
        current.notify(current.last)


def progress_bar(total: int, label: str, show: bool = True) -> Any:
    """A context manager with `update(n)`: a progress bar on standard error, or calls of this thread's listener.

    Args:
        total: how many updates make the whole work.
        label: name of the work.
        show: False for neither bar nor calls.
    """
    current = _LISTENER.get()
    if show and current is not None:
        return _ListenerBar(Progress(label, 0, total), current)
    from tqdm import tqdm

    return tqdm(total=total, desc=label, disable=not show, leave=False)


class _ListenerBar(AbstractContextManager["_ListenerBar"]):
    """Stands in for a progress bar where there is a listener."""

    def __init__(self, progress: Progress, listener: ProgressListener) -> None:
        self._progress, self._listener = progress, listener
        listener.notify(progress)

    def update(self, n: int = 1) -> None:
        self._progress = replace(self._progress, done=self._progress.done + n)
        self._listener.notify(self._progress)

    def __exit__(self, *_: object) -> None:
        return None
