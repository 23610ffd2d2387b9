"""Prompt sets from scored texts: files in the formats of RealToxicityPrompts, Jigsaw and ToxiGen.

```python
scored = read_scored("realtoxicityprompts/prompts.jsonl")
prompts = prompt_set(scored, "toxicity", threshold=0.75)
concept = llm.learn(model, tokenizer, prompts)
```

| kind | text | score in [0, 1] | group |
|---|---|---|---|
| realtoxicityprompts | prompt.text and continuation.text, a text each | toxicity of that part | which part |
| jigsaw | comment_text | the highest label; -1 is not labelled | labels of 0.5 and more |
| toxigen | text | (toxicity_human - 1) / 4 | target_group |
| toxigen | generation, or prompt where there is none | prompt_label | group |
| plain | text | score, toxicity or label | group |

Sources are matched with controls of the same length and, where there are any, of the same group, so that a gate cannot
tell them apart by length or by whom a text is about.
"""

from __future__ import annotations

import csv
import json
import math
import re
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DSASError, PromptError
from ...learning.prompts.prompt_set import CONTROLS, MINIMUM, PromptSet
from ..model.conversations import is_conversation

#: labels of Jigsaw's two competitions
LABELS = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
MORE_LABELS = ("target", "toxicity", "severe_toxicity", "identity_attack", "sexual_explicit")
PLAIN_SCORES = ("score", "toxicity", "label")
#: how far the lengths of a source and its control may differ, of the source's length; one is always allowed
LENGTH_SLACK = 0.15

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Scored:
    """A text with a score.

    Args:
        text: the text.
        score: how toxic it is, or how much it shows another concept, in [0, 1].
        group: kind of text; a source and its controls are of one group where possible.
    """

    text: str
    score: float
    group: str = ""


# ---- reading ----------------------------------------------------------------------------------------------------


def read_scored(path: str | Path, kind: str | None = None) -> list[Scored]:
    """Read a file of scored texts, CSV or JSONL (recognised by its first character, not by its name).

    Args:
        path: the file.
        kind: one of `KINDS`; None recognises it by the columns.

    Returns:
        Texts in the file's order; rows whose score or text is empty are left out.

    Raises:
        DSASError: no such file, columns of no known kind, or a broken line, which is named.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "texts.csv")
        >>> _ = path.write_text("text,score\\nyou fool,0.9\\nthank you,0\\n")
        >>> read_scored(path)
        [Scored(text='you fool', score=0.9, group=''), Scored(text='thank you', score=0.0, group='')]
    """
    path = Path(path)
    if kind is not None and kind not in KINDS:
        raise DSASError(f"kind {kind!r}: expected one of {', '.join(KINDS)}, or None to tell it from the columns")
    if not path.is_file():
        raise PromptError(f"no file {path}: download the data set and give the path of its CSV or JSONL file")
    scored: list[Scored] = []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            first = next((line.lstrip()[:1] for line in file if line.strip()), "")
            file.seek(0)
            if first == "[":
                raise PromptError(f"{path} is a JSON list: expected JSONL, one object a line")
            for number, row in _json_rows(file, path) if first == "{" else _csv_rows(file, path):
                kind = kind or _kind_of(row, path)
                try:
                    scored += [item for item in KINDS[kind](row) if item.text]
                except (KeyError, TypeError, ValueError) as error:
                    reason = f"it lacks {error.args[0]}" if isinstance(error, KeyError) else error
                    raise PromptError(f"{path}, line {number}: no row of {kind}: {reason}") from None
    except (UnicodeDecodeError, OSError) as error:
        raise PromptError(f"cannot read {path}: {error}; expected CSV or JSONL in UTF-8") from None
    if not scored:
        raise PromptError(f"{path} holds no scored text")
    return scored


def _json_rows(lines: Iterator[str], path: Path) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise PromptError(f"{path}, line {number} is no JSON: {error}") from None
        if not isinstance(row, dict):
            raise PromptError(f"{path}, line {number}: expected an object, found {type(row).__name__}")
        yield number, row


def _csv_rows(lines: Iterator[str], path: Path) -> Iterator[tuple[int, Row]]:
    reader = csv.DictReader(lines, strict=True)
    try:
        for row in reader:
            expected = len(reader.fieldnames or ())
            extra: Any = row.pop(None, ())  # type: ignore[call-overload]
            count = sum(value is not None for value in row.values()) + len(extra)
            if count != expected:
                raise PromptError(f"{path}, line {reader.line_num}: expected {expected} fields, found {count}")
            yield reader.line_num, row
    except csv.Error as error:
        raise PromptError(f"{path}, line {reader.line_num + 1} is no CSV: {error}") from None


def _kind_of(row: Row, path: Path) -> str:
    """The kind of data set that has such columns."""
    if isinstance(row.get("prompt"), dict):
        return "realtoxicityprompts"
    if "comment_text" in row and any(label in row for label in LABELS + MORE_LABELS):
        return "jigsaw"
    if ("text" in row and "toxicity_human" in row) or ({"generation", "prompt"} & set(row) and "prompt_label" in row):
        return "toxigen"
    if "text" in row and any(name in row for name in PLAIN_SCORES):
        return "plain"
    raise PromptError(
        f"{path} has the columns {', '.join(map(str, row)) or '(none)'}: expected prompt and continuation "
        "(RealToxicityPrompts), comment_text and toxic (Jigsaw), text and toxicity_human, or generation and "
        f"prompt_label (ToxiGen), or text and one of {', '.join(PLAIN_SCORES)}; rename them"
    )


def _real_toxicity(row: Row) -> Iterator[Scored]:
    for part in ("prompt", "continuation") if row.get("continuation") is not None else ("prompt",):
        if not isinstance(row[part], dict):
            raise TypeError(f"{part} has no text and toxicity, it is {row[part]!r}")
        yield from _scored(row[part]["text"], row[part]["toxicity"], part)


def _jigsaw(row: Row) -> Iterator[Scored]:
    if not any(name in row for name in LABELS + MORE_LABELS):
        raise KeyError(LABELS[0])
    values = {name: float(row[name]) for name in LABELS + MORE_LABELS if not _is_empty(row.get(name))}
    labelled = values and -1 not in values.values()  # the competition labelled only a part of its test set
    group = ",".join(name for name in values if values[name] >= 0.5)
    yield from _scored(row["comment_text"], max(values.values()) if labelled else None, group)


def _toxigen(row: Row) -> Iterator[Scored]:
    group = str(row.get("target_group") or row.get("group") or "")
    if "toxicity_human" not in row:
        yield from _scored(row["generation"] if "generation" in row else row["prompt"], row["prompt_label"], group)
        return
    human = None if _is_empty(row["toxicity_human"]) else float(row["toxicity_human"])
    if human is not None and not 1 <= human <= 5:
        raise ValueError(f"toxicity_human {row['toxicity_human']} is not in 1 … 5")
    yield from _scored(row["text"], None if human is None else (human - 1) / 4, group)


def _plain(row: Row) -> Iterator[Scored]:
    name = next((name for name in PLAIN_SCORES if name in row), PLAIN_SCORES[0])
    yield from _scored(row["text"], row[name], str(row.get("group") or ""))


#: name -> the scored texts of a row; KeyError, TypeError and ValueError say what is wrong with it
KINDS: dict[str, Callable[[Row], Iterator[Scored]]] = {
    "realtoxicityprompts": _real_toxicity,
    "jigsaw": _jigsaw,
    "toxigen": _toxigen,
    "plain": _plain,
}


def _scored(text: Any, score: Any, group: str) -> Iterator[Scored]:
    """The text, unless it has no score."""
    if text is not None and not isinstance(text, str):
        raise TypeError(f"expected a text, found {text!r}")
    if not _is_empty(score):
        if not 0 <= float(score) <= 1:
            raise ValueError(f"score {score} is not in 0 … 1")
        yield Scored(text or "", float(score), group)


def _is_empty(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())


# ---- choosing ---------------------------------------------------------------------------------------------------


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
    group; a source without a match is left out. Texts become one line each; empty ones, duplicates, and those that
    begin like a turn of a conversation ("user:") are dropped.

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
    """Texts in one line, without duplicates (the first score counts) and without what cannot be a prompt."""
    usable: dict[str, Scored] = {}
    for item in scored:
        text = " ".join(item.text.split())
        if text and not is_conversation(text):
            usable.setdefault(text.lower(), Scored(text, item.score, item.group))
    return list(usable.values())


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
