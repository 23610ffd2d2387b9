"""Campaigns: thousands of random cases of one kind, each of which has to work or be refused in one line.

`make fuzz` runs each campaign whole, `make test` one case in a hundred. Cases are drawn by Hypothesis, which names the
smallest one that fails; the seed and the time for each campaign are arguments of `make fuzz`.
"""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from hypothesis.strategies import SearchStrategy

from dsas_core.errors import LONGEST_MESSAGE, DSASError

#: whether campaigns run whole
WHOLE = bool(os.environ.get("DSAS_FUZZ"))
#: seconds that one campaign may take; what is left then is not run, and counted in its statistics
SECONDS = float(os.environ.get("DSAS_FUZZ_SECONDS", 900))
#: of what is drawn; of campaigns by `given`, the option --hypothesis-seed is
SEED = int(os.environ.get("DSAS_FUZZ_SEED", 0))
#: one in so many cases runs in `make test`, and at least so many
SHORT_CUT, LEAST = 100, 10
#: sequences of events in one test of a whole campaign, and in a short cut
CHUNK, FEW = 50, 3
#: seconds of processor time after which a case counts as one that hangs
HANGS = 20.0


def campaign(cases: int, **strategies: SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test on many random cases, as `hypothesis.given` does.

    Args:
        cases: how many, in a whole campaign.
        strategies: argument of the test -> what it is drawn from.
    """

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        budget = Budget()

        @functools.wraps(test)
        def run_in_time(*args: Any, **kwargs: Any) -> None:
            if budget.has_time():
                test(*args, **kwargs)
            else:
                event("not run: out of time")

        chosen = settings(
            max_examples=cases if WHOLE else max(LEAST, cases // SHORT_CUT),
            derandomize=not WHOLE,
            suppress_health_check=list(HealthCheck),
        )
        return chosen(given(**strategies)(run_in_time))

    return decorate


def run_machine(machine: type[RuleBasedStateMachine], part: int, budget: Budget, **more: Any) -> None:
    """Run a part of a campaign of sequences, `CHUNK` of them; fewer in a short cut.

    Args:
        machine: draws the sequences.
        part: which one; `parts` lists them.
        budget: of the campaign.
        more: settings of Hypothesis.
    """
    if not budget.has_time():
        pytest.skip("out of time")
    count = CHUNK if WHOLE else FEW
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        seed(10_000 * SEED + part)(machine),
        settings=settings(max_examples=count, suppress_health_check=list(HealthCheck), derandomize=False, **more),
    )


def parts(cases: int) -> range:
    """The parts of a campaign of so many sequences."""
    return range(cases // CHUNK if WHOLE else 1)


class Budget:
    """The time of one campaign, from its first case on."""

    def __init__(self) -> None:
        self._end: float | None = None

    def has_time(self) -> bool:
        """Whether another case may run."""
        self._end = self._end or time.monotonic() + SECONDS
        return not WHOLE or time.monotonic() <= self._end


@contextmanager
def works_or_is_refused() -> Iterator[None]:
    """The block ends in time, and raises nothing but a `DSASError` whose message is good; that one goes no further.

    Raises:
        AssertionError: a message of several lines, an empty or a long one; a block that does not end.
    """
    try:
        with ends_in_time():
            yield
    except DSASError as error:
        check_message(str(error))
        event("refused")
    else:
        event("works")


def check_message(message: str) -> None:
    """Raise an AssertionError where a message is not one line of at most 500 printable characters."""
    assert message.strip(), "an error without a message"
    assert message.isprintable(), f"not one line of text: {message!r:.2000}"
    assert len(message) <= LONGEST_MESSAGE, f"{len(message)} characters: {message[:1000]}"


@contextmanager
def ends_in_time(seconds: float = HANGS) -> Iterator[None]:
    """Raise an AssertionError in a block that takes longer, in processor time; what waits is for pytest's timeout."""

    def stop(*_: Any) -> None:
        raise AssertionError(f"does not end within {seconds:g} seconds of processor time")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
