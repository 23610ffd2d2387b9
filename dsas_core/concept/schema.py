"""The schema of a concept: what each of its fields may hold, whoever wrote it. `save` and every reader use it.

Probes and maps declare the shapes and bounds of their tensors themselves, see `utils.tensorclass.Holds`. Here is the
rest: names, numbers, sites, and those items of evidence, provenance and samples that the card, commands or the demo
read. Other items are free, as far as JSON goes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from ..errors import quote, shorten
from ..maps import Map
from ..maps.envelope import EllipticEnvelope
from ..model.sites import Site
from ..probes import Probe, RunningProbe
from ..utils.saving.names import why_no_name
from ..utils.tensorclass import TensorClass, check_values
from .data import ConceptData
from .intervention import Intervention, check_widths
from .samples import Samples, check_picture
from .storage.reading import check_json

#: characters of a name, of a method or gate or the path of a site, and of a description
MAX_LINE, MAX_TEXT = 1000, 20_000
#: bounds of the unit, and of the ends of the range: far beyond what a model survives
UNITS, MAX_RANGE = (1e-6, 1e6), 1e6
#: timesteps are above 0 and below this
TIMESTEPS = 1000.0
#: timestep bins, and interventions in all of them; a language model of 405 billion parameters has 16,128 heads
MAX_BINS, MAX_INTERVENTIONS = 1000, 20_000
#: how deeply probes are within one another, methods make three levels; and how many are within one
MAX_LEVELS, MAX_PARTS = 8, 100
#: prompts that a concept was learned from
MAX_PROMPTS = 10**6
#: channels and positions of a site, and outputs of a module
MAX_INDEX = 2**31

# ---- plain data -----------------------------------------------------------------------------------------------------


def is_number(value: Any, low: float = -1e308, high: float = 1e308) -> bool:
    """Whether a value is a number, and no truth value, within bounds.

    Example:
        >>> is_number(1), is_number(True), is_number("1"), is_number(float("nan")), is_number(10**400)
        (True, False, False, False, False)
    """
    return type(value) in (int, float) and low <= value <= high


#: what is expected -> whether a value is that
_KINDS: dict[str, Callable[[Any], bool]] = {
    "a text": lambda value: isinstance(value, str),
    "a line of text": lambda value: isinstance(value, str) and value.isprintable() and 0 < len(value) <= MAX_LINE,
    "a number": is_number,
    "a number from 0 to 1": lambda value: is_number(value, 0, 1),
    "a seed": lambda value: type(value) is int and -(2**63) <= value < 2**63,
    "a count": lambda value: type(value) is int and value >= 0,
    "a number of prompts": lambda value: type(value) is int and 0 <= value <= MAX_PROMPTS,
    "true or false": lambda value: isinstance(value, bool),
    "a mapping": lambda value: isinstance(value, dict),
}
#: in the specification of a mapping: what keys that it does not name hold, and those that it must have
OTHERS, NEEDED = "*", "!"

_SCORE_NAMES = ("weight", "balanced_accuracy", "auroc", "missed", "touched", "control_h", "control_fired")
_SCORES = dict.fromkeys((*_SCORE_NAMES, "control_h_before", "control_fired_before"), (None, "a number"))
_SITE = {
    NEEDED: ("site",),
    "site": "a line of text",
    "bin": "a count",
    "reads": (None, "a text"),
    "candidate": "true or false",
    "unseen": (None, _SCORES),
    **_SCORES,
}
_TRIAL = {NEEDED: ("unit", "effect"), **dict.fromkeys(("unit", "effect", "drift"), "a number"), OTHERS: "a number"}
_UNIT = {
    "trials": (None, [_TRIAL]),
    "limits": {OTHERS: "a number"},
    "reached": "true or false",
    **dict.fromkeys(("drift_limit", "eyes_accuracy"), "a number"),
}
_MASK = {
    "sites": ["a line of text"],
    "unnamed": (None, {OTHERS: "a number"}),
    **dict.fromkeys(("margin", "growth", "covered", "missed", "touched"), "a number"),
}
_PART = {NEEDED: ("changed", "pictures"), "changed": "a count", "pictures": "a count"}
_KEPT = {
    NEEDED: ("beside", "without", "neighbours"),
    **dict.fromkeys(("alone", "beside", "without"), _PART),
    "neighbours": {OTHERS: _PART},
}
_CHECK = {NEEDED: ("step", "held_out"), OTHERS: "a number"}
_TRAINING = {
    NEEDED: ("steps", "history", "best", "moved_dimensions"),
    "steps": "a count",
    "memory": "a count",
    "checkpointing": "true or false",
    "history": [_CHECK],
    "best": _CHECK,
    "moved_dimensions": {OTHERS: "a count"},
}
_COST = {
    "seconds": {OTHERS: "a number"},
    "device": "a text",
    **dict.fromkeys(("passes", "tokens_run", "tokens_needed", "peak_memory"), "a count"),
}
_MODULE = {
    NEEDED: ("class", "parameters"),
    "class": "a line of text",
    "parameters": "a count",
    "sample": [(None, "a number")],
}
_SETTINGS = {"steps": "a count", "guidance": "a number", "scheduler": (None, "a text"), "size": (None, "a count")}
#: field -> specification of those of its items that something reads
_FREE_FORM: dict[str, Any] = {
    "base": {OTHERS: "a line of text"},
    "learned_on": {OTHERS: _MODULE},
    "evidence": {
        "sites": [_SITE],
        "unit": (None, _UNIT),
        "range": (None, {}),
        "mask": (None, _MASK),
        "kept": (None, _KEPT),
        "training": (None, _TRAINING),
        "cost": (None, _COST),
    },
    "provenance": {
        "model": (None, "a text"),
        "seed": "a seed",
        "count": "a number of prompts",
        "positions": "a text",
        "command": "a text",
        "prompts_sha256": "a text",
        "prompts": {"name": "a text", "source": ["a text"], "target": ["a text"], "control": ["a text"]},
        "prompt_hashes": {
            "name": "a text",
            "sha256": "a text",
            "counts": {OTHERS: "a count"},
            "drawn": {OTHERS: ["a text"]},
        },
        "recipe": {},
        "settings": (None, _SETTINGS),
        "versions": {},
    },
}
SAMPLES = {
    NEEDED: ("prompts", "strengths"),
    "prompts": ["a text"],
    "strengths": ["a number"],
    "texts": [["a text"]],
}


def check_plain(value: Any, expected: Any, name: str) -> None:
    """Raise a ValueError where plain data is not as a specification says.

    Args:
        value: plain data.
        expected: words of `_KINDS`; a list with the specification of its items; a mapping of keys, which need not be
            there, to specifications; or (None, specification) where it may be null.
        name: of the value, for the message.

    Example:
        >>> check_plain({"auroc": "high"}, {"auroc": "a number"}, "evidence")
        Traceback (most recent call last):
        ValueError: evidence.auroc must be a number, found 'high'
    """
    if isinstance(expected, tuple):
        if value is None:
            return
        expected = expected[1]
    if isinstance(expected, str):
        if not _KINDS[expected](value):
            raise ValueError(f"{name} must be {expected}, found {quote(value)}")
    elif isinstance(expected, list):
        if not isinstance(value, list):
            raise ValueError(f"{name} must be a list, found {quote(value)}")
        for i, item in enumerate(value):
            check_plain(item, expected[0], f"{name}[{i}]")
    else:
        if not isinstance(value, dict):
            raise ValueError(f"{name} must be a mapping, found {quote(value)}")
        for key in expected.get(NEEDED, ()):
            if key not in value:
                raise ValueError(f"{name} lacks {key}")
        for key, item in value.items():
            specification = expected.get(key, expected.get(OTHERS)) if key != NEEDED else None
            if isinstance(specification, str) and _KINDS[specification](item):  # most are, and names take time
                continue
            if specification is not None:
                check_plain(item, specification, f"{name}.{shorten(key, 100)}")


# ---- concepts -------------------------------------------------------------------------------------------------------


def check_name(name: Any) -> None:
    """Raise a ValueError where a concept's name is none that a folder and a command can have.

    Example:
        >>> check_name("../up")
        Traceback (most recent call last):
        ValueError: name '../up' is such as no folder may have: it has '/'
    """
    reason = why_no_name(name) if isinstance(name, str) else "it is no text"
    if reason:
        raise ValueError(f"name {quote(name)} is such as no folder may have: {reason}")


def check_concept(concept: ConceptData) -> None:
    """Raise a ValueError where a concept holds what none can: one that could not be read, shown, attached or saved.

    Its message says what was found and what was expected.

    Example:
        >>> check_concept(ConceptData("blur", ()))
        Traceback (most recent call last):
        ValueError: it has no interventions
    """
    check_name(concept.name)
    for field in ("method", "gate"):
        check_plain(getattr(concept, field), "a line of text", field)
    _check_description(concept.description)
    for field, expected in _FREE_FORM.items():
        check_plain(getattr(concept, field), expected, field)
        check_json(getattr(concept, field))
    _check_numbers(concept)
    if concept.samples is not None:
        _check_samples(concept.samples)
    if not concept.interventions:
        raise ValueError("it has no interventions")
    for item in concept.interventions:
        _check_intervention(item, bins=len(concept.edges) + 1)
    check_widths(concept.interventions)


def _check_description(text: Any) -> None:
    controls = ("Cc", "Cs")  # with joiners, marks of direction and spaces of all languages a text is written
    valid = isinstance(text, str) and all(unicodedata.category(c) not in controls or c in "\n\r\t" for c in text)
    if not valid or len(text) > MAX_TEXT:
        raise ValueError(
            f"description must be a text of up to {MAX_TEXT} characters, none of them a control character, found "
            f"{quote(text)}"
        )


def _check_numbers(concept: ConceptData) -> None:
    unit, edges, ends = concept.unit, concept.edges, concept.range
    if not is_number(unit, *UNITS):
        raise ValueError(f"unit must be a number above 0, from {UNITS[0]:g} to {UNITS[1]:g}, found {quote(unit)}")
    if len(edges) >= MAX_BINS or not all(is_number(edge, 0, TIMESTEPS) and 0 < edge < TIMESTEPS for edge in edges):
        raise ValueError(
            f"edges must be up to {MAX_BINS - 1} numbers between 0 and {TIMESTEPS:g}, found {quote(list(edges))}"
        )
    if any(high <= low for low, high in pairwise(edges)):
        raise ValueError(f"edges must ascend, found {quote(list(edges))}")
    if ends is not None and not (
        len(ends) == 2 and is_number(ends[0], -MAX_RANGE, 0) and is_number(ends[1], 0, MAX_RANGE) and ends[0] < ends[1]
    ):
        raise ValueError(f"range must be two numbers, from 0 or below to 0 or above, found {quote(list(ends))}")


def _check_samples(samples: Samples) -> None:
    check_plain(samples.to_dict(), SAMPLES, "samples")
    strengths, texts = samples.strengths, samples.texts
    check_json(samples.to_dict())
    if any(high <= low for low, high in pairwise(strengths)):
        raise ValueError(f"samples.strengths must ascend, found {quote(list(strengths))}")
    if texts and (len(texts) != len(samples.prompts) or {len(line) for line in texts} != {len(strengths)}):
        raise ValueError("samples.texts must be a list of texts for each prompt, one for each strength")
    if samples.strip:
        check_picture(samples.strip)


def _check_intervention(item: Intervention, bins: int) -> None:
    for site in (item.site, *([] if item.probe_site is None else [item.probe_site])):
        check_site(site)
    if not all(isinstance(probe, Probe) for probe in item.probes) or not all(isinstance(m, Map) for m in item.maps):
        raise ValueError(f"{item.site} needs probes and maps")
    if {len(item.probes), len(item.maps), len(item.weights)} != {bins}:
        raise ValueError(
            f"{bins - 1} edges need {bins} bins at each site, and {item.site} has not one probe, map and weight in "
            "every bin"
        )
    valid = all(isinstance(cloud, EllipticEnvelope) for cloud in item.clouds)
    if item.clouds and (len(item.clouds) != bins or not valid):
        raise ValueError(f"{item.site} needs a cloud in every bin, or none at all")
    if (item.probe_site or item.site).tokens is not None and isinstance(item.probes[0], RunningProbe):
        raise ValueError(
            f"{item.site}: a probe of kind {item.probes[0].kind} follows a text, and has to read all of it"
        )
    for weight in item.weights:
        check_plain(weight, "a number from 0 to 1", f"weight at {item.site}")
    for part in {id(part): part for part in (*item.probes, *item.maps, *item.clouds)}.values():
        _check_levels(part)
        try:
            check_values(part)
        except ValueError as error:
            raise ValueError(f"{item.site}: {error}") from None


def check_site(site: Site) -> None:
    """Raise a ValueError where a site is none that a model can have.

    Example:
        >>> check_site(Site("unet.mid", tokens=(3, 1)))
        Traceback (most recent call last):
        ValueError: tokens of site unet.mid must be two whole numbers or null, the first below the second, found (3, 1)
    """
    check_plain(site.path, "a line of text", "the path of a site")
    check_plain(site.index, "a count", f"index of site {site.path}")
    if not site.path.replace(".", "").strip() or site.index > MAX_INDEX:
        raise ValueError(
            f"site {quote(site.path)}, output {site.index}: expected the path of a module, such as unet.mid"
        )
    for name in ("tokens", "channels"):
        ends = getattr(site, name)
        if ends is not None and not _is_slice(ends):
            raise ValueError(
                f"{name} of site {site.path} must be two whole numbers or null, the first below the second, found "
                f"{quote(ends)}"
            )


def _is_slice(ends: Any) -> bool:
    if not isinstance(ends, tuple) or len(ends) != 2:
        return False
    if not all(end is None or (type(end) is int and abs(end) < MAX_INDEX) for end in ends):
        return False
    start, stop = 0 if ends[0] is None else ends[0], ends[1]
    return stop is None or (start < 0) != (stop < 0) or start < stop


def _check_levels(part: TensorClass, level: int = 0) -> None:
    """Raise a ValueError where parts are nested too deeply, or one that has to follow a text is within another."""
    if level > MAX_LEVELS:
        raise ValueError(f"more than {MAX_LEVELS} probes are within one another")
    if level and isinstance(part, RunningProbe):
        raise ValueError(f"a probe of kind {part.kind} follows a text, which it cannot within another probe")
    children = part.children()
    if len(children) > MAX_PARTS:
        raise ValueError(f"{len(children)} probes are within one: expected up to {MAX_PARTS}")
    for child in children:
        _check_levels(child, level + 1)
