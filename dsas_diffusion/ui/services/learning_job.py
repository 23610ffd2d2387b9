"""Learning a concept in a thread of its own, which a page can watch and end."""

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

#: seconds between two looks at how far it is
POLL_SECONDS = 0.5
#: seconds after which learning ends that nobody watches: the browser has gone
PATIENCE = 30.0
#: label of a progress bar -> what visitors read
STAGES: Mapping[str, str] = {
    "capturing": "drawing your prompts, and reading along",
    "fitting": "fitting gates and maps",
    "drawing held-out pictures": "drawing prompts kept back",
    "choosing the unit": "choosing the unit of strength on prompts kept back",
    "measuring what stays": "looking at what stays beside it",
    "drawing samples": "drawing before and after",
}
#: how many units are tried, as a rule; and what a picture costs there, where no activations are captured
TRIED_UNITS, UNREAD_COST = 5, 0.75
#: what fitting costs, in pictures
FITTING_COST = 12.0


class LearningCancelled(Exception):  # noqa: N818  nothing went wrong
    """Learning was ended before it was done."""


@dataclass(frozen=True)
class LearnRequest:
    """What a visitor wants to learn; whatever can be wrong about it is an error before the long work begins.

    Args:
        prompts: to learn from.
        method: as for `Lesson.learn`.
        gate: as for `Lesson.learn`; None for the method's own.
        sites: as for `Lesson`; None for what suits the model.
        steps: denoising steps; None for the model's own.
        count: source prompts; controls are twice as many.

    Raises:
        DSASError: an unknown method or gate, two that do not go together, or too few prompts.
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
class LearnProgress:
    """How far learning is.

    Args:
        stage: what is being done.
        count: how much of that, in words.
        share: of all the work, from 0 to 1.
        seconds: since it began.
        left: seconds to come, about; None where nobody can tell yet.
    """

    stage: str
    count: str
    share: float
    seconds: float
    left: float | None


def share_done(progress: Progress, count: int) -> float:
    """The share of a learning's work that is done, counted in pictures that are drawn.

    Three quarters of `count` sources, targets, and twice as many controls are captured; then the last quarters are
    drawn, and those of sources again for each unit that is tried, and twice to see what stays; at last, two prompts at
    four strengths.

    Example:
        >>> [round(share_done(Progress("capturing", done, 10), 24), 2) for done in (0, 5, 10)]
        [0.0, 0.23, 0.45]
    """
    costs = {
        "capturing": 3.0 * count,
        "fitting": FITTING_COST,
        "drawing held-out pictures": UNREAD_COST * count,
        "choosing the unit": UNREAD_COST * (0.5 + TRIED_UNITS * 0.25) * count,
        "measuring what stays": UNREAD_COST * count,
        "drawing samples": 8.0,
    }
    if progress.label not in costs:
        return 0.0
    total = min(progress.total, TRIED_UNITS) if progress.label == "choosing the unit" else progress.total
    before = sum(list(costs.values())[: list(costs).index(progress.label)])
    return (before + costs[progress.label] * min(1.0, progress.done / max(1, total))) / sum(costs.values())


class Learning:
    """Learning in a thread of its own, from the beginning of a `with` block to its end.

    Args:
        service: whose model is learned on; a copy where it is small, else nobody can draw meanwhile.
        request: what to learn.
    """

    def __init__(self, service: PictureService, request: LearnRequest) -> None:
        self.service, self.request = service, request
        self._cancelled = threading.Event()
        self._began = self._watched = time.monotonic()
        self._progress = Progress("capturing", 0, 1)
        self._result: Future[Concept] = Future()
        self._thread = threading.Thread(target=self._run, name="learning", daemon=True)

    def __enter__(self) -> Learning:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Have it end within one batch of pictures, or one site's fit."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def join(self, seconds: float | None = None) -> bool:
        """Wait until it has ended, for so many seconds at most; whether it has."""
        return bool(wait([self._result], seconds).done)

    def watch(self, seconds: float = POLL_SECONDS) -> Iterator[LearnProgress]:
        """How far it is, again after so many seconds, until it has ended."""
        while True:
            self._watched = time.monotonic()
            ended = self.join(seconds)
            yield self._describe()
            if ended:
                return

    def concept(self) -> Concept:
        """The concept that was learned.

        Raises:
            LearningCancelled: it was cancelled, or nobody watched any more.
            Exception: whatever made it fail.
        """
        return self._result.result()

    def _describe(self) -> LearnProgress:
        progress, seconds = self._progress, time.monotonic() - self._began
        learned = self._result.done() and self._result.exception() is None
        share = 1.0 if learned else share_done(progress, self.request.count)
        left = seconds * (1 - share) / share if share > 0.02 else None
        stage = "stopping" if self.cancelled else STAGES.get(progress.label, progress.label)
        tries = progress.label == "choosing the unit"  # how many it will take is not known
        count = f"{progress.done} tried" if tries else f"{progress.done} of {progress.total}"
        return LearnProgress(stage, count, share, seconds, left)

    # ---- in the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with progress_to(self._listen):
                self._result.set_result(self._learn())
        except BaseException as error:  # it is raised where the result is asked for
            self._result.set_exception(error)

    def _learn(self) -> Concept:
        request = self.request
        pipe, lock = self.service.pipeline_for_learning()
        while not lock.acquire(timeout=POLL_SECONDS):  # others draw with it
            self._listen(self._progress)
        try:
            self._listen(self._progress)
            settings: dict[str, Any] = {"sites": request.sites, "steps": request.steps, "count": request.count}
            lesson = Lesson(pipe, request.prompts, show_progress=True, **settings)
            concept = lesson.learn(request.method, request.gate)
            model = Path(self.service.model)
            name = model.name if model.exists() else self.service.model  # not where a folder is on this machine
            concept = replace(concept, provenance={**concept.provenance, "model": name})
            return try_illustrate(concept, lambda learned: illustrate(pipe, learned, show_progress=True))
        finally:
            lock.release()

    def _listen(self, progress: Progress) -> None:
        self._progress = progress
        if self.cancelled or time.monotonic() - self._watched > PATIENCE:
            raise LearningCancelled
