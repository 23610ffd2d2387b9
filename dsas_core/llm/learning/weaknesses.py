"""What the evidence of a gate warns of: it does not tell, misses, touches what it should not, or does not transfer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...concept.evidence import SiteEvidence

#: warn where the best balanced accuracy is lower, on held-out prompts or on those of another domain
MIN_ACCURACY = 0.7
#: warn where the gate misses more of the held-out source texts, and of those of another domain
MAX_MISSED, MAX_MISSED_UNSEEN = 0.4, 0.5
#: warn where it touches more controls of another domain
MAX_TOUCHED_UNSEEN = 0.1
#: warn where it tells source from control of another domain with a lower AUROC
MIN_AUROC_UNSEEN = 0.75
#: warn where a gate's mean h on controls is higher
MAX_CONTROL_H = 0.05
#: warn where the AUROC of length alone is higher, or that much below 1
MAX_LENGTH_AUROC = 0.95


def find_weaknesses(evidence: Sequence[SiteEvidence], length_auroc: float) -> Iterator[str]:
    """What makes a gate weak, or strong for the wrong reason, each in one line with the way out.

    Args:
        evidence: of every site.
        length_auroc: how well the length of source and control prompts alone tells them apart.
    """
    best = max(evidence, key=lambda item: item.balanced_accuracy, default=None)
    if best is not None and best.balanced_accuracy < MIN_ACCURACY and best.weight > 0:
        yield (
            f"the best site, {best.site}, tells source from control with balanced accuracy "
            f"{best.balanced_accuracy:.2f} only: add prompts, or choose other sites"
        )
    steered = [item for item in evidence if item.weight > 0]
    worst = max(steered, key=lambda item: item.control_h, default=None)
    if worst is not None and worst.control_h > MAX_CONTROL_H:
        yield (
            f"the gate fires on control tokens (mean h {worst.control_h:.2f} at {worst.site}): add controls that are "
            "more like the source"
        )
    measured = [item for item in steered if item.missed is not None]
    surest = min(measured, key=lambda item: item.missed or 0.0, default=None)
    if surest is not None and (surest.missed or 0.0) > MAX_MISSED:
        yield (
            f"the gate misses {surest.missed:.0%} of held-out source texts at {surest.site}: add source prompts, or "
            "let it touch more controls (control_texts, or control_h of gates that read single tokens)"
        )
    if faults := _faults_elsewhere(steered):
        yield f"on prompts of another domain {faults}"
    if not 1 - MAX_LENGTH_AUROC < length_auroc < MAX_LENGTH_AUROC:
        yield (
            f"length alone tells source from control prompts (AUROC {length_auroc:.2f}): the gate may have learned "
            "nothing else; make them of about the same length"
        )


def _faults_elsewhere(steered: Sequence[SiteEvidence]) -> str:
    """What is wrong with the best of the gates that steer, on prompts of another domain, and the way out; or ""."""
    tested = [item.unseen for item in steered if item.unseen is not None]
    if not tested:
        return ""
    best = max(tested, key=lambda unseen: (unseen.auroc, unseen.balanced_accuracy))
    faults = [
        fault
        for is_bad, fault in (
            (best.missed > MAX_MISSED_UNSEEN, f"misses {best.missed:.0%} of source texts"),
            (best.touched > MAX_TOUCHED_UNSEEN, f"touches {best.touched:.0%} of controls"),
            (best.auroc < MIN_AUROC_UNSEEN, f"has AUROC {best.auroc:.2f}"),
            (best.balanced_accuracy < MIN_ACCURACY, f"has balanced accuracy {best.balanced_accuracy:.2f}"),
        )
        if is_bad
    ]
    return f"the gate {', '.join(faults)}: add prompts of that kind, or rely on it for its own only" if faults else ""
