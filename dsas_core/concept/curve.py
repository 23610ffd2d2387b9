"""The curve that the unit of strength was chosen from: what each unit does, and which limits it breaks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

#: heading -> key of a row of `trial_rows`; the last three are of texts only
TRIAL_COLUMNS = {
    "unit": "unit",
    "effect": "effect",
    "drift": "drift",
    "unlikely": "unlikely",
    "always on": "always_on",
    "repeats": "repeats",
}
#: what the columns are, for people
TRIAL_LEGEND = {
    "effect": "of what is wanted",
    "drift": "how far control prompts change",
    "unlikely": "nats a token by which what is written is less likely than what the model writes itself",
    "always_on": "nats a token by which control texts are less likely with the gate forced on",
    "repeats": "share of further texts that repeat themselves",
}
#: cells of a bar that stands for the full effect
BAR = 10


def trial_rows(unit: float, evidence: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The trials that the unit was chosen from, ascending.

    Args:
        unit: of the concept.
        evidence: the concept's `evidence["unit"]`; None where there is none.

    Returns:
        A row for each trial, the trial's own entries and: `chosen`, whether it is the unit; `bar`, the effect as a bar;
        `breaks`, the limits that it breaks, as text.

    Example:
        >>> trials = [{"unit": 1.0, "effect": 0.5, "drift": 0.0}, {"unit": 2.0, "effect": 1.0, "drift": 0.3}]
        >>> for row in trial_rows(1.0, {"trials": trials, "drift_limit": 0.1}):
        ...     print(row["unit"], row["chosen"], row["bar"], [row["breaks"]])
        1.0 True █████ ['']
        2.0 False ██████████ ['drift']
    """
    evidence = evidence or {}
    return [
        {
            **trial,
            "chosen": trial["unit"] == unit,
            "bar": "█" * round(BAR * min(max(trial["effect"], 0.0), 1.0)),
            "breaks": ", ".join(broken_limits(trial, evidence)),
        }
        for trial in sorted(evidence.get("trials") or (), key=lambda trial: trial["unit"])
    ]


def broken_limits(trial: Mapping[str, Any], evidence: Mapping[str, Any]) -> list[str]:
    """The limits that a trial breaks, as headings of `TRIAL_COLUMNS`.

    Drift is a limit like the others, unless the trial's harm leaves it out, as for gates that decide about whole texts.

    Args:
        trial: one of `evidence["trials"]`.
        evidence: the concept's `evidence["unit"]`, with `drift_limit`, and of texts with `limits`.

    Example:
        >>> trial = {"unit": 1.0, "effect": 1.0, "drift": 9.0, "unlikely": 0.8, "harm": 2.0}
        >>> broken_limits(trial, {"limits": {"unlikely": 0.4}, "drift_limit": 0.01})
        ['unlikely']
    """
    limits = {**evidence.get("limits", {}), "drift": evidence.get("drift_limit", math.inf)}
    harm = trial.get("harm", math.inf)
    if trial.get("drift", 0.0) > harm * limits["drift"] * (1 + 1e-9):
        del limits["drift"]
    broken = [heading for heading, key in TRIAL_COLUMNS.items() if trial.get(key, 0.0) > limits.get(key, math.inf)]
    return broken or ["not finite"] * (1 < harm < math.inf)


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Those of `TRIAL_COLUMNS` that some row has.

    Example:
        >>> list(columns_of([{"unit": 1.0, "effect": 0.5, "drift": 0.0}]))
        ['unit', 'effect', 'drift']
    """
    return {heading: key for heading, key in TRIAL_COLUMNS.items() if any(key in row for row in rows)}


def legend_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the columns of some rows are, in a sentence.

    Example:
        >>> legend_of([{"unit": 1.0, "effect": 0.5, "drift": 0.0}])
        'Effect: of what is wanted; drift: how far control prompts change.'
    """
    told = (f"{heading}: {TRIAL_LEGEND[key]}" for heading, key in columns_of(rows).items() if key in TRIAL_LEGEND)
    text = "; ".join(told)
    return f"{text[:1].upper()}{text[1:]}."
