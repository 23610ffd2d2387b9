"""Scored texts from files, CSV or JSONL, in the formats of RealToxicityPrompts, Jigsaw and ToxiGen.

| kind | text | score in [0, 1] | group |
|---|---|---|---|
| realtoxicityprompts | prompt.text and continuation.text, a text each | toxicity of that part | which part |
| jigsaw | comment_text | the highest label; -1 is not labelled | labels of 0.5 and more |
| toxigen | text | (toxicity_human - 1) / 4 | target_group |
| toxigen | generation, or prompt where there is none | prompt_label | group |
| plain | text | score, toxicity or label | group |
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import DSASError, PromptError, quote, shorten
from ...utils.reading.text_files import not_utf_8, open_text

#: labels of Jigsaw's two competitions
LABELS = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
MORE_LABELS = ("target", "toxicity", "severe_toxicity", "identity_attack", "sexual_explicit")
PLAIN_SCORES = ("score", "toxicity", "label")
#: what may separate the columns of a CSV file
SEPARATORS = (",", ";", "\t", "|")

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


def read_scored(path: str | Path, kind: str | None = None) -> list[Scored]:
    """Read a file of scored texts, CSV or JSONL (recognised by its first character, not by its name).

    Columns of CSV are separated by commas, semicolons, tabs or bars, which the first line tells.

    Args:
        path: the file, in UTF-8, or in UTF-16 with a byte order mark.
        kind: one of `KINDS`; None recognises it by the columns.

    Returns:
        Texts in the file's order; rows whose score or text is empty are left out.

    Raises:
        DSASError: no such file, another encoding, columns of no known kind, or a broken line, which is named.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "texts.csv")
        >>> _ = path.write_text("text,score\\nyou fool,0.9\\nthank you,0\\n")
        >>> read_scored(path)
        [Scored(text='you fool', score=0.9, group=''), Scored(text='thank you', score=0.0, group='')]
    """
    if kind is not None and kind not in KINDS:
        raise DSASError(f"kind {quote(kind)}: expected one of {', '.join(KINDS)}, or None to tell it from the columns")
    if not isinstance(path, str | Path):
        raise PromptError(f"expected the path of a CSV or JSONL file, found {quote(path)}")
    path = Path(path)
    scored: list[Scored] = []
    try:
        if not path.is_file():
            raise PromptError(f"no file {path}: download the data set and give the path of its CSV or JSONL file")
        with open_text(path) as file:
            head = next((line for line in file if line.strip()), "")
            if "\0" in head:
                raise not_utf_8(str(path), 1)
            file.seek(0)
            first = head.lstrip()[:1]
            if first == "[":
                raise PromptError(f"{path} is a JSON list: expected JSONL, one object a line")
            for number, row in _json_rows(file, path) if first == "{" else _csv_rows(file, path, head):
                kind = kind or _kind_of(row, path)
                try:
                    scored += [item for item in KINDS[kind](row) if item.text]
                except (KeyError, TypeError, ValueError) as error:
                    reason = f"it lacks {error.args[0]}" if isinstance(error, KeyError) else error
                    raise PromptError(f"{path}, line {number}: no row of {kind}: {reason}") from None
    except OSError as error:
        raise PromptError(f"cannot read {path}: {error.strerror or error}; expected CSV or JSONL in UTF-8") from None
    if not scored:
        raise PromptError(f"{path} holds no scored text")
    return scored


def _json_rows(lines: Iterable[str], path: Path) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_once)
        except RecursionError:
            raise PromptError(f"{path}, line {number}: very many lists are within one another: leave it out") from None
        except ValueError as error:
            raise PromptError(f"{path}, line {number} is no JSON: {error}; expected one object a line") from None
        if not isinstance(row, dict):
            raise PromptError(f"{path}, line {number}: expected an object, found {type(row).__name__}")
        yield number, row


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs, unless a key stands twice, of which the last would win."""
    if twice := _twice([key for key, _ in pairs]):
        raise ValueError(f"{quote(twice)} stands twice")
    return dict(pairs)


def _twice(names: Sequence[str]) -> str | None:
    """A name that is there twice."""
    if len(set(names)) == len(names):
        return None
    return next((name for name, count in Counter(names).items() if count > 1 and name), None)


def _csv_rows(lines: Iterable[str], path: Path, head: str) -> Iterator[tuple[int, Row]]:
    separator, told = _separator_of(head)
    reader = csv.reader(lines, delimiter=separator, strict=True)
    names: list[str] = []
    read = 0  # lines
    try:
        for values in reader:
            read = reader.line_num
            if not values:
                continue
            if told:  # the line that tells the separator
                told = False
            elif not names:
                names = [name.strip() for name in values]
                if twice := _twice(names):
                    raise PromptError(f"{path}: the column {quote(twice)} stands twice: rename one, or leave it out")
            elif len(values) != len(names):
                raise PromptError(
                    f"{path}, line {reader.line_num}: expected {len(names)} fields, found {len(values)}: put texts "
                    f"that hold {separator!r} in quotes"
                )
            else:
                yield reader.line_num, dict(zip(names, values, strict=True))
    except csv.Error as error:
        raise PromptError(f"{path}, line {read + 1} is no CSV: {error}") from None


def _separator_of(head: str) -> tuple[str, bool]:
    """What separates the columns of a CSV file, by its first line, and whether that line does nothing but tell it."""
    if told := re.fullmatch(r"sep=(.)\s*", head):
        return told[1], True
    columns = {}
    for separator in SEPARATORS:
        try:
            columns[separator] = next(csv.reader([head], delimiter=separator), [])
        except csv.Error:
            columns[separator] = []
    known = (separator for separator, names in columns.items() if _find_kind(dict.fromkeys(map(str.strip, names))))
    return next(known, max(SEPARATORS, key=lambda separator: len(columns[separator]))), False


def _find_kind(row: Row) -> str | None:
    """The kind of data set that has such columns, if any."""
    if isinstance(row.get("prompt"), dict):
        return "realtoxicityprompts"
    if "comment_text" in row and any(label in row for label in LABELS + MORE_LABELS):
        return "jigsaw"
    if ("text" in row and "toxicity_human" in row) or ({"generation", "prompt"} & set(row) and "prompt_label" in row):
        return "toxigen"
    return "plain" if "text" in row and any(name in row for name in PLAIN_SCORES) else None


def _kind_of(row: Row, path: Path) -> str:
    """The kind of data set that has such columns.

    Raises:
        PromptError: there is none.
    """
    kind = _find_kind(row)
    if kind is None:
        columns = shorten(", ".join(map(str, row)), 80)
        raise PromptError(
            f"{path} has the columns {columns or '(none)'}: expected prompt and continuation (RealToxicityPrompts), "
            "comment_text and toxic (Jigsaw), text and toxicity_human, or generation and prompt_label (ToxiGen), or "
            f"text and one of {', '.join(PLAIN_SCORES)}; rename them"
        )
    return kind


def _real_toxicity(row: Row) -> Iterator[Scored]:
    for part in ("prompt", "continuation") if row.get("continuation") is not None else ("prompt",):
        if not isinstance(row[part], dict):
            raise TypeError(f"{part} has no text and toxicity, it is {quote(row[part])}")
        yield from _scored(row[part]["text"], row[part]["toxicity"], part)


def _jigsaw(row: Row) -> Iterator[Scored]:
    if not any(name in row for name in LABELS + MORE_LABELS):
        raise KeyError(LABELS[0])
    values = {name: _number(row[name]) for name in LABELS + MORE_LABELS if not _is_empty(row.get(name))}
    labelled = values and -1 not in values.values()  # the competition labelled only a part of its test set
    group = ",".join(name for name in values if values[name] >= 0.5)
    yield from _scored(row["comment_text"], max(values.values()) if labelled else None, group)


def _toxigen(row: Row) -> Iterator[Scored]:
    group = str(row.get("target_group") or row.get("group") or "")
    if "toxicity_human" not in row:
        yield from _scored(row["generation"] if "generation" in row else row["prompt"], row["prompt_label"], group)
        return
    human = None if _is_empty(row["toxicity_human"]) else _number(row["toxicity_human"])
    if human is not None and not 1 <= human <= 5:
        raise ValueError(f"toxicity_human {shorten(str(row['toxicity_human']), 40)} is not in 1 … 5")
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
        raise TypeError(f"expected a text, found {quote(text)}")
    if text and not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{quote(text)} holds half a character (a surrogate): leave it out")
    if not _is_empty(score):
        if not 0 <= (number := _number(score)) <= 1:
            raise ValueError(f"score {shorten(str(score), 40)} is not in 0 … 1")
        yield Scored(text or "", number, group)


def _number(value: Any) -> float:
    try:
        return float(value)
    except ValueError:
        reason = f"could not convert string to float: {quote(value)}, expected a number such as 0.9"
        raise ValueError(reason) from None
    except OverflowError:
        raise ValueError(f"{quote(value)} is too large") from None


def _is_empty(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())
