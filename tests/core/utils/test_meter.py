"""What work costs: phases that lie within one another, and tokens from the meter's beginning on."""

from __future__ import annotations

import time

from dsas_core.utils.meter import Meter, TokenCount


def test_a_phase_within_another_counts_alone() -> None:
    meter = Meter()
    with meter.phase("outer"):
        with meter.phase("inner"):
            time.sleep(0.2)
        with meter.phase("inner"):
            time.sleep(0.1)
    time.sleep(0.1)
    seconds = meter.summary()["seconds"]
    assert list(seconds) == ["outer", "inner"]
    assert seconds["inner"] >= 0.29
    assert seconds["outer"] < 0.1


def test_tokens_count_from_the_beginning_of_the_meter() -> None:
    tokens = TokenCount()
    tokens.add(run=100, needed=50)
    meter = Meter(tokens=tokens)
    tokens.add(run=12, needed=10)
    tokens.add(run=8, needed=8, passes=2)
    cost = meter.summary()
    assert (cost["passes"], cost["tokens_run"], cost["tokens_needed"]) == (3, 20, 18)
