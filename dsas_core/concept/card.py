"""The card of a concept: what it does, on what evidence, and its limits, all of it from the concept itself."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..model.loading import is_hub_name
from ..utils.saving.files import to_readable_json
from ..utils.templates import render_template
from .curve import columns_of, legend_of, trial_rows
from .data import ConceptData
from .evidence import (
    describe_cost,
    describe_kept,
    describe_mask,
    describe_range,
    describe_reading,
    describe_training,
    describe_unit,
)
from .samples import STRIP, Samples

TEMPLATE = Path(__file__).with_name("card.md.jinja")
#: a table of more rows than this is folded up
LONG = 24
#: roots of models that draw
_PICTURES = {"unet", "transformer"}
#: columns of the evidence: heading, field, and format of the value
_COLUMNS = (
    ("site", "site", "`{}`"),
    ("bin", "bin", "{}"),
    ("balanced accuracy", "balanced_accuracy", "{:.3f}"),
    ("AUROC", "auroc", "{:.3f}"),
    ("misses", "missed", "{:.3f}"),
    ("touches", "touched", "{:.3f}"),
    ("weight", "weight", "{:.3f}"),
    ("reads", "reads", "`{}`"),
    ("mean h on controls", "control_h", "{:.4f}"),
    ("controls with h > 0.5", "control_fired", "{:.4f}"),
)


def render_card(concept: ConceptData, name: str | None = None) -> str:
    """The card in Markdown, for a concept's folder and for the Hub.

    Args:
        concept: the concept; nothing else is read.
        name: the name that the card's example loads the concept by; None for the concept's own name, as of a folder.

    Example:
        >>> text = render_card(ConceptData("blur", (), description="Blurs bananas."))
        >>> text.splitlines()[:3]
        ['---', 'library_name: dsas', 'tags: [activation-steering, dsas]']
    """
    samples = None if concept.is_private else concept.samples
    model = str(concept.provenance.get("model") or "")
    return render_template(
        TEMPLATE,
        concept=concept,
        name=name or concept.name,
        base_model=model if is_hub_name(model) and not Path(model).exists() else "",
        draws=bool(set(concept.base) & _PICTURES),
        has_pipeline=any(root in _PICTURES or root.startswith("text_encoder") for root in concept.base),
        model=model,
        parts=", ".join(
            f"{root} {known['class']} of {known['parameters']:,} parameters"
            for root, known in concept.learned_on.items()
        ),
        answers=_answers(samples) if samples and samples.texts else [],
        strip=STRIP if samples and samples.strip else "",
        strip_title=_escape("; ".join(samples.prompts)) if samples else "",
        unit="; ".join(describe_unit(concept.unit, concept.evidence.get("unit")).split("\n")),
        range=describe_range(concept.range, concept.evidence.get("range")),
        mask=describe_mask(concept.evidence.get("mask")),
        training=describe_training(concept.evidence.get("training")),
        kept=describe_kept(concept.evidence.get("kept")),
        below="" if concept.steps_below is None else f"{concept.steps_below:g}",
        cost=describe_cost(concept.evidence["cost"]) if "cost" in concept.evidence else "",
        provenance=to_readable_json(_shown_provenance(concept)),
        **_evidence(concept),
        **_trials(concept),
        **_control_scores(concept),
    )


def _shown_provenance(concept: ConceptData) -> dict[str, Any]:
    """The provenance, of private prompts without texts and without the hashes of single prompts."""
    shown = dict(concept.provenance)
    if concept.is_private:
        shown.pop("prompts", None)
        hashes = shown.pop("prompt_hashes", None)
        about = {key: hashes[key] for key in ("name", "sha256", "counts") if key in hashes} if hashes else {}
        shown = {"prompts": {"private": True, **about}, **shown}
    return shown


def _answers(samples: Samples) -> list[tuple[str, str, str]]:
    """Rows of a table of generated texts: prompt, strength and answer."""
    return [
        (_escape(prompt), f"{strength:g}", _escape(answer))
        for prompt, answers in zip(samples.prompts, samples.texts, strict=True)
        for strength, answer in zip(samples.strengths, answers, strict=True)
    ]


def _escape(text: str) -> str:
    """A text as it may stand in a table or in brackets."""
    return re.sub(r"([\\|\[\]`<>*_])", r"\\\1", " ".join(text.split()))


def _evidence(concept: ConceptData) -> dict[str, Any]:
    """The tables of sites, on prompts like those of learning and on others, without sites that are not steered."""
    sites = concept.evidence.get("sites", [])
    shown = [site for site in sites if not site.get("candidate")]
    shown = shown if concept.edges else [{key: site[key] for key in site if key != "bin"} for site in shown]
    headings, rows = _table(shown)
    unseen = [{"site": site["site"], **site["unseen"]} for site in shown if site.get("unseen")]
    unseen_headings, unseen_rows = _table(unseen)
    return {
        "headings": headings,
        "rows": rows,
        "folded": len(rows) > LONG,
        "has_shares": "misses" in headings,
        "reading": describe_reading(sites),
        "unseen_headings": unseen_headings,
        "unseen_rows": unseen_rows,
    }


def _table(records: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Headings and rows of what is known; rows that are equal, as those of equal bins, are listed once."""
    known = {key for record in records for key, value in record.items() if value not in (None, "")}
    columns = [column for column in _COLUMNS if column[1] in known]
    rows = [tuple(_cell(record.get(key), form) for _, key, form in columns) for record in records]
    return [heading for heading, _, _ in columns], list(dict.fromkeys(rows))


def _cell(value: object, form: str) -> str:
    return "–" if value in (None, "") else form.format(value)


def _trials(concept: ConceptData) -> dict[str, Any]:
    """The table of units that were tried."""
    trials = trial_rows(concept.unit, concept.evidence.get("unit"))
    columns = columns_of(trials)
    rows = []
    for trial in trials:
        unit, *others = (f"{trial[key]:.3g}" if key in trial else "–" for key in columns.values())
        rows.append([f"**{unit}**" if trial["chosen"] else unit, *others, trial["breaks"] or "–"])
    return {"trials": rows, "trial_headings": [*columns, "breaks limit of"], "legend": legend_of(trials)}


def _control_scores(concept: ConceptData) -> dict[str, str]:
    """Mean and highest h on control prompts over the sites that steer, and the site of the highest."""
    steered = {str(site) for site in concept.steered_sites}
    sites = concept.evidence.get("sites", [])
    known = [site for site in sites if site["site"] in steered and site.get("control_h") is not None]
    if not known:
        return {"worst": ""}
    worst = max(known, key=lambda site: site["control_h"])
    mean = sum(site["control_h"] for site in known) / len(known)
    return {"worst": worst["site"], "mean_h": f"{mean:.4f}", "highest_h": f"{worst['control_h']:.4f}"}
