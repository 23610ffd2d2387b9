"""Prompt files: what shows the concept, what shows its replacement, what must stay as it is.

```yaml
name: banana-blur
description: Blurs bananas and nothing else.
placeholders:
  place: [on the grass, on a table]
  other: [dog, cat]
source: ["a banana {place}", "a banana and a {other} {place}"]
target: ["a blurred banana {place}", "a blurred banana and a {other} {place}"]
control: ["a {other} {place}", "a lemon {place}"]
evaluation:                      # optional, free names: prompts kept out of learning
  alone: ["a banana in the snow"]
  unseen_source: ["a banana on the moon"]   # of another domain: what evaluation draws its prompts from
  unseen_target: ["a blurred banana on the moon"]
  unseen_control: ["a rocket on the moon"]
spans: ["you {insult}", fool]    # optional: words of source texts that show the concept, for supervision by positions
judge: {builtin: {things: [banana], style: blurred}}  # optional: who tells whether an output shows what is wanted
masks: {segmentation: {model: user/name, labels: [banana]}}  # optional: who tells where, if not the judge
```

Several judges make a list: figures are the first one's, the others are told beside.

A template is expanded over all values of its placeholders. Source and target templates that stand at the same place
and use the same placeholders are expanded together, so their prompts form pairs.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DSASError

MINIMUM = 8
#: control prompts drawn for each source prompt: what must not change is more varied than what must
CONTROLS = 2
SIDES = ("source", "target", "control")
#: source and target prompts to draw where nobody says
COUNT = 48
#: characters that a file's templates may expand to, and what a prompt counts beside its own: the largest file that
#: ships has 4 million
MOST_EXPANDED, EACH = 10_000_000, 64
_KNOWN = {"name", "description", "placeholders", "evaluation", "spans", "judge", "masks", *SIDES}


@dataclass(frozen=True)
class PromptSet:
    """A checked prompt file.

    `spans` are templates of words of source texts that show the concept. `judges` say who tells whether an output shows
    what is wanted, `masks` who tells where; who evaluates reads them. `sha256` is that of the file that it was read
    from, if any.
    """

    name: str
    source: tuple[str, ...]
    target: tuple[str, ...]
    control: tuple[str, ...]
    description: str = ""
    placeholders: Mapping[str, Sequence[str]] = field(default_factory=dict)
    evaluation: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    spans: tuple[str, ...] = ()
    judges: tuple[Mapping[str, Any], ...] = ()
    masks: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise DSASError(f"prompt file: name {self.name!r} must be letters, digits, '.', '_' and '-'")
        self._check_size()
        for side in SIDES:
            found = len(self.expanded(side))
            if found < MINIMUM:
                raise DSASError(
                    f"prompt file {self.name!r}: {side} gives {found} prompts, at least {MINIMUM} are needed: "
                    "add templates or placeholder values"
                )
        if set(self.expanded("source")) == set(self.expanded("target")):
            raise DSASError(f"prompt file {self.name!r}: source and target are identical, so there is nothing to learn")

    def _check_size(self) -> None:
        """Raise a DSASError where expanding would take all memory: counts multiply with every placeholder."""
        templates = itertools.chain(self.source, self.target, self.control, self.spans, *self.evaluation.values())
        sizes = [_size(template, self.placeholders) for template in templates]
        if sum(size for _, size in sizes) > MOST_EXPANDED:
            raise DSASError(
                f"prompt file {self.name!r}: its templates would give {sum(count for count, _ in sizes):,} prompts, "
                f"which is more than can be handled: use fewer placeholders in a template, or fewer values"
            )

    def expanded(self, side: str) -> list[str]:
        """Every prompt of source, target, control, or of a part of the evaluation, or all spans; duplicates removed."""
        templates = getattr(self, side) if side in (*SIDES, "spans") else self.evaluation[side]
        return list(dict.fromkeys(p for template in templates for p in _expand(template, self.placeholders)))

    def draw(self, count: int, seed: int = 0, avoid: Sequence[str] = ()) -> dict[str, list[str]]:
        """About `count` source and target prompts and twice as many controls: {"source": …, "target": …, "control": …}.

        Each side is spread evenly over its templates.
        Source and target come as pairs when their templates do. Each side is shuffled, so a part of it is as mixed as
        the whole. `avoid` are prompts not to draw; those of `evaluation` are never drawn.
        """
        kept_out = {*avoid, *(p for part in self.evaluation for p in self.expanded(part))}
        alike = len(self.source) == len(self.target) and all(
            _names(a) == _names(b) for a, b in zip(self.source, self.target, strict=True)
        )
        drawn = self._pairs(self.source, self.target, count, seed, kept_out) if alike else None
        drawn = drawn or {side: self._drawn(side, count, (seed, i), kept_out) for i, side in enumerate(SIDES[:2])}
        drawn["control"] = self._drawn("control", CONTROLS * count, (seed, 2), kept_out)
        for side, prompts in drawn.items():
            if len(prompts) < MINIMUM:
                raise DSASError(
                    f"prompt file {self.name!r}: {side} has {len(prompts)} prompts outside the evaluation, at least "
                    f"{MINIMUM} are needed"
                )
        return drawn

    def fresh(self, count: int, seed: int = 0, avoid: Sequence[str] = ()) -> dict[str, list[str]]:
        """Up to `count` prompts a side to judge by: {"source", "target", "control", "unnamed"}; a side may be empty.

        They come from the parts `unseen_source`, `unseen_target` and `unseen_control` of the evaluation, where it has
        them, else from what learning did not use: pass that as `avoid`. Source and target are pairs, the target asking
        in words for what steering is to do; without pairs there is no target. "unnamed" is the part of that name.
        """
        parts = self.evaluation
        source, target = (parts.get(f"unseen_{side}", ()) for side in SIDES[:2])
        if not source:
            source, target = self.source, self.target
        chosen = self._pairs(source, target, count, seed, set(avoid))
        if chosen is None:
            pools = [[p for p in _expand(template, self.placeholders) if p not in avoid] for template in source]
            chosen = {"source": _spread(pools, count, np.random.default_rng((seed, 0))), "target": []}
        chosen["control"] = self.sample("unseen_control", count, seed) or self._drawn(
            "control", count, (seed, 2), set(avoid)
        )
        return {**chosen, "unnamed": self.sample("unnamed", count, seed)}

    def _pairs(
        self, source: Sequence[str], target: Sequence[str], count: int, seed: int, kept_out: set[str]
    ) -> dict[str, list[str]] | None:
        """Up to `count` pairs of templates that stand at the same place, filled alike; None where none go together."""
        if len(source) != len(target) or any(_names(b) - _names(a) for a, b in zip(source, target, strict=True)):
            return None
        pools = [
            [
                pair
                for pair in zip(
                    _expand(a, self.placeholders), _expand(b, self.placeholders, names=sorted(_names(a))), strict=True
                )
                if not kept_out & set(pair)
            ]
            for a, b in zip(source, target, strict=True)
        ]
        pairs = _spread(pools, count, np.random.default_rng((seed, 0)))
        return {"source": [a for a, _ in pairs], "target": [b for _, b in pairs]}

    def sample(self, part: str, count: int, seed: int = 0) -> list[str]:
        """Up to `count` prompts of a part of the evaluation, spread evenly over its templates; [] without the part."""
        pools = [_expand(template, self.placeholders) for template in self.evaluation.get(part, ())]
        return _spread(pools, count, np.random.default_rng(seed))

    def wordings(self, side: str) -> dict[str, str]:
        """Prompt -> the template that it comes from, of what `fresh` draws a side from."""
        templates = self.evaluation.get(f"unseen_{side}") or getattr(self, side)
        return {text: template for template in templates for text in _expand(template, self.placeholders)}

    def _drawn(self, side: str, count: int, seed: tuple[int, int], kept_out: set[str]) -> list[str]:
        pools = [
            [p for p in _expand(template, self.placeholders) if p not in kept_out] for template in getattr(self, side)
        ]
        return _spread(pools, count, np.random.default_rng(seed))

    def to_dict(self) -> dict[str, Any]:
        """The content of the prompt file."""
        content: dict[str, Any] = {"name": self.name, "description": self.description}
        content["placeholders"] = {key: list(values) for key, values in self.placeholders.items()}
        content |= {side: list(getattr(self, side)) for side in SIDES}
        content["evaluation"] = {part: list(templates) for part, templates in self.evaluation.items()}
        content["spans"] = list(self.spans)
        content["judge"] = dict(self.judges[0]) if len(self.judges) == 1 else [dict(judge) for judge in self.judges]
        content["masks"] = dict(self.masks)
        return {key: value for key, value in content.items() if value}


def read(source: str | Path | Mapping[str, Any] | PromptSet) -> PromptSet:
    """Read and check a prompt file (YAML) or its content.

    Raises:
        DSASError: no such file, no YAML, a key missing or unknown, too few prompts, source equal to target.
    """
    if isinstance(source, PromptSet):
        return source
    if isinstance(source, Mapping):
        return _parse(source, "prompts")
    path = Path(source)
    if not path.is_file():
        found = f"{path} is a folder" if path.is_dir() else f"no prompt file {path}"
        raise DSASError(f"{found}: write a prompt file (see prompts/)")
    import yaml

    raw = path.read_bytes()
    try:
        content = yaml.safe_load(raw.decode())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise DSASError(f"{path} is not YAML: {reason}; texts with braces or colons belong in quotes") from None
    return _parse(content, str(path), hashlib.sha256(raw).hexdigest())


def _parse(content: Any, where: str, sha256: str = "") -> PromptSet:
    if not isinstance(content, Mapping):
        raise DSASError(f"{where}: expected a mapping with name, source, target and control")
    missing = [key for key in ("name", *SIDES) if not content.get(key)]
    unknown = sorted(set(map(str, content)) - _KNOWN)
    if missing or unknown:
        found = [f"lacks {', '.join(missing)}"] if missing else []
        found += [f"has unknown {', '.join(unknown)}"] if unknown else []
        raise DSASError(f"{where}: {' and '.join(found)}; known are {', '.join(sorted(_KNOWN))}")
    placeholders = content.get("placeholders") or {}
    if not isinstance(placeholders, Mapping):
        raise DSASError(f"{where}: placeholders must map names to lists of values")
    values = {str(key): _texts(value, f"{where}: placeholder {key}") for key, value in placeholders.items()}
    evaluation = content.get("evaluation") or {}
    if not isinstance(evaluation, Mapping):
        raise DSASError(f"{where}: evaluation must map names to lists of templates")
    parts = {str(key): _texts(value, f"{where}: evaluation {key}") for key, value in evaluation.items()}
    sides = {side: _texts(content[side], f"{where}: {side}") for side in SIDES}
    spans = _texts(content["spans"], f"{where}: spans") if content.get("spans") else ()
    for part, templates in {**sides, **parts, "spans": spans}.items():
        for template in templates:
            unfilled = sorted(_names(template) - set(values))
            if unfilled:
                raise DSASError(
                    f"{where}: {part} template {template!r} uses {{{unfilled[0]}}}, which placeholders does not define"
                )
    judge, masks = content.get("judge") or [], content.get("masks") or {}
    judges = judge if isinstance(judge, list | tuple) else [judge]
    if not all(isinstance(one, Mapping) for one in judges):
        raise DSASError(f"{where}: judge must map one kind of judge to its settings, or list several; found {judge!r}")
    if not isinstance(masks, Mapping):
        raise DSASError(f"{where}: masks must map one kind to its settings, found {masks!r}")
    return PromptSet(
        str(content["name"]),
        **sides,
        description=str(content.get("description") or ""),
        placeholders=values,
        evaluation=parts,
        spans=spans,
        judges=tuple(dict(one) for one in judges),
        masks=dict(masks),
        sha256=sha256,
    )


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple) or not value or not all(isinstance(v, str) and v.strip() for v in value):
        raise DSASError(f"{where}: expected a list of texts, found {value!r}")
    return tuple(value)


def _names(template: str) -> set[str]:
    try:
        found = [field for field in string.Formatter().parse(template) if field[1] is not None]
    except ValueError as error:
        raise DSASError(f"template {template!r}: {error}") from None
    if any(form or conversion for _, _, form, conversion in found):
        raise DSASError(f"template {template!r}: a placeholder is a name in braces, without ':' and '!'")
    return {str(name) for _, name, _, _ in found}


def _size(template: str, placeholders: Mapping[str, Sequence[str]]) -> tuple[int, int]:
    """How many prompts a template gives, and their characters; at most, and without writing them."""
    count = math.prod(len(placeholders[name]) for name in _names(template))
    used = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    return count, count * (EACH + len(template) + sum(max(map(len, placeholders[name])) for name in used))


def _expand(template: str, placeholders: Mapping[str, Sequence[str]], names: Sequence[str] | None = None) -> list[str]:
    """A text for each choice of values of the template's placeholders, or of all those named."""
    names = sorted(_names(template)) if names is None else names
    return [
        _articles(_tidied(template.format(**dict(zip(names, values, strict=True)))))
        for values in itertools.product(*(placeholders[name] for name in names))
        if len(set(values)) == len(values)  # no "a dog and a dog"
    ]


def _tidied(text: str) -> str:
    """One space between words; the lines of a conversation stay lines."""
    return "\n".join(" ".join(line.split()) for line in text.strip().splitlines())


def _articles(text: str) -> str:
    """`a apple` -> `an apple`: placeholders don't know their neighbours."""
    return re.sub(r"\b([Aa]) (?=[aeio])", r"\1n ", text)


def _spread(pools: Sequence[Sequence[Any]], count: int, rng: np.random.Generator) -> list[Any]:
    """Up to `count` different items, the same number from each pool as long as it lasts, shuffled."""
    mixed = [[pool[i] for i in rng.permutation(len(pool))] for pool in pools]
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*mixed))
    chosen = list(dict.fromkeys(item for item in rounds if item is not None))[:count]
    return [chosen[i] for i in rng.permutation(len(chosen))]


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
        DSASError: an empty phrase, or two that are the same.
    """
    source, target = (" ".join(re.sub(r"^(an?|the)\s+", "", phrase.strip()).split()) for phrase in (source, target))
    if not source or not target:
        raise DSASError("two phrases are needed, what to change and what into: for example banana, blurred banana")
    if source.lower() == target.lower():
        raise DSASError(f"both phrases are {source!r}: there is nothing to learn")
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
