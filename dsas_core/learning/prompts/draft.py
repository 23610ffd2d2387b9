"""A prompt file drafted from two phrases, for those who have not written one yet."""

from __future__ import annotations

import re
from typing import Any

from ...errors import PromptError

#: everyday things for drafted controls and neighbours
_THINGS = ("dog", "cat", "car", "house", "tree", "flower", "apple", "lemon", "clock", "hat", "boat", "star", "guitar")
_PLACES = (
    "on the grass",
    "on a table",
    "on the beach",
    "in the snow",
    "at night",
    "on a white background",
    "on a blue background",
    "on a yellow background",
)


def is_name(text: str) -> bool:
    """Whether a concept, and what is called after it, may bear a name: letters and digits of ASCII, ".", "_", "-"."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text) is not None


def draft(source: str, target: str, name: str | None = None) -> dict[str, Any]:
    """A prompt file from two phrases, to be looked at and edited: `draft("banana", "blurred banana")`.

    Half of the pairs show the thing alone and half beside another one. Controls are everyday things, alone and in
    pairs, in the same places; what the target adds ("blurred") appears on them too, so that the gate learns the thing
    and not the change.

    Raises:
        PromptError: an empty phrase, or two that are the same.
    """
    source, target = (" ".join(re.sub(r"^(an?|the)\s+", "", phrase.strip()).split()) for phrase in (source, target))
    if not source or not target:
        raise PromptError("two phrases are needed, what to change and what into: for example banana, blurred banana")
    if source.lower() == target.lower():
        raise PromptError(f"both phrases are {source!r}: there is nothing to learn")
    words = {word.lower() for word in f"{source} {target}".split()}
    others = [thing for thing in _THINGS if thing not in words]
    added = [word for word in target.split() if word.lower() not in {w.lower() for w in source.split()}]
    controls = ["a {other} {place}", "a {other} and a {second} {place}"]
    if added and target.lower().endswith(source.lower()):
        controls.append(f"a {' '.join(added)} {{other}} {{place}}")
    shapes = ("a {} {place}", "a photo of a {} {place}", "a {} and a {other} {place}", "a {other} and a {} {place}")
    slug = re.sub(r"[^a-z0-9]+", "-", f"{source} to {target}".lower()).strip("-")
    return {
        "name": name or slug,
        "description": f"Turns {source} into {target}; drafted, edit freely.",
        "placeholders": {"other": others, "second": others[::-1], "place": list(_PLACES)},
        "source": [shape.replace("{}", source) for shape in shapes],
        "target": [shape.replace("{}", target) for shape in shapes],
        "control": controls,
    }
