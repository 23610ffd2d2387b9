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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ...errors import PromptError
from .draft import is_name
from .templates import draw_evenly, expand, expansion_size, placeholder_names

Text = TypeVar("Text")

MINIMUM = 8
#: control prompts drawn for each source prompt: what must not change is more varied than what must
CONTROLS = 2
SIDES = ("source", "target", "control")
#: source and target prompts to draw where nobody says
COUNT = 48
#: characters that a file's templates may expand to (`templates.expansion_size`): the largest file that ships has 4
#: million
MOST_EXPANDED = 10_000_000
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
            raise PromptError(f"prompt file: name {self.name!r} must be letters, digits, '.', '_' and '-'")
        self._check_size()
        for side in SIDES:
            count = len(self.expanded(side))
            if count < MINIMUM:
                raise PromptError(
                    f"prompt file {self.name!r}: {side} gives {count} prompts, at least {MINIMUM} are needed: "
                    "add templates or placeholder values"
                )
        if set(self.expanded("source")) == set(self.expanded("target")):
            raise PromptError(
                f"prompt file {self.name!r}: source and target are identical, so there is nothing to learn"
            )

    def _check_size(self) -> None:
        """Raise a PromptError where expanding would take all memory: counts multiply with every placeholder."""
        templates = itertools.chain(self.source, self.target, self.control, self.spans, *self.evaluation.values())
        sizes = [expansion_size(template, self.placeholders) for template in templates]
        if sum(size for _, size in sizes) > MOST_EXPANDED:
            raise PromptError(
                f"prompt file {self.name!r}: its templates would give {sum(count for count, _ in sizes):,} prompts, "
                f"which is more than can be handled: use fewer placeholders in a template, or fewer values"
            )

    def expanded(self, side: str) -> list[str]:
        """Every prompt of source, target, control, or of a part of the evaluation, or all spans; duplicates removed."""
        templates = getattr(self, side) if side in (*SIDES, "spans") else self.evaluation[side]
        return list(dict.fromkeys(p for template in templates for p in expand(template, self.placeholders)))

    def draw(self, count: int, seed: int = 0, avoid: Sequence[str] = ()) -> dict[str, list[str]]:
        """About `count` source and target prompts and twice as many controls: {"source": …, "target": …, "control": …}.

        Each side is spread evenly over its templates.
        Source and target come as pairs when their templates do. Each side is shuffled, so a part of it is as mixed as
        the whole. `avoid` are prompts not to draw; those of `evaluation` are never drawn.
        """
        kept_out = {*avoid, *(p for part in self.evaluation for p in self.expanded(part))}
        alike = len(self.source) == len(self.target) and all(
            placeholder_names(a) == placeholder_names(b) for a, b in zip(self.source, self.target, strict=True)
        )
        drawn = self._pairs(self.source, self.target, count, seed, kept_out) if alike else None
        drawn = drawn or {
            side: self._draw(getattr(self, side), count, (seed, i), kept_out) for i, side in enumerate(SIDES[:2])
        }
        drawn["control"] = self._draw(self.control, CONTROLS * count, (seed, 2), kept_out)
        for side, prompts in drawn.items():
            if len(prompts) < MINIMUM:
                raise PromptError(
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
        kept_out = set(avoid)
        source, target = (self.evaluation.get(f"unseen_{side}", ()) for side in SIDES[:2])
        if not source:
            source, target = self.source, self.target
        drawn = self._pairs(source, target, count, seed, kept_out)
        drawn = drawn or {"source": self._draw(source, count, (seed, 0), kept_out), "target": []}
        control = self.sample("unseen_control", count, seed) or self._draw(self.control, count, (seed, 2), kept_out)
        return {**drawn, "control": control, "unnamed": self.sample("unnamed", count, seed)}

    def _pairs(
        self, source: Sequence[str], target: Sequence[str], count: int, seed: int, kept_out: set[str]
    ) -> dict[str, list[str]] | None:
        """Up to `count` pairs of templates that stand at the same place, filled alike; None where none go together."""
        if len(source) != len(target):
            return None
        pools = []
        for a, b in zip(source, target, strict=True):
            names = sorted(placeholder_names(a))
            if placeholder_names(b) - set(names):
                return None
            pairs = zip(expand(a, self.placeholders), expand(b, self.placeholders, names), strict=True)
            pools.append([pair for pair in pairs if not kept_out & set(pair)])
        drawn = draw_evenly(pools, count, (seed, 0))
        return {"source": [a for a, _ in drawn], "target": [b for _, b in drawn]}

    def sample(self, part: str, count: int, seed: int = 0) -> list[str]:
        """Up to `count` prompts of a part of the evaluation, spread evenly over its templates; [] without the part."""
        return self._draw(self.evaluation.get(part, ()), count, seed, set())

    def wordings(self, side: str) -> dict[str, str]:
        """Prompt -> the template that it comes from, of what `fresh` draws a side from."""
        templates = self.evaluation.get(f"unseen_{side}") or getattr(self, side)
        return {text: template for template in templates for text in expand(template, self.placeholders)}

    def _draw(self, templates: Sequence[str], count: int, seed: int | tuple[int, int], kept_out: set[str]) -> list[str]:
        pools = [[p for p in expand(template, self.placeholders) if p not in kept_out] for template in templates]
        return draw_evenly(pools, count, seed)

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


def split_held_out(sides: Mapping[str, Sequence[Text]]) -> tuple[dict[str, Sequence[Text]], dict[str, Sequence[Text]]]:
    """The prompts of each side to fit on, and the quarter that is held out for choosing the unit."""
    cut = {side: max(5, round(0.75 * len(texts))) for side, texts in sides.items()}
    fitting = {side: texts[: cut[side]] for side, texts in sides.items()}
    return fitting, {side: texts[cut[side] :] for side, texts in sides.items()}


def load_prompts(source: str | Path | Mapping[str, Any] | PromptSet) -> PromptSet:
    """Read and check a prompt file (YAML) or its content.

    Raises:
        PromptError: no such file, no YAML, a key missing or unknown, too few prompts, source equal to target.
    """
    if isinstance(source, PromptSet):
        return source
    if isinstance(source, Mapping):
        return _parse(source, "prompts")
    path = Path(source)
    if not path.is_file():
        found = f"{path} is a folder" if path.is_dir() else f"no prompt file {path}"
        raise PromptError(f"{found}: write a prompt file (see prompts/)")
    import yaml

    raw = path.read_bytes()
    try:
        content = yaml.safe_load(raw.decode())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise PromptError(f"{path} is not YAML: {reason}; texts with braces or colons belong in quotes") from None
    return _parse(content, str(path), hashlib.sha256(raw).hexdigest())


def _parse(content: Any, where: str, sha256: str = "") -> PromptSet:
    if not isinstance(content, Mapping):
        raise PromptError(f"{where}: expected a mapping with name, source, target and control")
    missing = [key for key in ("name", *SIDES) if not content.get(key)]
    unknown = sorted(set(map(str, content)) - _KNOWN)
    if missing or unknown:
        faults = [f"lacks {', '.join(missing)}"] if missing else []
        faults += [f"has unknown {', '.join(unknown)}"] if unknown else []
        raise PromptError(f"{where}: {' and '.join(faults)}; known are {', '.join(sorted(_KNOWN))}")
    placeholders = _named_texts(content, "placeholders", "values", where)
    evaluation = _named_texts(content, "evaluation", "templates", where)
    sides = {side: _texts(content[side], f"{where}: {side}") for side in SIDES}
    spans = _texts(content["spans"], f"{where}: spans") if content.get("spans") else ()
    for part, templates in {**sides, **evaluation, "spans": spans}.items():
        for template in templates:
            unfilled = sorted(placeholder_names(template) - set(placeholders))
            if unfilled:
                raise PromptError(
                    f"{where}: {part} template {template!r} uses {{{unfilled[0]}}}, which placeholders does not define"
                )
    judge, masks = content.get("judge") or [], content.get("masks") or {}
    judges = judge if isinstance(judge, list | tuple) else [judge]
    if not all(isinstance(settings, Mapping) for settings in judges):
        raise PromptError(
            f"{where}: judge must map one kind of judge to its settings, or list several; found {judge!r}"
        )
    if not isinstance(masks, Mapping):
        raise PromptError(f"{where}: masks must map one kind to its settings, found {masks!r}")
    return PromptSet(
        str(content["name"]),
        **sides,
        description=str(content.get("description") or ""),
        placeholders=placeholders,
        evaluation=evaluation,
        spans=spans,
        judges=tuple(dict(settings) for settings in judges),
        masks=dict(masks),
        sha256=sha256,
    )


def _named_texts(content: Mapping[str, Any], key: str, what: str, where: str) -> dict[str, tuple[str, ...]]:
    """Lists of texts by name, as placeholders and the evaluation have them."""
    lists = content.get(key) or {}
    if not isinstance(lists, Mapping):
        raise PromptError(f"{where}: {key} must map names to lists of {what}")
    return {str(name): _texts(value, f"{where}: {key.removesuffix('s')} {name}") for name, value in lists.items()}


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple) or not value or not all(isinstance(v, str) and v.strip() for v in value):
        raise PromptError(f"{where}: expected a list of texts, found {value!r}")
    return tuple(value)
