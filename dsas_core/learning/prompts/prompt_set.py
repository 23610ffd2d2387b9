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
source_unnamed: ["a fruit {place}"]  # optional: prompts that do not name the thing, but whose pictures may show it;
                                 # read where learning is given masks, which tell whether they do
evaluation:                      # optional, free names: prompts kept out of learning
  alone: ["a banana in the snow"]
  unseen_source: ["a banana on the moon"]   # of another domain: what evaluation draws its prompts from
  unseen_target: ["a blurred banana on the moon"]
  unseen_control: ["a rocket on the moon"]
spans: ["you {insult}", fool]    # optional: words of source texts that show the concept, for supervision by positions
judge: {builtin: {things: [banana], style: blurred}}  # optional: what decides whether an output shows the target
masks: {segmentation: {model: user/name, labels: [banana]}}  # optional: what finds where, if not the judge
private: true                    # optional: concepts keep hashes of these prompts, and no card shows them
```

Several judges make a list: the first one's figures count, those of the others are reported beside.

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
from ...utils.numbers import number
from .draft import is_name
from .templates import draw_evenly, expand, expansion_size, placeholder_names

Text = TypeVar("Text")

#: fewest prompts of a side
MINIMUM = 8
#: control prompts drawn for each source prompt: what must not change is more varied than what must
CONTROLS = 2
SIDES = ("source", "target", "control")
#: lists of templates beside those of the sides
_OTHER = ("source_unnamed", "spans")
#: source and target prompts to draw by default
COUNT = 48
#: characters that a file's templates may expand to (`templates.expansion_size`); the largest shipped file has 4 million
MAX_EXPANDED = 10_000_000
_KEYS = {
    *("name", "description", "placeholders", "source_unnamed", "evaluation", "spans", "judge", "masks", "private"),
    *SIDES,
}


@dataclass(frozen=True)
class PromptSet:
    """A checked prompt file.

    Args:
        name: of the concept.
        source: templates of prompts that show the undesired thing.
        target: templates of prompts that show the desired thing.
        control: templates of prompts that must stay untouched.
        description: one sentence.
        placeholders: values by name.
        source_unnamed: templates of prompts that do not name the thing, but whose pictures may show it.
        evaluation: templates of prompts kept out of learning, by part.
        spans: templates of words of source texts that show the concept.
        judges: what decides whether an output shows the target, {kind: settings} each; evaluation reads them.
        masks: what finds where pictures show the concept, {kind: settings}.
        private: keep the prompts out of concepts, unless learning is told otherwise, and out of their cards; as for
            data sets of what people wrote.
        sha256: of the file that it was read from, "" if none.

    Raises:
        PromptError: a bad name; too few prompts; source equal to target; more prompts than can be handled.

    Example:
        >>> numbers = {"n": [str(n) for n in range(8)]}
        >>> prompts = PromptSet("pears", ("pear {n}",), ("blue pear {n}",), ("hat {n}",), placeholders=numbers)
        >>> prompts.expanded("target")[:2], [len(texts) for texts in prompts.draw(8).values()]
        (['blue pear 0', 'blue pear 1'], [8, 8, 8])
    """

    name: str
    source: tuple[str, ...]
    target: tuple[str, ...]
    control: tuple[str, ...]
    description: str = ""
    placeholders: Mapping[str, Sequence[str]] = field(default_factory=dict)
    source_unnamed: tuple[str, ...] = ()
    evaluation: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    spans: tuple[str, ...] = ()
    judges: tuple[Mapping[str, Any], ...] = ()
    masks: Mapping[str, Any] = field(default_factory=dict)
    private: bool = False
    sha256: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        where = f"prompt file {self.name!r}"
        if not is_name(self.name):
            raise PromptError(f"prompt file: name {self.name!r} must be letters, digits, '.', '_' and '-'")
        # counts multiply with every placeholder: check before expanding takes all memory
        templates = itertools.chain(*(getattr(self, side) for side in (*SIDES, *_OTHER)), *self.evaluation.values())
        sizes = [expansion_size(template, self.placeholders) for template in templates]
        if sum(size for _, size in sizes) > MAX_EXPANDED:
            raise PromptError(
                f"{where}: its templates would give {sum(count for count, _ in sizes):,} prompts, which is more than "
                "can be handled: use fewer placeholders in a template, or fewer values"
            )
        for side in SIDES:
            count = len(self.expanded(side))
            if count < MINIMUM:
                raise PromptError(
                    f"{where}: {side} gives {count} prompts, at least {MINIMUM} are needed: add templates or "
                    "placeholder values"
                )
        if set(self.expanded("source")) == set(self.expanded("target")):
            raise PromptError(f"{where}: source and target are identical, so there is nothing to learn")

    def expanded(self, side: str) -> list[str]:
        """All prompts of a side, of a part of the evaluation, all "source_unnamed" or "spans"; duplicates removed."""
        templates = getattr(self, side) if side in (*SIDES, *_OTHER) else self.evaluation[side]
        return list(dict.fromkeys(p for template in templates for p in expand(template, self.placeholders)))

    def draw(self, count: int, seed: int = 0, avoid: Sequence[str] = ()) -> dict[str, list[str]]:
        """Draw about `count` source and target prompts and twice as many controls.

        Each side is spread evenly over its templates. Source and target come as pairs when their templates do. Each
        side is shuffled, so a part of it is as mixed as the whole.

        Args:
            count: source prompts, and as many target prompts.
            seed: of the choice.
            avoid: prompts not to draw; those of `evaluation` are never drawn.

        Returns:
            {"source": [...], "target": [...], "control": [...]}.

        Raises:
            PromptError: fewer than 8 prompts of a side are left to draw.
        """
        count, seed = number("count", count), number("seed", seed)
        avoided = {*avoid, *(p for part in self.evaluation for p in self.expanded(part))}
        alike = len(self.source) == len(self.target) and all(
            placeholder_names(a) == placeholder_names(b) for a, b in zip(self.source, self.target, strict=True)
        )
        drawn = self._draw_pairs(self.source, self.target, count, seed, avoided) if alike else None
        drawn = drawn or {
            side: self._draw(getattr(self, side), count, (seed, i), avoided) for i, side in enumerate(SIDES[:2])
        }
        drawn["control"] = self._draw(self.control, CONTROLS * count, (seed, 2), avoided)
        for side, prompts in drawn.items():
            if len(prompts) < MINIMUM:
                raise PromptError(
                    f"prompt file {self.name!r}: {side} has {len(prompts)} prompts outside the evaluation, at least "
                    f"{MINIMUM} are needed"
                )
        return drawn

    def fresh(self, count: int, seed: int = 0, avoid: Sequence[str] = ()) -> dict[str, list[str]]:
        """Draw up to `count` prompts a side for evaluation; a side may be empty.

        They come from the parts `unseen_source`, `unseen_target` and `unseen_control` of the evaluation, where it has
        them, else from what learning did not use. Source and target are pairs, the target asking in words for what
        steering is to do; without pairs there is no target.

        Args:
            count: prompts of each side, at most.
            seed: of the choice.
            avoid: prompts that learning used.

        Returns:
            {"source": [...], "target": [...], "control": [...], "unnamed": [...]}; "unnamed" is the part of that name.
        """
        avoided = set(avoid)
        source, target = (self.evaluation.get(f"unseen_{side}", ()) for side in SIDES[:2])
        if not source:
            source, target = self.source, self.target
        drawn = self._draw_pairs(source, target, count, seed, avoided)
        drawn = drawn or {"source": self._draw(source, count, (seed, 0), avoided), "target": []}
        control = self.sample("unseen_control", count, seed) or self._draw(self.control, count, (seed, 2), avoided)
        return {**drawn, "control": control, "unnamed": self.sample("unnamed", count, seed)}

    def _draw_pairs(
        self, source: Sequence[str], target: Sequence[str], count: int, seed: int, avoided: set[str]
    ) -> dict[str, list[str]] | None:
        """Up to `count` pairs of templates at the same place, filled alike; None where they cannot be paired."""
        names = [sorted(placeholder_names(template)) for template in source]
        if len(source) != len(target) or any(placeholder_names(b) - set(a) for a, b in zip(names, target, strict=True)):
            return None
        pools = []
        for a, b, shared in zip(source, target, names, strict=True):
            pairs = zip(expand(a, self.placeholders), expand(b, self.placeholders, shared), strict=True)
            pools.append([pair for pair in pairs if not avoided & set(pair)])
        drawn = draw_evenly(pools, count, (seed, 0))
        return {"source": [a for a, _ in drawn], "target": [b for _, b in drawn]}

    def sample(self, part: str, count: int, seed: int = 0) -> list[str]:
        """Up to `count` prompts of a part of the evaluation, spread evenly over its templates; [] without the part."""
        return self._draw(self.evaluation.get(part, ()), count, seed, set())

    def draw_unnamed(self, count: int, seed: int = 0) -> list[str]:
        """Up to `count` prompts that do not name the thing, without those of `evaluation`; [] where there are none."""
        avoided = {p for part in self.evaluation for p in self.expanded(part)}
        return self._draw(self.source_unnamed, count, (seed, 3), avoided)

    def wordings(self, side: str) -> dict[str, str]:
        """The template of each prompt that `fresh` may draw for a side."""
        templates = self.evaluation.get(f"unseen_{side}") or getattr(self, side)
        return {text: template for template in templates for text in expand(template, self.placeholders)}

    def _draw(self, templates: Sequence[str], count: int, seed: int | tuple[int, int], avoided: set[str]) -> list[str]:
        pools = [[p for p in expand(template, self.placeholders) if p not in avoided] for template in templates]
        return draw_evenly(pools, count, seed)

    def to_dict(self) -> dict[str, Any]:
        """The content of the prompt file, without empty entries."""
        judges = [dict(judge) for judge in self.judges]
        content = {
            "name": self.name,
            "description": self.description,
            "placeholders": {name: list(values) for name, values in self.placeholders.items()},
            **{side: list(getattr(self, side)) for side in SIDES},
            "source_unnamed": list(self.source_unnamed),
            "evaluation": {part: list(templates) for part, templates in self.evaluation.items()},
            "spans": list(self.spans),
            "judge": judges[0] if len(judges) == 1 else judges,
            "masks": dict(self.masks),
            "private": self.private,
        }
        return {key: value for key, value in content.items() if value}


def split_held_out(sides: Mapping[str, Sequence[Text]]) -> tuple[dict[str, Sequence[Text]], dict[str, Sequence[Text]]]:
    """Split the prompts of each side into those to fit on, and the quarter held out for choosing the unit.

    Example:
        >>> split_held_out({"source": "abcdefgh"})
        ({'source': 'abcdef'}, {'source': 'gh'})
    """
    cut = {side: max(5, round(0.75 * len(texts))) for side, texts in sides.items()}
    fitting = {side: texts[: cut[side]] for side, texts in sides.items()}
    return fitting, {side: texts[cut[side] :] for side, texts in sides.items()}


def load_prompts(source: str | Path | Mapping[str, Any] | PromptSet) -> PromptSet:
    """Read and check a prompt file.

    Args:
        source: path of the YAML file, or its content; a `PromptSet` is returned as it is.

    Raises:
        PromptError: no such file, no YAML, a key missing or unknown, too few prompts, source equal to target.

    Example:
        >>> load_prompts("prompts/banana-blur.yaml").name
        'banana-blur'
    """
    if isinstance(source, PromptSet):
        return source
    if isinstance(source, Mapping):
        return _parse(source, "prompts")
    path = Path(source)
    if not path.is_file():
        problem = f"{path} is a folder" if path.is_dir() else f"no prompt file {path}"
        raise PromptError(f"{problem}: write a prompt file (see prompts/)")
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
    unknown = sorted(set(map(str, content)) - _KEYS)
    faults = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(unknown)}"] * bool(unknown)
    if faults:
        raise PromptError(f"{where}: {' and '.join(faults)}; known are {', '.join(sorted(_KEYS))}")
    placeholders = _text_lists(content, "placeholders", "values", where)
    evaluation = _text_lists(content, "evaluation", "templates", where)
    sides = {side: _texts(content[side], f"{where}: {side}") for side in SIDES}
    other = {key: _texts(content[key], f"{where}: {key}") for key in _OTHER if content.get(key)}
    for part, templates in {**sides, **evaluation, **other}.items():
        for template in templates:
            undefined = sorted(placeholder_names(template) - set(placeholders))
            if undefined:
                raise PromptError(
                    f"{where}: {part} template {template!r} uses {{{undefined[0]}}}, which placeholders does not define"
                )
    judge, masks = content.get("judge") or [], content.get("masks") or {}
    judges = judge if isinstance(judge, list | tuple) else [judge]
    if not all(isinstance(settings, Mapping) for settings in judges):
        raise PromptError(
            f"{where}: judge must map one kind of judge to its settings, or list several; found {judge!r}"
        )
    if not isinstance(masks, Mapping):
        raise PromptError(f"{where}: masks must map one kind to its settings, found {masks!r}")
    private = content.get("private", False)
    if not isinstance(private, bool):
        raise PromptError(f"{where}: private must be true or false, found {private!r}")
    return PromptSet(
        str(content["name"]),
        **sides,
        description=str(content.get("description") or ""),
        placeholders=placeholders,
        evaluation=evaluation,
        **other,
        judges=tuple(dict(settings) for settings in judges),
        masks=dict(masks),
        private=private,
        sha256=sha256,
    )


def _text_lists(content: Mapping[str, Any], key: str, what: str, where: str) -> dict[str, tuple[str, ...]]:
    """Lists of texts by name, the format of placeholders and of the evaluation."""
    lists = content.get(key) or {}
    if not isinstance(lists, Mapping):
        raise PromptError(f"{where}: {key} must map names to lists of {what}")
    return {str(name): _texts(value, f"{where}: {key.removesuffix('s')} {name}") for name, value in lists.items()}


def _texts(value: Any, where: str) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not texts or not all(isinstance(v, str) and v.strip() for v in texts):
        raise PromptError(f"{where}: expected a list of texts, found {texts!r}")
    return tuple(texts)
