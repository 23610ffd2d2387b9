"""The evidence of a concept: what was measured at each site, and how unit and range were chosen, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: cross-validated balanced accuracy from which the word of a model's own eyes on effects is taken
MIN_CLASSIFIER_ACCURACY = 0.7


@dataclass(frozen=True)
class UnseenEvidence:
    """The finished gate on prompts of a domain that learning never saw; a prompt's score is its highest h.

    Args:
        balanced_accuracy: of scores above 0.5, source against control prompts.
        auroc: of scores, source against control prompts.
        control_h: mean h of control positions.
        control_h_before: the same, before the bias was moved.
        control_fired: share of control positions with h above 0.5.
        control_fired_before: the same, before the bias was moved.
    """

    balanced_accuracy: float
    auroc: float
    control_h: float
    control_h_before: float
    control_fired: float
    control_fired_before: float


@dataclass(frozen=True)
class SiteEvidence:
    """Cross-validated evidence of one site and timestep bin.

    Args:
        site: its name.
        bin: number of the timestep bin.
        weight: of the site, 0 to 1.
        balanced_accuracy: of the gate, on prompts that it was not fitted on.
        auroc: of the gate, on prompts that it was not fitted on.
        rank: how many principal components the gate was fitted in.
        scaler: how activations were scaled for it.
        control_h: mean h of control positions that the gate was not fitted on.
        control_h_before: the same, before the bias was moved.
        control_fired: share of these positions with h above 0.5.
        control_fired_before: the same, before the bias was moved.
        unseen: on prompts of another domain; None where none were captured.
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
    """The unit of strength and how it was chosen, in lines.

    Args:
        unit: of the concept.
        evidence: its `evidence["unit"]`; None where there is none.

    Example:
        >>> unit_in_words(1.5, None)
        'unit 1.5; how it was chosen was not recorded'
    """
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
    doubt = (
        ""
        if accuracy >= MIN_CLASSIFIER_ACCURACY
        else ", too poorly to trust: look at results before you rely on the unit"
    )
    return (
        f"unit {unit:g}: {why} (tried {tried})\n"
        f"effect {chosen['effect']:.2f} of what is wanted; control prompts drift by {chosen['drift']:.2g} "
        f"(limit {evidence['drift_limit']:.2g})\n"
        f"targets told from sources with balanced accuracy {accuracy:.2f}{doubt}"
    )


def range_in_words(ends: Sequence[float] | None, evidence: Mapping[str, Any] | None) -> str:
    """The useful ends of strength, in a line.

    Args:
        ends: low and high, in units; None where there are none.
        evidence: the concept's `evidence["range"]`; None where nobody has looked.

    Example:
        >>> range_in_words((-1.0, 2.0), None)
        'range -1 to 2: useful strengths, in units'
    """
    if ends is not None:
        low, high = ends
        less = "" if low < 0 else "; the other way nothing is to be seen, or it falls apart at once"
        return f"range {low:g} to {high:g}: useful strengths, in units{less}"
    if evidence:
        return "no range: at no strength that was tried are results useful"
    return "no range yet: `dsas calibrate` finds the useful ends"
