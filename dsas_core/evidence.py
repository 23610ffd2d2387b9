"""The evidence of a concept: what was measured at each site, and how unit and range were chosen, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: cross-validated balanced accuracy from which the word of a model's own eyes on effects is taken
TRUSTED_EYES = 0.7


@dataclass(frozen=True)
class UnseenEvidence:
    """The finished gate on prompts of a domain that learning never saw; a prompt's score is its highest h.

    A prompt counts as told when its score is above 0.5, and a control position as fired. "before" is before the bias
    was moved.
    """

    balanced_accuracy: float
    auroc: float
    control_h: float
    control_h_before: float
    control_fired: float
    control_fired_before: float


@dataclass(frozen=True)
class SiteEvidence:
    """Cross-validated evidence of one site and bin.

    `control_h` is the mean h of control positions that the probe was not fitted on, `control_fired` the share of them
    with h above 0.5; both also before the bias was moved. `unseen` is None where no prompts of another domain were
    captured.
    """

    site: str
    bin: int
    weight: float
    balanced_accuracy: float
    auroc: float
    rank: int | str
    scaler: str
    control_h: float
    control_h_before: float
    control_fired: float
    control_fired_before: float
    unseen: UnseenEvidence | None = None


def unit_in_words(unit: float, evidence: Mapping[str, Any] | None) -> str:
    """The unit of strength and how it was chosen, in lines."""
    if evidence and evidence.get("trials") == []:
        return (
            f"unit {unit:g}: the mean difference itself. The model answers source prompts much as it answers\n"
            "controls, so nothing told when enough is done: look at its answers before you rely on this concept"
        )
    if not evidence or not evidence.get("trials"):
        return f"unit {unit:g}; how it was chosen was not recorded"
    trials = evidence["trials"]
    tried = ", ".join(f"{trial['unit']:g}" for trial in trials)
    chosen = next((trial for trial in trials if trial["unit"] == unit), None)
    if chosen is None:
        return f"unit {unit:g}, set by hand; {tried} were tried while learning"
    if evidence["reached"] or (chosen["effect"] >= 1 and chosen["drift"] <= evidence["drift_limit"]):
        why = "the smallest that does what is wanted"
    elif chosen["drift"] <= evidence["drift_limit"]:
        why = "the most effective within the drift limit, though it does less than is wanted"
    else:
        why = "the smallest, though it too changes controls more than the limit allows"
    accuracy = evidence["eyes_accuracy"]
    doubt = "" if accuracy >= TRUSTED_EYES else ", too poorly to trust: look at results before you rely on the unit"
    return (
        f"unit {unit:g}: {why} (tried {tried})\n"
        f"effect {chosen['effect']:.2f} of what is wanted; control prompts drift by {chosen['drift']:.2g} "
        f"(limit {evidence['drift_limit']:.2g})\n"
        f"targets told from sources with balanced accuracy {accuracy:.2f}{doubt}"
    )


def range_in_words(ends: Sequence[float] | None, evidence: Mapping[str, Any] | None) -> str:
    """The ends of the range, in a line."""
    if ends is not None:
        low, high = ends
        less = "" if low < 0 else "; the other way nothing is to be seen, or it falls apart at once"
        return f"range {low:g} to {high:g}: useful strengths, in units{less}"
    if evidence:
        return "no range: at no strength that was tried are results useful"
    return "no range yet: `dsas calibrate` finds the useful ends"
