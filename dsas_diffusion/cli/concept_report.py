"""A concept as plain data, and printed for people: what it is, its evidence, size and provenance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dsas_core.concept.concept import Concept
from dsas_core.concept.curve import columns_of, legend_of, trial_rows
from dsas_core.concept.evidence import (
    describe_cost,
    describe_kept,
    describe_mask,
    describe_range,
    describe_reading,
    describe_training,
    describe_unit,
)

from .output import print_records

#: heading -> field of a site's evidence
ACCURACY = {
    "site": "site",
    "balanced accuracy": "balanced_accuracy",
    "AUROC": "auroc",
    "misses": "missed",
    "touches": "touched",
}
#: the same of control positions
CONTROLS = {
    "control h before": "control_h_before",
    "after": "control_h",
    "fired before": "control_fired_before",
    "fired after": "control_fired",
}


def describe_concept(concept: Concept, folder: Path) -> dict[str, Any]:
    """A concept as plain data: settings, size, evidence, provenance.

    Args:
        concept: the concept.
        folder: where it is saved; its files are listed if it is there.

    Example:
        >>> concept = Concept.from_pretrained("builtin:dog-grey")
        >>> describe_concept(concept, Path("nowhere"))["method"]
        'caa'
    """
    parts = [part for item in concept.interventions for part in (*item.probes, *item.maps)]
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    return {
        "name": concept.name,
        "description": concept.description,
        "method": concept.method,
        "gate": concept.gate,
        "unit": concept.unit,
        "range": concept.range,
        "edges": list(concept.edges),
        "sites": list(concept.evidence.get("sites", [])),
        "steered_sites": [str(site) for site in concept.steered_sites],
        "watched_sites": [str(site) for site in concept.sites if site not in concept.steered_sites],
        "parameters": sum(tensor.numel() for part in parts for tensor in part.tensors()),
        "bytes": {path.name: path.stat().st_size for path in files},
        "unit_evidence": concept.evidence.get("unit"),
        "range_evidence": concept.evidence.get("range"),
        "mask_evidence": concept.evidence.get("mask"),
        "kept": concept.evidence.get("kept"),
        "training": concept.evidence.get("training"),
        "steps_below": concept.steps_below,
        "cost": concept.evidence.get("cost"),
        "base": dict(concept.base),
        "provenance": dict(concept.provenance),
    }


def report_concept(document: dict[str, Any]) -> None:
    """Print what a concept is, its evidence, size and provenance."""
    print(f"{document['name']}: {document['description'] or 'no description'}")
    print(f"method {document['method']}, gate {document['gate']}\n")
    report_evidence(document)
    sizes = ", ".join(f"{name} {_size(size)}" for name, size in document["bytes"].items())
    steered, watched = len(document["steered_sites"]), len(document["watched_sites"])
    sites_text = f"{steered} site{'s' if steered != 1 else ''}" + (f", watching {watched} more" if watched else "")
    print(f"\n{document['parameters']:,} parameters, steering at {sites_text}")
    print(f"files: {sizes or 'not in a folder'}")
    print("\nprovenance")
    for key, value in {"learned on": document["base"], **document["provenance"]}.items():
        print(f"  {key}: {_shorten(key, value)}")


def report_evidence(document: dict[str, Any]) -> None:
    """Print the table of sites, how the unit was chosen, and the range; also the end of `dsas learn`."""
    if document["sites"]:
        _report_sites(document)
    else:
        print("no evidence was recorded")
    print()
    _report_trials(document)
    print(describe_unit(document["unit"], document["unit_evidence"]))
    print(describe_range(document["range"], document["range_evidence"]))
    if (below := document.get("steps_below")) is not None:
        print(f"steers in steps below timestep {below:g} alone, when things have found their places")
    if document.get("kept"):
        print(describe_kept(document["kept"]))
    if document["mask_evidence"]:
        print(describe_mask(document["mask_evidence"]))
    if document.get("training"):
        print(describe_training(document["training"]))
    if document["cost"]:
        print(describe_cost(document["cost"]))


def report_range(document: dict[str, Any]) -> None:
    """Print the strengths that calibration tried, and the unit and range that it chose."""
    evidence = document["range_evidence"]
    columns = ("strength", "effect", "drift", "reach", "strangeness", "useful")
    print_records(columns, evidence["trials"])
    print("on held-out prompts, strength in units. Effect: of what asking in words does; drift: of control prompts")
    print(f"(limit {evidence['drift_limit']:.2g}); reach: how far results move, of how far asking in words moves them")
    print(f"(limit {evidence['reach_limit']:.3g}); strangeness: how far results are from all that the unsteered model")
    print(f"makes, over how far its own are (limit {evidence['strangeness_limit']:.3g})\n")
    print(describe_unit(document["unit"], document["unit_evidence"]))
    print(describe_range(document["range"], document["range_evidence"]))


def _report_sites(document: dict[str, Any]) -> None:
    shown = [site for site in document["sites"] if not site.get("candidate")]
    sites = list({repr(site): site for site in shown}.values())  # those of equal bins once
    columns = {**ACCURACY, "weight": "weight", **CONTROLS, "rank": "rank", "scaler": "scaler", "reads": "reads"}
    columns = {"site": "site", "bin": "bin", **columns} if document["edges"] else columns
    print_records(_known(columns, sites), [{**site, "reads": site.get("reads") or None} for site in sites])
    if reading := describe_reading(document["sites"]):
        print(reading)
    print(
        "measured by cross-validation. On what must stay as it is (false positives), control h: the mean h; fired: the"
    )
    print("share with h above 0.5; each before and after the gate's threshold was placed")
    if any(site.get("missed") is not None for site in sites):
        print("misses: share of source prompts in which the gate opens nowhere; touches: of controls in which it opens")
    if unseen := [{"site": site["site"], **site["unseen"]} for site in sites if site.get("unseen")]:
        print("\non prompts of another domain, of which learning saw none; a prompt counts by its highest h")
        print_records(_known({**ACCURACY, **CONTROLS}, unseen), unseen)


def _report_trials(document: dict[str, Any]) -> None:
    """Print the curve that the unit was chosen from."""
    rows = trial_rows(document["unit"], document["unit_evidence"])
    if rows:
        shown = [{**row, "unit": f"{row['unit']:g}", "mark": "→" if row["chosen"] else " "} for row in rows]
        unit, *others = columns_of(rows).items()
        print_records(dict([("", "mark"), unit, ("of the full effect", "bar"), *others, ("breaks", "breaks")]), shown)
        print(f"{legend_of(rows)} On held-out prompts; → is the unit, and breaks names the limits that a row exceeds\n")


def _known(columns: dict[str, str], records: list[dict[str, Any]]) -> dict[str, str]:
    """The columns of which some record knows something."""
    return {
        heading: key for heading, key in columns.items() if any(record.get(key) not in (None, "") for record in records)
    }


def _size(count: float) -> str:
    for unit in ("B", "kB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} MB"


def _shorten(key: str, value: Any) -> str:
    """An item of the provenance in one line; --json has all of it."""
    if key == "prompts" and isinstance(value, dict):
        sides = (f"{len(value[side])} {side}" for side in ("source", "target", "control") if side in value)
        return f"{value.get('name')}, templates: {', '.join(sides)}"
    if key == "prompt_hashes" and isinstance(value, dict):
        sides = (f"{len(hashes)} {side}" for side, hashes in value.get("drawn", {}).items())
        return f"{value.get('name')}, hashes only: {', '.join(sides)}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_as_text(item)}" for name, item in value.items())
    return _as_text(value)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
