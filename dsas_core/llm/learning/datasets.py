"""Prompt sets from scored texts, such as those of RealToxicityPrompts, Jigsaw and ToxiGen.

```python
scored = read_scored("realtoxicityprompts/prompts.jsonl")
prompts = prompt_set(scored, "toxicity", threshold=0.75)
concept = llm.learn(model, tokenizer, prompts)
```

`scored_texts.py` tells which columns hold what.

Sources are matched with controls of the same length and, where there are any, of the same group, so that a gate cannot
tell them apart by length or by whom a text is about.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence

import numpy as np

from ...errors import DSASError, PromptError, quote
from ...learning.prompts.checks import check_text
from ...learning.prompts.prompt_set import CONTROLS, MINIMUM, PromptSet
from ..model.conversations import is_conversation
from .scored_texts import KINDS, LABELS, Scored, read_scored

__all__ = ["KINDS", "LABELS", "Scored", "prompt_set", "read_scored", "words_in"]

#: how far the lengths of a source and its control may differ, of the source's length; one is always allowed
LENGTH_SLACK = 0.15


def words_in(text: str) -> int:
    """Length of a text in words and punctuation marks, about its tokens.

    Example:
        >>> words_in("you fool!")
        3
    """
    return len(re.findall(r"\w+|[^\w\s]", text))


def prompt_set(
    scored: Sequence[Scored],
    name: str,
    *,
    threshold: float = 0.5,
    low: float = 0.1,
    target: Sequence[str] | None = None,
    count: int = 96,
    longest: int = 64,
    length: Callable[[str], int] = words_in,
    description: str = "",
    seed: int = 0,
) -> PromptSet:
    """Choose prompts to learn from: sources score at least `threshold`, controls at most `low`.

    The set is marked as private: what is learned from it keeps hashes of the prompts, not the texts of the data set.

    Each source gets a target and up to two controls of its length (within 15 %) and, where there are any, of its
    group; a source without a match is left out. Texts stay as they are, but for spaces and empty lines around them;
    empty ones, those with control characters, duplicates (but for spaces and capitals), and those that begin like a
    turn of a conversation ("user:") are dropped.

    Args:
        scored: texts, for example of `read_scored`.
        name: of the prompt set.
        threshold: least score of a source, in [0, 1].
        low: highest score of a control, below `threshold`; texts between the two are not used.
        target: what sources should become, for example answers that you wrote; None takes texts up to `low`, others
            than the controls: right when any other text will do.
        count: sources to choose.
        longest: texts longer than this are left out.
        length: what must match, words and punctuation marks by default. In tokens:
            `lambda text: len(tokenizer(text).input_ids)`.
        description: of the prompt set; "" for one that names the thresholds.
        seed: of the choice.

    Returns:
        A checked prompt set; `yaml.safe_dump(prompts.to_dict())` is its file.

    Raises:
        DSASError: no text on one side of the thresholds, or fewer than 8 sources with a match.

    Example:
        >>> rude = [Scored(f"you fool {i}", score=1.0) for i in range(8)]
        >>> polite = [Scored(f"my friend {i}", score=0.0) for i in range(24)]
        >>> prompts = prompt_set(rude + polite, "insults", count=8)
        >>> len(prompts.source), len(prompts.target), len(prompts.control)
        (8, 8, 16)
    """
    numbers = all(isinstance(level, int | float) and math.isfinite(level) for level in (threshold, low))
    if not numbers or not 0 <= low < threshold <= 1:
        raise DSASError(f"low {low}, threshold {threshold}: expected numbers, 0 <= low < threshold <= 1")
    if count < MINIMUM:
        raise DSASError(f"count {count}: at least {MINIMUM} sources are needed")
    usable = _usable(scored)
    if not usable:
        raise PromptError(f"prompt set {name!r}: there is no text to choose from; expected {MINIMUM} or more")
    sources = [item for item in usable if item.score >= threshold]
    calm = [item for item in usable if item.score <= low]
    scores = [item.score for item in usable]
    for texts, level, problem, remedy in (
        (sources, threshold, f"more, the highest {max(scores):g}", "lower threshold"),
        (calm, low, f"less, the lowest {min(scores):g}", "raise low"),
    ):
        if not texts:
            raise PromptError(
                f"prompt set {name!r}: none of {len(usable)} texts scores {level:g} or {problem}: {remedy}, or add "
                "texts"
            )
    rng = np.random.default_rng(seed)
    sources = [sources[i] for i in rng.permutation(len(sources)) if length(sources[i].text) <= longest]
    pool = _Pool([calm[i] for i in rng.permutation(len(calm))], length, longest)
    pool_size = len(pool)
    chosen: list[Scored] = []
    sides: dict[str, list[str]] = {"control": [], "target": []}
    matched = ["control"] if target is not None else ["control", "target"]
    for source in sources:
        if len(chosen) == count:
            break
        matches = pool.take(source, len(matched))
        if matches:
            chosen.append(source)
            for side, text in zip(matched, matches, strict=True):
                sides[side].append(text)
    if len(chosen) < MINIMUM:
        raise PromptError(
            f"prompt set {name!r}: {len(chosen)} of {len(sources)} sources up to {longest} long find a control"
            f"{' and a target' if target is None else ''} of their length among {pool_size}, at least {MINIMUM} are "
            "needed: add texts, or move threshold, low or longest"
        )
    for _ in range(CONTROLS - 1):  # as many as `PromptSet.draw` takes for each source, while they last
        for source in chosen:
            sides["control"] += pool.take(source, 1)
    if target is not None:
        sides["target"] = [text.strip() for text in dict.fromkeys(target) if text.strip()]
    return PromptSet(
        name=name,
        source=tuple(_escape(item.text) for item in chosen),
        target=tuple(_escape(text) for text in sides["target"]),
        control=tuple(_escape(text) for text in sides["control"]),
        private=True,
        description=description or f"Texts scored {threshold:g} or more, against texts scored {low:g} or less.",
    )


def _usable(scored: Sequence[Scored]) -> list[Scored]:
    """Texts without duplicates (the first score counts) and without what cannot be a prompt."""
    usable: dict[str, Scored] = {}
    for item in scored:
        if not isinstance(item.text, str):
            raise PromptError(f"expected texts, found {quote(item.text)}")
        text = item.text.strip("\r\n").rstrip() if "\n" in item.text.strip() else item.text.strip()
        if text and _is_prompt(text):
            usable.setdefault(" ".join(text.lower().split()), Scored(text, item.score, item.group))
    return list(usable.values())


def _is_prompt(text: str) -> bool:
    """Whether a text is no conversation, and has only characters that a prompt file takes."""
    try:
        check_text(text, "")
    except PromptError:
        return False
    return not is_conversation(text)


def _escape(text: str) -> str:
    """A template that gives the text: braces would be placeholders."""
    return text.replace("{", "{{").replace("}", "}}")


class _Pool:
    """Texts by group and length, each to be taken once; those that are too long to match any source are left out."""

    def __init__(self, items: Sequence[Scored], length: Callable[[str], int], longest: int) -> None:
        self._length = length
        self._groups: dict[str, list[tuple[int, int, str]]] = {}  # sorted: length, index, text
        for size, i, item in sorted((length(item.text), i, item) for i, item in enumerate(items)):
            if size <= longest * (1 + LENGTH_SLACK):
                self._groups.setdefault(item.group, []).append((size, i, item.text))

    def __len__(self) -> int:
        return sum(map(len, self._groups.values()))

    def take(self, source: Scored, count: int) -> list[str]:
        """Take `count` texts of the source's length, those of its own group first; none when there are fewer."""
        size = self._length(source.text)
        taken: list[tuple[str, tuple[int, int, str]]] = []
        while len(taken) < count:
            nearest = self._nearest(size, source.group)
            if nearest is None:  # put back what was taken
                for group, entry in taken:
                    insort(self._groups[group], entry)
                return []
            self._groups[nearest[0]].remove(nearest[1])
            taken.append(nearest)
        return [text for _, (_, _, text) in taken]

    def _nearest(self, size: int, own: str) -> tuple[str, tuple[int, int, str]] | None:
        """Group and entry nearest in length, of the own group if one is near enough."""
        for names in ({own} & set(self._groups), set(self._groups) - {own}):
            near = []
            for name in names:
                group = self._groups[name]
                at = bisect_left(group, (size, -1, ""))
                near += [(abs(entry[0] - size), name, entry) for entry in group[max(0, at - 1) : at + 1]]
            if near and min(near)[0] <= max(1, LENGTH_SLACK * size):
                return min(near)[1:]
        return None
