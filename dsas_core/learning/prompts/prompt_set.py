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
held_out:                        # optional: what a concept is measured on while it is learned, in place of a quarter of
  source: ["a banana and a {rare} {place}"]  # the prompts above: with things that those do not have
  target: ["a blurred banana and a {rare} {place}"]
  control: ["a {rare} {place}"]
spans: ["you {insult}", fool]    # optional: words of source texts that show the concept, for supervision by positions
judge: {builtin: {things: [banana], style: blurred}}  # optional: what decides whether an output shows the target
masks: {segmentation: {model: user/name, labels: [banana]}}  # optional: what finds where, if not the judge
private: true                    # optional: concepts keep hashes of these prompts, and no card shows them
```

Several judges make a list: the first one's figures count, those of the others are reported beside.

A template is expanded over all values of its placeholders. Source and target templates that stand at the same place
and use the same placeholders are expanded together, so their prompts form pairs. What stands around placeholders stays
as it is written, indentation and spaces included; but in English "a {other}" becomes "an apple" where the value asks
for it. Braces that are text are written twice, in templates and in values: "{{x}}" is "{x}".
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from ...errors import PromptError, quote, shorten
from ...utils.numbers import number
from ...utils.saving.names import why_no_name
from .articles import are_english, is_english
from .checks import as_texts, check_text
from .draft import is_name
from .templates import (
    as_same,
    check_template,
    draw_evenly,
    expand,
    expansion_size,
    literal,
    placeholder_names,
    split_template,
    unique,
)

Text = TypeVar("Text")

#: fewest prompts of a side
MINIMUM = 8
#: control prompts drawn for each source prompt: what must not change is more varied than what must
CONTROLS = 2
SIDES = ("source", "target", "control")
#: lists of templates beside those of the sides
OTHER = ("source_unnamed", "spans")
#: source and target prompts to draw by default
COUNT = 48
#: characters that a file's templates may expand to (`templates.expansion_size`); the largest shipped file has 4 million
MAX_EXPANDED = 10_000_000
#: bytes of a prompt file
MAX_BYTES = 8 * 2**20
KEYS = {
    *("name", "description", "placeholders", "source_unnamed", "evaluation", "held_out", "spans", "judge", "masks"),
    "private",
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
        held_out: templates of each side that nothing is fitted on, and what is learned is measured on; {} for a quarter
            of the prompts of each side.
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
    held_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    spans: tuple[str, ...] = ()
    judges: tuple[Mapping[str, Any], ...] = ()
    masks: Mapping[str, Any] = field(default_factory=dict)
    private: bool = False
    sha256: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        where = f"prompt file {quote(self.name)}"
        if not isinstance(self.name, str) or not is_name(self.name):
            reason = why_no_name(self.name) if isinstance(self.name, str) else ""
            raise PromptError(
                f"prompt file: name {quote(self.name)} must be letters, digits, '.', '_' and '-' "
                f"({reason or 'it is to be a file name'})"
            )
        self._check_texts(where)
        # counts multiply with every placeholder: check before expanding takes all memory
        sizes = [expansion_size(template, self.placeholders) for _, template in self._templates()]
        if sum(size for _, size in sizes) > MAX_EXPANDED:
            count = sum(count for count, _ in sizes)
            raise PromptError(
                f"{where}: its templates would give {f'{count:,}' if count < 10**24 else '10^24 or more'} prompts, "
                "which is more than can be handled: use fewer placeholders in a template, or fewer values"
            )
        for side in SIDES:
            count = len(self.expanded(side))
            if count < MINIMUM:
                raise PromptError(
                    f"{where}: {side} gives {count} prompts, at least {MINIMUM} are needed: add templates or "
                    "placeholder values"
                )
        source, target = ({as_same(text) for text in self.expanded(side)} for side in SIDES[:2])
        if source == target:
            raise PromptError(f"{where}: source and target are identical, so there is nothing to learn")

    def _templates(self) -> Iterator[tuple[str, str]]:
        """Every template, behind the side or the part of the evaluation that it is of."""
        sides = {side: getattr(self, side) for side in (*SIDES, *OTHER)}
        for part, templates in itertools.chain(sides.items(), self.held_out.items(), self.evaluation.items()):
            for template in templates:
                yield part, template

    def _check_texts(self, where: str) -> None:
        if reserved := [part for part in self.evaluation if part in (*SIDES, *OTHER)]:
            raise PromptError(
                f"{where}: a part of its evaluation is called {reserved[0]}, as what is learned from: call it "
                f"unseen_{reserved[0]}"
            )
        if self.description:
            check_text(self.description, f"{where}: description")
        parts = {side: getattr(self, side) for side in (*SIDES, *OTHER)}
        if self.held_out and set(self.held_out) != set(SIDES):
            raise PromptError(
                f"{where}: held_out has {', '.join(map(quote, self.held_out))}: expected templates of each of "
                f"{', '.join(SIDES)}"
            )
        for part, texts in itertools.chain(parts.items(), self.held_out.items(), self.evaluation.items()):
            if isinstance(texts, str):
                raise PromptError(f"{where}: {shorten(part, 40)}: expected a tuple of texts, found {quote(texts)}")
        for name, values in self.placeholders.items():
            for value in as_texts(values, f"{where}: placeholder {shorten(name, 40)}"):
                literal(value, f"{where}: placeholder {shorten(name, 40)}: value", self.placeholders)
        for part, template in self._templates():
            as_texts(template, f"{where}: {shorten(part, 40)}")
            check_template(template, self.placeholders, f"{where}: {shorten(part, 40)} template")

    @cached_property
    def _english(self) -> bool | None:
        """Whether its texts are in English, all of them: "a" and "an" are words of other languages, too."""
        templates = dict.fromkeys(template for _, template in self._templates())
        found = are_english([[text for text, _ in split_template(template)] for template in templates])
        return is_english(itertools.chain(*self.placeholders.values())) if found is None else found

    def _expand(self, template: str, names: Sequence[str] | None = None) -> list[str]:
        return expand(template, self.placeholders, names, english=self._english)

    def expanded(self, side: str) -> list[str]:
        """All prompts of a side, of a part of the evaluation, all "source_unnamed" or "spans"; duplicates removed."""
        templates = getattr(self, side) if side in (*SIDES, *OTHER) else self.evaluation[side]
        return unique(text for template in templates for text in self._expand(template))

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
        avoided = self._avoided(avoid)
        drawn = self._draw_sides({side: getattr(self, side) for side in SIDES}, count, seed, avoided)
        if self.held_out:
            first = {side: held_out_from(len(texts)) for side, texts in drawn.items()}
            fitted = {as_same(text) for side, texts in drawn.items() for text in texts[: first[side]]}
            for side, own in self._draw_sides(self.held_out, count, seed, avoided | fitted).items():
                drawn[side][first[side] :] = own[: len(drawn[side]) - first[side]]
        for side, prompts in drawn.items():
            if len(prompts) < MINIMUM:
                raise PromptError(
                    f"prompt file {self.name!r}: {side} has {len(prompts)} prompts outside the evaluation, at least "
                    f"{MINIMUM} are needed"
                )
        return drawn

    def _draw_sides(
        self, templates: Mapping[str, Sequence[str]], count: int, seed: int, avoided: set[str]
    ) -> dict[str, list[str]]:
        """About `count` prompts of source and target, in pairs where templates are, and twice as many controls."""
        source, target = (templates[side] for side in SIDES[:2])
        alike = len(source) == len(target) and all(
            placeholder_names(a) == placeholder_names(b) for a, b in zip(source, target, strict=True)
        )
        drawn = self._draw_pairs(source, target, count, seed, avoided) if alike else None
        drawn = drawn or {x: self._draw(templates[x], count, (seed, i), avoided) for i, x in enumerate(SIDES[:2])}
        return {**drawn, "control": self._draw(templates["control"], CONTROLS * count, (seed, 2), avoided)}

    def fresh(self, count: int, seed: int = 0, avoid: Sequence[str] = ()) -> dict[str, list[str]]:
        """Draw up to `count` prompts a side for evaluation; a side may be empty.

        They come from the parts `unseen_source`, `unseen_target` and `unseen_control` of the evaluation, where it has
        them, else from those that are held out, else from all, without what learning used. Source and target are pairs,
        the target asking in words for what steering is to do; without pairs there is no target.

        Args:
            count: prompts of each side, at most.
            seed: of the choice.
            avoid: prompts that learning used.

        Returns:
            {"source": [...], "target": [...], "control": [...], "unnamed": [...]}; "unnamed" is the part of that name.
        """
        avoided = set(map(as_same, avoid))
        own = self.held_out or {side: getattr(self, side) for side in SIDES}
        source, target = (self.evaluation.get(f"unseen_{side}", ()) for side in SIDES[:2])
        if not source:
            source, target = own["source"], own["target"]
        drawn = self._draw_pairs(source, target, count, seed, avoided)
        drawn = drawn or {"source": self._draw(source, count, (seed, 0), avoided), "target": []}
        control = self.sample("unseen_control", count, seed) or self._draw(own["control"], count, (seed, 2), avoided)
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
            pairs = zip(self._expand(a), self._expand(b, shared), strict=True)
            pools.append([pair for pair in pairs if avoided.isdisjoint(map(as_same, pair))])
        drawn = draw_evenly(pools, count, (seed, 0))
        return {"source": [a for a, _ in drawn], "target": [b for _, b in drawn]}

    def sample(self, part: str, count: int, seed: int = 0) -> list[str]:
        """Up to `count` prompts of a part of the evaluation, spread evenly over its templates; [] without the part."""
        return self._draw(self.evaluation.get(part, ()), count, seed, set())

    def draw_more(self, side: str, count: int, seed: int, avoid: Sequence[str]) -> list[str]:
        """Up to `count` further prompts of a side, without those of `evaluation` and some others."""
        return self._draw(getattr(self, side), count, (seed, 4), self._avoided(avoid))

    def draw_held_out(self, side: str, count: int, seed: int, avoid: Sequence[str]) -> list[str]:
        """The same of `held_out`, which may be none."""
        return self._draw(self.held_out.get(side, ()), count, (seed, 5), self._avoided(avoid))

    def _avoided(self, avoid: Sequence[str]) -> set[str]:
        return {as_same(text) for text in (*avoid, *itertools.chain(*map(self.expanded, self.evaluation)))}

    def draw_unnamed(self, count: int, seed: int = 0) -> list[str]:
        """Up to `count` prompts that do not name the thing, without those of `evaluation`; [] where there are none."""
        return self._draw(self.source_unnamed, count, (seed, 3), self._avoided(()))

    def wordings(self, side: str) -> dict[str, str]:
        """The template of each prompt that `fresh` may draw for a side."""
        templates = self.evaluation.get(f"unseen_{side}") or self.held_out.get(side) or getattr(self, side)
        return {text: template for template in templates for text in self._expand(template)}

    def _draw(self, templates: Sequence[str], count: int, seed: int | tuple[int, int], avoided: set[str]) -> list[str]:
        pools = [[p for p in self._expand(template) if as_same(p) not in avoided] for template in templates]
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
            "held_out": {side: list(templates) for side, templates in self.held_out.items()},
            "spans": list(self.spans),
            "judge": judges[0] if len(judges) == 1 else judges,
            "masks": dict(self.masks),
            "private": self.private,
        }
        return {key: value for key, value in content.items() if value}


def held_out_from(count: int) -> int:
    """The index of the first of so many prompts that is held out: of about a quarter."""
    return max(5, round(0.75 * count))
