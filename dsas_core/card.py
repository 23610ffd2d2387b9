"""The card of a concept: what it does, by what evidence, and its limits; all of it is told by the concept itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import as_lines
from .pretrained import is_hub_name
from .unit import TRUSTED_EYES

if TYPE_CHECKING:
    from .concept import Concept

#: the strip of pictures, in a concept's folder
STRIP = "strip.webp"
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


@dataclass(frozen=True)
class Samples:
    """What a concept does to a source prompt and to a control prompt, neither of which it was fitted on.

    Args:
        prompts: the two. strengths: ascending, 0 among them.
        texts: what was written, by prompt and strength; () of pictures.
        strip: the pictures side by side, a WebP file's content; b"" of texts.
    """

    prompts: tuple[str, ...]
    strengths: tuple[float, ...]
    texts: tuple[tuple[str, ...], ...] = ()
    strip: bytes = b""

    def to_dict(self) -> dict[str, Any]:
        """All but the pictures, as plain data."""
        texts = {"texts": [list(line) for line in self.texts]} if self.texts else {}
        return {"prompts": list(self.prompts), "strengths": list(self.strengths), **texts}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], strip: bytes = b"") -> Samples:
        """The inverse of `to_dict`. Raises KeyError or TypeError or ValueError on what that does not write."""
        texts = tuple(tuple(map(str, line)) for line in data.get("texts", ()))
        return cls(tuple(map(str, data["prompts"])), tuple(map(float, data["strengths"])), texts, strip)


def card(concept: Concept, name: str | None = None) -> str:
    """The card in Markdown, for a folder and for the Hub.

    Args:
        name: what its example takes the concept by; None for the concept's own name, as of a folder.
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


def _front_matter(concept: Concept) -> str:
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


def _example(concept: Concept, name: str) -> str:
    pictures = {root for root in concept.base if root in _PICTURES or root.startswith("text_encoder")}
    lines = (
        ["import dsas_diffusion as dsas", "", f'with dsas.steer(pipe, {{"{name}": 1.0}}):']
        if pictures
        else ["from dsas_core import llm", "", f'with llm.steer(model, {{"{name}": 1.0}}):']
    )
    last = '    image = pipe("…").images[0]' if pictures else "    out = model.generate(**inputs)"
    return "\n".join(["```python", *lines, last, "```"])


def _evidence(concept: Concept) -> str:
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


def _limits(concept: Concept) -> list[str]:
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
