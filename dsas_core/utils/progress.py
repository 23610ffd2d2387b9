"""How far long work has come: bars in a terminal, or whoever listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Progress:
    """How far one piece of work has come: `done` of `total`."""

    label: str
    done: int
    total: int


Listener = Callable[[Progress], object]


class ProgressListener:
    """Who listens, and what they were told last."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.last: Progress | None = None

    def notify(self, progress: Progress) -> None:
        self.last = progress
        self.listener(progress)


_EAR: ContextVar[ProgressListener | None] = ContextVar("listener", default=None)


@contextmanager
def progress_to(listener: Listener) -> Iterator[None]:
    """Tell somebody of all progress that would be shown in this thread, in place of bars, until the block ends.

    Args:
        listener: called when a piece of work begins, and whenever it comes further. What it raises ends the work.
    """
    token = _EAR.set(ProgressListener(listener))
    try:
        yield
    finally:
        _EAR.reset(token)


def heartbeat() -> None:
    """Tell whoever listens once more how far the work is, so that they can end it: where updates are far apart."""
    ear = _EAR.get()
    if ear is not None and ear.last is not None:
        ear.listener(ear.last)


def progress_bar(total: int, label: str, show: bool = True) -> Any:
    """A progress bar on standard error, or for whoever listens; `update(n)` moves it."""
    ear = _EAR.get()
    if show and ear is not None:
        return _Told(Progress(label, 0, total), ear)
    from tqdm import tqdm

    return tqdm(total=total, desc=label, disable=not show, leave=False)


class _Told:
    """What stands for a bar where somebody listens."""

    def __init__(self, progress: Progress, ear: ProgressListener) -> None:
        self._progress, self._ear = progress, ear
        ear.notify(progress)

    def update(self, n: int = 1) -> None:
        self._progress = replace(self._progress, done=self._progress.done + n)
        self._ear.notify(self._progress)

    def __enter__(self) -> _Told:
        return self

    def __exit__(self, *_: object) -> None:
        return None
