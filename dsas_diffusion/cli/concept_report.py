"""A concept as plain data, and as tables and lines for people: what it is, the evidence, sizes, provenance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dsas_core.concept.concept import Concept
from dsas_core.concept.evidence import describe_range, describe_unit

from .output import table

#: columns on control positions -> field
CONTROLS = {
    "control h before": "control_h_before",
    "after": "control_h",
    "fired before": "control_fired_before",
    "fired after": "control_fired",
}


def describe_concept(concept: Concept, folder: Path) -> dict[str, Any]:
    """A concept as plain data: settings, size, evidence, provenance."""
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
        "base": dict(concept.base),
        "provenance": dict(concept.provenance),
    }


def report_concept(document: dict[str, Any]) -> None:
    """What it is, the evidence, the sizes, where it comes from."""
    print(f"{document['name']}: {document['description'] or 'no description'}")
    print(f"method {document['method']}, gate {document['gate']}\n")
    report_evidence(document)
    sizes = ", ".join(f"{name} {_size(size)}" for name, size in document["bytes"].items())
    steered, watched = len(document["steered_sites"]), len(document["watched_sites"])
    places = f"{steered} site{'s' if steered != 1 else ''}" + (f", watching {watched} more" if watched else "")
    print(f"\n{document['parameters']:,} parameters, steering at {places}")
    print(f"files: {sizes or 'not in a folder'}")
    print("\nprovenance")
    for key, value in {"learned on": document["base"], **document["provenance"]}.items():
        print(f"  {key}: {_brief(key, value)}")


def report_evidence(document: dict[str, Any]) -> None:
    """The table of sites, the choice of the unit, and the range. Also the end of `dsas learn`."""
    if document["sites"]:
        _report_sites(document)
    else:
        print("no evidence was recorded")
    print()
    print(describe_unit(document["unit"], document["unit_evidence"]))
    print(describe_range(document["range"], document["range_evidence"]))


def report_range(document: dict[str, Any]) -> None:
    """What calibration tried, and the unit and the ends that it chose."""
    evidence = document["range_evidence"]
    columns = ("strength", "effect", "drift", "reach", "strangeness", "useful")
    table(columns, [[trial[column] for column in columns] for trial in evidence["trials"]])
    print("on held-out prompts, strength in units. Effect: of what asking in words does; drift: of control prompts")
    print(f"(limit {evidence['drift_limit']:.2g}); reach: how far results move, of how far asking in words moves them")
    print(f"(limit {evidence['reach_limit']:.3g}); strangeness: how far results are from all that the unsteered model")
    print(f"makes, over how far its own are (limit {evidence['strangeness_limit']:.3g})\n")
    print(describe_unit(document["unit"], document["unit_evidence"]))
    print(describe_range(document["range"], document["range_evidence"]))


def _report_sites(document: dict[str, Any]) -> None:
    columns = {
        "site": "site",
        "bin": "bin",
        "balanced accuracy": "balanced_accuracy",
        "AUROC": "auroc",
        "weight": "weight",
        **CONTROLS,
        "rank": "rank",
        "scaler": "scaler",
    }
    if not document["edges"]:
        del columns["bin"]
    table(list(columns), [[site.get(key) for key in columns.values()] for site in document["sites"]])
    print(
        "measured by cross-validation. On what must stay as it is (false positives), control h: the mean h; fired: the"
    )
    print("share with h above 0.5; each before and after the gate's threshold was placed")
    if any(site.get("unseen") for site in document["sites"]):
        columns = {"site": "site", "balanced accuracy": "balanced_accuracy", "AUROC": "auroc", **CONTROLS}
        print("\non prompts of another domain, of which learning saw none; a prompt counts by its highest h")
        rows = [{"site": site["site"], **site["unseen"]} for site in document["sites"] if site.get("unseen")]
        table(list(columns), [[row.get(key) for key in columns.values()] for row in rows])


def _size(count: float) -> str:
    for unit in ("B", "kB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} MB"


def _brief(key: str, value: Any) -> str:
    """One line for one item of the provenance; all of it is in --json."""
    if key == "prompts" and isinstance(value, dict):
        sides = (f"{len(value[side])} {side}" for side in ("source", "target", "control") if side in value)
        return f"{value.get('name')}, templates: {', '.join(sides)}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    return _plain(value)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
