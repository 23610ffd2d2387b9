"""The card of a concept: what it does, on what evidence, and its limits, all from the concept itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..model.loading import is_hub_name
from ..utils.files import as_lines
from .data import ConceptData
from .evidence import range_in_words, unit_in_words
from .samples import STRIP, Samples

#: a table of more rows than this is folded up
LONG = 24
#: roots of pictures
_PICTURES = {"unet", "transformer"}
#: heading of a column of the evidence, field, and how it is written
_COLUMNS = (
    ("site", "site", "`{}`"),
    ("bin", "bin", "{}"),
    ("balanced accuracy", "balanced_accuracy", "{:.3f}"),
    ("AUROC", "auroc", "{:.3f}"),
    ("weight", "weight", "{:.3f}"),
    ("mean h on controls", "control_h", "{:.4f}"),
    ("controls with h > 0.5", "control_fired", "{:.4f}"),
)


def card(concept: ConceptData, name: str | None = None) -> str:
    """The card in Markdown, for a folder and for the Hub.

    Args:
        concept: what the card is about; nothing else is read.
        name: what its example takes the concept by; None for the concept's own name, as of a folder.

    Example:
        >>> text = card(ConceptData("blur", (), description="Blurs bananas."))
        >>> text.splitlines()[:3]
        ['---', 'library_name: dsas', 'tags: [activation-steering, dsas]']
    """
    blocks = [
        _front_matter(concept),
        f"# {concept.name}",
        concept.description,
        _shown(concept.samples),
        f"Method `{concept.method}`, gate `{concept.gate}`.",
        _example(concept, name or concept.name),
        "## Evidence",
        _evidence(concept),
        "## Limits",
        "\n".join(f"- {line}" for line in _limits(concept)),
        "## Provenance",
        *_provenance(concept.provenance),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _front_matter(concept: ConceptData) -> str:
    model = str(concept.provenance.get("model", ""))
    base = [f"base_model: {model}"] if is_hub_name(model) and not Path(model).exists() else []
    kind = ["pipeline_tag: text-to-image"] if set(concept.base) & _PICTURES else []
    return "\n".join(["---", "library_name: dsas", *base, *kind, "tags: [activation-steering, dsas]", "---"])


def _shown(samples: Samples | None) -> str:
    """The strip, or a table of what was written."""
    if samples is None:
        return ""
    if not samples.texts:
        prompts = "; ".join(samples.prompts)
        return f"![{_cell(prompts)}]({STRIP})" if samples.strip else ""
    lines = ["| prompt | strength | answer |", "|---|---|---|"]
    for prompt, answers in zip(samples.prompts, samples.texts, strict=True):
        lines += [
            f"| {_cell(prompt)} | {strength:g} | {_cell(answer)} |"
            for strength, answer in zip(samples.strengths, answers, strict=True)
        ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """A text as it may stand in a table or in brackets."""
    told = " ".join(text.split())
    for mark in "\\|[]`<>*_":
        told = told.replace(mark, f"\\{mark}")
    return told


def _example(concept: ConceptData, name: str) -> str:
    pictures = {root for root in concept.base if root in _PICTURES or root.startswith("text_encoder")}
    lines = (
        ["import dsas_diffusion as dsas", "", f'with dsas.steer(pipe, {{"{name}": 1.0}}):']
        if pictures
        else ["from dsas_core import llm", "", f'with llm.steer(model, {{"{name}": 1.0}}):']
    )
    last = '    image = pipe("…").images[0]' if pictures else "    out = model.generate(**inputs)"
    return "\n".join(["```python", *lines, last, "```"])


def _evidence(concept: ConceptData) -> str:
    """The table of sites."""
    sites = concept.evidence.get("sites", [])
    if not sites:
        return "None recorded."
    known = {key for site in sites for key in site if concept.edges or key != "bin"}
    columns = [column for column in _COLUMNS if column[1] in known]
    rows = [" | ".join(form.format(site[key]) if key in site else "–" for _, key, form in columns) for site in sites]
    rows = list(dict.fromkeys(rows))  # where all bins are one
    headings = " | ".join(heading for heading, _, _ in columns)
    table = "\n".join([f"| {headings} |", "|" + "---|" * len(columns), *(f"| {row} |" for row in rows)])
    if len(rows) > LONG:
        table = f"<details><summary>{len(rows)} rows</summary>\n\n{table}\n\n</details>"
    return f"{table}\n\nCross-validated on prompts that the gate was not fitted on."


def _limits(concept: ConceptData) -> list[str]:
    """What learning and calibration tell of how far to trust it."""
    evidence = concept.evidence
    model = concept.provenance.get("model")
    parts = ", ".join(
        f"{root} {known['class']} of {known['parameters']:,} parameters" for root, known in concept.learned_on.items()
    )
    lines = [f"learned on {model}" + (f" ({parts})" if parts else "")] if model else []
    lines += ["; ".join(unit_in_words(concept.unit, evidence.get("unit")).split("\n"))]
    lines += [range_in_words(concept.range, evidence.get("range"))]
    steered = {str(site) for site in concept.steered_sites}
    told = [site for site in evidence.get("sites", []) if site["site"] in steered and "control_h" in site]
    if told:
        worst = max(told, key=lambda site: site["control_h"])
        mean = sum(site["control_h"] for site in told) / len(told)
        lines += [
            f"on control prompts, mean h over the sites that steer is {mean:.4f}, and {worst['control_h']:.4f} at most "
            f"(`{worst['site']}`)"
        ]
    return lines


def _provenance(provenance: Mapping[str, Any]) -> list[str]:
    """The command, the prompt file's hash, and all that was recorded."""
    blocks = []
    if "command" in provenance:
        blocks += [f"```bash\n{provenance['command']}\n```"]
    if "prompts_sha256" in provenance:
        blocks += [f"SHA-256 of the prompt file: `{provenance['prompts_sha256']}`"]
    return [*blocks, f"```json\n{as_lines(provenance)}\n```"]
