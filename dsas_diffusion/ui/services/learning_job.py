"""One learning in a thread of its own, which others can watch and end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dsas_core.concept.concept import Concept
from dsas_core.learning.illustrate import try_illustrate
from dsas_core.learning.prompts.prompt_set import PromptSet
from dsas_core.learning.recipe import recipe_of
from dsas_core.utils.progress import Progress, progress_to

from ...learning.illustrate import illustrate
from ...learning.learn import Lesson
from .picture_service import PictureService

#: seconds between two looks
LOOK = 0.5
#: seconds after which learning ends that nobody looks at: the browser has gone
PATIENCE = 30.0
#: label of a bar -> what people are told
STAGES: Mapping[str, str] = {
    "capturing": "drawing your prompts, and reading along",
    "fitting": "fitting gates and maps",
    "choosing the unit": "choosing the unit of strength on prompts kept back",
    "drawing samples": "drawing before and after",
}
#: how many units are tried, mostly; and what a picture costs there, where nothing is read along
TRIED, UNREAD = 5, 0.75
#: what fitting costs, in pictures
FITTING = 12.0


class Unwanted(Exception):  # noqa: N818  nothing went wrong
    """Nobody wants this any longer."""


@dataclass(frozen=True)
class LearnRequest:
    """What somebody wants to learn; all that can be wrong is found before the long work begins.

    Args:
        prompts: to learn from. method, gate: as of `Lesson.learn`; sites, steps, count: as of `Lesson`.

    Raises:
        DSASError: names that there are not, or that do not go together; too few prompts.
    """

    prompts: PromptSet
    method: str = "caa"
    gate: str | None = None
    sites: str | None = None
    steps: int | None = None
    count: int = 24

    def __post_init__(self) -> None:
        recipe_of({"method": self.method, "gate": self.gate})
        self.prompts.draw(self.count)


@dataclass(frozen=True)
class Standing:
    """How far a learning is: what it does, the share of all that is done, seconds so far and (about) to come."""

    stage: str
    count: str
    share: float
    seconds: float
    left: float | None


def share_done(progress: Progress, count: int) -> float:
    """The share of a learning's work that is done, counted in pictures that are drawn.

    Three quarters of `count` sources, targets, and twice as many controls are read; then the last quarters are drawn,
    and those of sources and controls again for each unit that is tried; at last, two prompts at four strengths.
    """
    costs = {
        "capturing": 3.0 * count,
        "fitting": FITTING,
        "choosing the unit": UNREAD * (count + TRIED * 0.75 * count),
        "drawing samples": 8.0,
    }
    before = 0.0
    for label, cost in costs.items():
        if label == progress.label:
            total = min(progress.total, TRIED) if label == "choosing the unit" else progress.total
            return (before + cost * min(1.0, progress.done / max(1, total))) / sum(costs.values())
        before += cost
    return 0.0


class Learning:
    """A learning that has begun; whoever leaves the block ends it.

    Args:
        studio: whose model is learned on: a copy where it is small, else nobody draws meanwhile.
        request: what to learn.

    Example:
        >>> with Learning(studio, request) as learning:
        ...     for standing in learning.watch():
        ...         print(standing.share)
        ...     concept = learning.concept()
    """

    def __init__(self, studio: PictureService, request: LearnRequest) -> None:
        self.studio, self.request = studio, request
        self._unwanted = threading.Event()
        self._began = self._looked = time.monotonic()
        self._progress = Progress("capturing", 0, 1)
        self._result: Future[Concept] = Future()
        self._thread = threading.Thread(target=self._run, name="learning", daemon=True)

    def __enter__(self) -> Learning:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        """End it: within one batch of pictures, or one site's fit."""
        self._unwanted.set()

    @property
    def cancelled(self) -> bool:
        return self._unwanted.is_set()

    def join(self, seconds: float | None = None) -> bool:
        """Wait until it has ended; whether it has."""
        return bool(wait([self._result], seconds).done)

    def watch(self, look: float = LOOK) -> Iterator[Standing]:
        """How far it is, every so many seconds, until it has ended."""
        while True:
            self._looked = time.monotonic()
            ended = self.join(look)
            yield self._standing()
            if ended:
                return

    def concept(self) -> Concept:
        """What was learned.

        Raises:
            Unwanted: it was ended. DSASError, or another: it failed.
        """
        return self._result.result()

    def _standing(self) -> Standing:
        progress, seconds = self._progress, time.monotonic() - self._began
        learned = self._result.done() and self._result.exception() is None
        share = 1.0 if learned else share_done(progress, self.request.count)
        left = seconds * (1 - share) / share if share > 0.02 else None
        stage = STAGES.get(progress.label, progress.label)
        tries = progress.label == "choosing the unit"  # nobody knows how many it will take
        count = f"{progress.done} tried" if tries else f"{progress.done} of {progress.total}"
        return Standing(stage, count, share, seconds, left)

    # ---- in the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with progress_to(self._listen):
                self._result.set_result(self._learn())
        except BaseException as error:  # whoever watches is told
            self._result.set_exception(error)

    def _learn(self) -> Concept:
        request = self.request
        pipe, lock = self.studio.apart()
        while not lock.acquire(timeout=LOOK):  # others draw with it
            self._listen(self._progress)
        try:
            self._listen(self._progress)
            settings: dict[str, Any] = {"sites": request.sites, "steps": request.steps, "count": request.count}
            lesson = Lesson(pipe, request.prompts, show_progress=True, **settings)
            concept = lesson.learn(request.method, request.gate)
            # of a model in a folder, the folder's name is told, and not where it is on this machine
            model = self.studio.model
            named = Path(model).name if Path(model).exists() else model
            concept = replace(concept, provenance={**concept.provenance, "model": named})
            return try_illustrate(concept, lambda learned: illustrate(pipe, learned, show_progress=True))
        finally:
            lock.release()

    def _listen(self, progress: Progress) -> None:
        self._progress = progress
        if self.cancelled or time.monotonic() - self._looked > PATIENCE:
            raise Unwanted
