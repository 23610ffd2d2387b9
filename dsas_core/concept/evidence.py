"""The evidence of a concept: what was measured at each site, and how unit and range were chosen, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..utils.templates import render_template
from .curve import broken_limits

#: cross-validated balanced accuracy from which the outcome classifier's judgement of effects is trusted
MIN_CLASSIFIER_ACCURACY = 0.7


@dataclass(frozen=True)
class UnseenEvidence:
    """The finished gate on prompts of another domain than those of learning; a prompt's score is its highest h.

    Args:
        balanced_accuracy: of scores above 0.5, source against control prompts.
        auroc: of scores, source against control prompts.
        control_h: mean h of control positions.
        control_h_before: the same, before the bias was shifted.
        control_fired: share of control positions with h above 0.5.
        control_fired_before: the same, before the bias was shifted.
        missed: share of source prompts whose score is at most 0.5.
        touched: share of control prompts whose score is above 0.5.
    """

    balanced_accuracy: float
    auroc: float
    control_h: float
    control_h_before: float
    control_fired: float
    control_fired_before: float
    missed: float
    touched: float


# size: a row of the table of evidence, its fields the columns
@dataclass(frozen=True)
class SiteEvidence:
    """Cross-validated evidence of one site and timestep bin.

    Args:
        site: its name.
        bin: number of the timestep bin.
        weight: of the site, 0 to 1.
        balanced_accuracy: of the gate, on held-out prompts.
        auroc: of the gate, on held-out prompts.
        rank: number of principal components that the gate was fitted in.
        scaler: how activations were scaled for it.
        control_h: mean h of held-out control positions.
        control_h_before: the same, before the bias was shifted.
        control_fired: share of these positions with h above 0.5.
        control_fired_before: the same, before the bias was shifted.
        unseen: on prompts of another domain; None where none were captured.
        reads: where the gate reads, if not at the site.
        missed: share of held-out source prompts in which the gate opens nowhere; None where it was not measured.
        touched: share of held-out control prompts in which it opens somewhere.
        candidate: nothing is steered here; the gate of other sites might have read here, see `reads`.
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
    reads: str = ""
    missed: float | None = None
    touched: float | None = None
    candidate: bool = False


def describe_reading(sites: Sequence[Mapping[str, Any]]) -> str:
    """Where the one gate of all sites reads, in a line; "" where every site has a gate of its own.

    Args:
        sites: the concept's `evidence["sites"]`.

    Example:
        >>> early = [{"site": f"layers.{i}", "auroc": 0.8 + i / 100, "candidate": True} for i in range(3)]
        >>> describe_reading([*early, {"site": "layers.9", "auroc": 0.82, "reads": "layers.2"}])
        'gate read at layers.2, the best of 3 early sites (AUROC 0.80 to 0.82); nothing is steered at these'
    """
    early = {site["site"]: site["auroc"] for site in sites if site.get("candidate") and site.get("auroc") is not None}
    if not early:
        return ""
    reads = ", ".join(dict.fromkeys(site["reads"] for site in sites if site.get("reads")))
    where = f"gate read at {reads}, the best of" if reads else "gate read where it steers, no worse than at any of"
    low, high = min(early.values()), max(early.values())
    count = f"{len(early)} early site{'s' if len(early) > 1 else ''}"
    return f"{where} {count} (AUROC {low:.2f} to {high:.2f}); nothing is steered at these"


def describe_mask(mask: Mapping[str, Any] | None) -> str:
    """Where a concept's place in pictures is read, and how well, in a line; "" where it is not read.

    Args:
        mask: the concept's `evidence["mask"]`; None where there is none.

    Raises:
        KeyError: evidence that lacks an entry.

    Example:
        >>> found = {"sites": ["unet.up.1"], "missed": 0.04, "touched": 0.01, "covered": 0.12, "growth": 0.03}
        >>> describe_mask(found)  # doctest: +NORMALIZE_WHITESPACE
        'place in pictures read at unet.up.1: on held-out prompts it misses 4 % of source pictures and touches 1 % of
        control pictures; the mask covers 12 % of a picture, and grows by 3 % of its width'
    """
    if mask is None:
        return ""
    missed, touched, covered, growth = (
        f"{100 * mask[key]:.3g} %" for key in ("missed", "touched", "covered", "growth")
    )
    line = (
        f"place in pictures read at {' and '.join(mask['sites'])}: on held-out prompts it misses {missed} of source "
        f"pictures and touches {touched} of control pictures; the mask covers {covered} of a picture, and grows by "
        f"{growth} of its width"
    )
    if unnamed := mask.get("unnamed"):
        found, others = (f"{100 * unnamed[key]:.3g} %" for key in ("found", "touched"))
        line += (
            f"; of {unnamed['pictures']} pictures of prompts that do not name it, {unnamed['showing']} show it: "
            f"it finds {found} of these, and touches {others} of the others"
        )
    return line


def describe_kept(kept: Mapping[str, Any] | None) -> str:
    """What a concept leaves as it is on held-out prompts, part by part, in a line; "" where it was not measured.

    Args:
        kept: the concept's `evidence["kept"]`.

    Raises:
        KeyError: evidence that lacks an entry.

    Example:
        >>> part = {"changed": 3, "pictures": 24}
        >>> describe_kept({"alone": part, "beside": part, "without": part, "neighbours": {"rabbit": part}})
        'changed where it must stay, of held-out pictures: beside it 3 of 24 (rabbit 3 of 24), without it 3 of 24'
    """
    if not kept:
        return ""
    parts = [f"beside it {_of(kept['beside'])}{list_neighbours(kept)}"] * bool(kept["beside"]["pictures"])
    return "changed where it must stay, of held-out pictures: " + ", ".join(
        [*parts, f"without it {_of(kept['without'])}"]
    )


def list_neighbours(kept: Mapping[str, Any]) -> str:
    """The things beside a concept that changed most often, at most three, in brackets behind a space; "" for none.

    Args:
        kept: the concept's `evidence["kept"]`.

    Example:
        >>> none, one = ({"changed": changed, "pictures": 2} for changed in (0, 1))
        >>> list_neighbours({"neighbours": {"hat": none, "cat": one}})
        ' (cat 1 of 2)'
    """
    named = {name: part for name, part in kept["neighbours"].items() if part["changed"]}
    worst = sorted(named, key=lambda name: -named[name]["changed"])[:3]
    return f" ({', '.join(f'{name} {_of(named[name])}' for name in worst)})" if worst else ""


def _of(part: Mapping[str, Any]) -> str:
    return f"{part['changed']} of {part['pictures']}"


def describe_unit(unit: float, evidence: Mapping[str, Any] | None) -> str:
    """The unit of strength and how it was chosen, in one to three lines.

    Args:
        unit: of the concept.
        evidence: the concept's `evidence["unit"]`; None where there is none.

    Raises:
        ValueError: evidence that lacks an entry.

    Example:
        >>> describe_unit(1.5, None)
        'unit 1.5; how it was chosen was not recorded'
    """
    trials = evidence.get("trials") if evidence else None
    chosen = next((trial for trial in trials or () if trial["unit"] == unit), None)
    values = {"unit": unit, "evidence": evidence, "trials": trials, "chosen": chosen}
    if chosen and evidence and "limits" in evidence:
        values |= _limits_of_texts(chosen, evidence)
    template = Path(__file__).with_name("unit.txt.jinja")
    return render_template(template, **values, min_accuracy=MIN_CLASSIFIER_ACCURACY).strip()


def _limits_of_texts(chosen: Mapping[str, Any], evidence: Mapping[str, Any]) -> dict[str, Any]:
    """What `unit.txt.jinja` tells of a unit within limits on texts."""
    harmless = [trial["unit"] for trial in evidence["trials"] if trial["harm"] <= 1]
    return {"broken": broken_limits(chosen, evidence), "largest_harmless": max(harmless, default=None)}


def describe_cost(cost: Mapping[str, Any] | None) -> str:
    """What learning took, in a line.

    Args:
        cost: the concept's `evidence["cost"]`, see `Meter.summary`; None where it was not measured.

    Example:
        >>> seconds = {"reading": 4.2, "fitting": 6.1}
        >>> describe_cost({"seconds": seconds, "passes": 3, "tokens_run": 1200, "tokens_needed": 1000})
        'learned in 10.3 s (reading 4.2, fitting 6.1); 3 forward passes, 1,200 tokens with 20 % padding'
    """
    if not cost:
        return "what learning took was not measured"
    phases = ", ".join(f"{name} {seconds:.1f}" for name, seconds in cost["seconds"].items())
    parts = [f"learned in {sum(cost['seconds'].values()):.1f} s ({phases})"]
    if cost.get("tokens_needed"):
        padding = 100 * (cost["tokens_run"] / cost["tokens_needed"] - 1)
        parts.append(f"{cost['passes']:,} forward passes, {cost['tokens_run']:,} tokens with {padding:.0f} % padding")
    if "peak_memory" in cost:
        place = "GPU memory" if cost["device"] == "cuda" else "memory"
        parts.append(f"the process held at most {cost['peak_memory'] / 2**30:.1f} GiB of {place}")
    return "; ".join(parts)


def describe_training(training: Mapping[str, Any] | None) -> str:
    """How maps, and perhaps gates, were trained together, in a line; "" where they were fitted.

    Args:
        training: the concept's `evidence["training"]`.

    Raises:
        KeyError: evidence that lacks an entry.

    Example:
        >>> history = [{"step": 0, "held_out": 3.5}, {"step": 150, "held_out": 0.49}]
        >>> describe_training({"steps": 200, "history": history, "best": history[1], "moved_dimensions": {"a": 160}})
        'trained for 200 steps; distance to held-out targets 3.5 before and 0.49 after 150; 160 dimensions are moved'
    """
    if not training:
        return ""
    best, moved = training["best"], sum(training["moved_dimensions"].values())
    before = training["history"][0]["held_out"]
    line = (
        f"trained for {training['steps']:,} steps; distance to held-out targets {before:.3g} before and "
        f"{best['held_out']:.3g} after {best['step']:.0f}"
    )
    if best.get("held_out_preservation"):
        line += f"; mean square of how far controls move {best['held_out_preservation']:.2g}"
    return f"{line}; {moved:,} dimensions are moved"


def describe_range(ends: Sequence[float] | None, evidence: Mapping[str, Any] | None) -> str:
    """The range of useful strengths, in a line.

    Args:
        ends: lowest and highest, in units; None where there are none.
        evidence: the concept's `evidence["range"]`; None before calibration.

    Example:
        >>> describe_range((-1.0, 2.0), None)
        'range -1 to 2: useful strengths, in units'
    """
    if ends is not None:
        low, high = ends
        less = "" if low < 0 else "; the other way nothing is to be seen, or it falls apart at once"
        return f"range {low:g} to {high:g}: useful strengths, in units{less}"
    if evidence:
        return "no range: at no strength that was tried are results useful"
    return "no range yet: `dsas calibrate` finds the useful ends"
