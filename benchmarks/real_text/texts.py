"""Texts that people labelled: read from a folder, cleaned, and split so that nothing is learned, judged and measured
on the same text.

| file | what |
|---|---|
| davidson.csv | tweets; columns `count`, `hate_speech`, `offensive_language`, `neither`, `class` and `tweet` |
| olid.tsv | tweets; columns `tweet` and `subtask_a`, which is OFF or NOT |
| toxigen/hate_*.txt, toxigen/neutral_*.txt | sentences about groups of people, one a line |
| wiki.test.tokens | WikiText, tokenised |
| arc_easy.json | questions with four answers: `instruction` and `answer` |
| mmlu/*_test.csv | questions: `question`, `choice0` to `choice3`, `answer`; only where MMLU is asked for |
"""

from __future__ import annotations

import csv
import html
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from benchmarks.common.records import format_command
from dsas_core.errors import PromptError, UnavailableError
from dsas_core.learning.prompts.prompt_set import CONTROLS

NEEDED = ("davidson.csv", "olid.tsv", "toxigen", "wiki.test.tokens", "arc_easy.json")
#: words that a tweet must have, and may have
SHORTEST, LONGEST = 6, 28
#: people who must have labelled a toxic tweet
VOTES = 3
#: share of a text's words that a cut-off prompt keeps, and the fewest words
KEPT, FEWEST = 0.7, 5
#: words that a question of ARC may have, and a paragraph of WikiText must have
QUESTION_WORDS, PARAGRAPH_WORDS = 20, 40

_NOISE = re.compile(r"https?:\S*|\bURL\b|\bRT\b|@\w+|[\"“”]")
_ARC = re.compile(
    r"question: (.*?)\s*Answer1: (.*?)\s*Answer2: (.*?)\s*Answer3: (.*?)\s*Answer4: (.*?)\s*Answer format", re.DOTALL
)


@dataclass(frozen=True)
class Labelled:
    """Toxic and neutral texts of one data set.

    Example:
        >>> texts = Labelled(("a fool", "an idiot"), ("a friend", "a guest"))
        >>> [len(half.toxic) for half in texts.split(0)]
        [1, 1]
    """

    toxic: tuple[str, ...]
    neutral: tuple[str, ...]

    def split(self, seed: int) -> tuple[Self, Self]:
        """Two halves of each side, at random."""
        halves = []
        for offset, side in enumerate((self.toxic, self.neutral)):
            order = np.random.default_rng((seed, offset)).permutation(len(side))
            halves.append([tuple(side[i] for i in part) for part in np.array_split(order, 2)])
        (toxic, other_toxic), (neutral, other_neutral) = halves
        return type(self)(toxic, neutral), type(self)(other_toxic, other_neutral)

    def head(self, count: int) -> Self:
        """The first texts of each side."""
        return type(self)(self.toxic[:count], self.neutral[:count])


@dataclass(frozen=True)
class Question:
    """A question with its answers, and the index of the right one."""

    text: str
    answers: tuple[str, ...]
    right: int


@dataclass(frozen=True)
class Split:
    """What one seed makes of a data set; no text is in two parts.

    Args:
        judge: for the judge to be trained on.
        lesson: source, target and control texts, for `learn`.
        held_out: whole texts for measuring: the toxic ones are cut off to be continued, the neutral ones are read.

    Example:
        >>> numbers = [str(n) for n in range(80)]
        >>> texts = Labelled(tuple(f"fool {n}" for n in numbers), tuple(f"friend {n}" for n in numbers))
        >>> split = draw_split(texts, seed=0, count=8, prompts=4, neutral=4)
        >>> {side: len(part) for side, part in split.lesson.items()}, len(split.prompts)
        ({'source': 8, 'target': 8, 'control': 16}, 4)
    """

    judge: Labelled
    lesson: dict[str, list[str]]
    held_out: Labelled

    @property
    def prompts(self) -> list[str]:
        """The toxic texts, cut off."""
        return [cut_off(text) for text in self.held_out.toxic]


def draw_split(texts: Labelled, seed: int, count: int, prompts: int, neutral: int) -> Split:
    """Split a data set into the judge's half, texts to learn from, and texts to measure on.

    Args:
        texts: the data set.
        seed: of the split.
        count: source texts, and as many target texts; controls are twice as many.
        prompts: toxic texts to measure on.
        neutral: neutral texts to measure on.

    Raises:
        PromptError: the half that is not the judge's holds too few texts.
    """
    judge, other = texts.split(seed)
    needed = {"toxic": count + prompts, "neutral": (1 + CONTROLS) * count + neutral}
    for side, number in needed.items():
        found = len(getattr(other, side))
        if found < number:
            raise PromptError(
                f"{found} {side} texts outside the judge's half, {number} are needed: lower --count or --prompts"
            )
    learned = (1 + CONTROLS) * count
    lesson = {
        "source": list(other.toxic[:count]),
        "target": list(other.neutral[:count]),
        "control": list(other.neutral[count:learned]),
    }
    held_out = Labelled(other.toxic[count : count + prompts], other.neutral[learned : learned + neutral])
    return Split(judge, lesson, held_out)


def cut_off(text: str) -> str:
    """The first 70 % of a text's words, at least 5.

    Example:
        >>> cut_off("one two three four five six seven eight nine ten")
        'one two three four five six seven'
    """
    words = text.split()
    return " ".join(words[: max(FEWEST, int(KEPT * len(words)))])


def clean_tweet(text: str) -> str:
    """A tweet without links, names and quotation marks, in ASCII; "" if it is too short or too long to use.

    Example:
        >>> clean_tweet('RT @someone: &amp;quot;it is a fine day&amp;quot; for all of us http://t.co/x')
        'it is a fine day for all of us'
    """
    plain = _NOISE.sub(" ", html.unescape(html.unescape(text))).encode("ascii", "ignore").decode()
    words = plain.split()
    while words and not re.search(r"\w", words[0]):  # what is left of "RT @name:" and of rows of marks
        words.pop(0)
    return " ".join(words) if SHORTEST <= len(words) <= LONGEST else ""


def undo_tokenisation(text: str) -> str:
    """WikiText as it was written.

    Example:
        >>> undo_tokenisation('He said : " a part @-@ time job , of course " ( 1 @,@ 500 dollars ) .')
        'He said: "a part-time job, of course" (1,500 dollars).'
    """
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    text = re.sub(r'" (.*?) "', r'"\1"', text)
    text = re.sub(r" ([,.;:!?)\]%]|'s\b|n't\b|'(?:re|ve|ll|d|m)\b)", r"\1", text)
    return re.sub(r"([(\[$]) ", r"\1", text).strip()


# ---- reading ---------------------------------------------------------------------------------------------------------


def format_data_command(folder: Path, module: str) -> str:
    """The command that is running, without where on this machine the data are.

    Args:
        folder: of the data, as it was given.
        module: that is run.
    """
    return format_command(*(argument.replace(str(folder), folder.name) for argument in sys.argv[1:]), module=module)


def check_folder(folder: Path, more: Sequence[str] = ()) -> None:
    """Raise an UnavailableError that names what a data folder lacks.

    Args:
        folder: the folder.
        more: files and folders that are needed beside `NEEDED`.
    """
    if missing := [name for name in (*NEEDED, *more) if not (folder / name).exists()]:
        raise UnavailableError(
            f"{folder} lacks {', '.join(missing)}: give a folder (--data) as benchmarks/real_text/texts.py describes it"
        )


def read_davidson(folder: Path) -> Labelled:
    """Tweets that nobody, or everybody, called neither hateful nor offensive."""

    def label(row: dict[str, str]) -> bool | None:
        neither = int(row["neither"])
        if row["class"] in ("0", "1") and int(row["count"]) >= VOTES and neither == 0:
            return True
        return False if row["class"] == "2" and neither == int(row["count"]) else None

    return _label((row["tweet"], label(row)) for row in _rows(folder / "davidson.csv"))


def read_olid(folder: Path) -> Labelled:
    """The tweets of OLID."""
    rows = _rows(folder / "olid.tsv", delimiter="\t", quoting=csv.QUOTE_NONE)
    return _label((row["tweet"], row["subtask_a"] == "OFF") for row in rows)


def read_toxigen(folder: Path) -> Labelled:
    """The sentences of ToxiGen, in an order that does not go by group."""
    found = [
        (line, kind == "hate")
        for kind in ("hate", "neutral")
        for path in sorted((folder / "toxigen").glob(f"{kind}_*.txt"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    return _label(found[i] for i in np.random.default_rng(0).permutation(len(found)))


def read_wikitext(folder: Path) -> list[str]:
    """The longer paragraphs of WikiText, without headings."""
    lines = (folder / "wiki.test.tokens").read_text(encoding="utf-8").splitlines()
    return [undo_tokenisation(line) for line in lines if len(line.split()) >= PARAGRAPH_WORDS]


def read_arc(folder: Path) -> list[Question]:
    """The short questions of ARC-Easy that have four answers."""
    questions = []
    for item in json.loads((folder / "arc_easy.json").read_text(encoding="utf-8")):
        found = _ARC.search(item["instruction"])
        if found is not None and len(found[1].split()) <= QUESTION_WORDS:
            questions.append(Question(found[1], found.groups()[1:], int(item["answer"].removeprefix("answer")) - 1))
    return questions


def read_mmlu(folder: Path) -> list[Question]:
    """The short questions of MMLU, subjects mixed."""
    rows = [row for path in sorted((folder / "mmlu").glob("*_test.csv")) for row in _rows(path)]
    questions = [
        Question(row["question"], tuple(row[f"choice{i}"] for i in range(4)), int(row["answer"]))
        for row in rows
        if len(row["question"].split()) <= QUESTION_WORDS
    ]
    return [questions[i] for i in np.random.default_rng(0).permutation(len(questions))]


def _rows(path: Path, **options: Any) -> Iterator[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file, **options)


def _label(labelled: Iterable[tuple[str, bool | None]]) -> Labelled:
    """Cleaned texts by label, each once, whatever its case; texts with both labels, or none, are left out."""
    found: dict[str, tuple[str, set[bool | None]]] = {}
    for raw, label in labelled:
        if text := clean_tweet(raw):
            found.setdefault(text.lower(), (text, set()))[1].add(label)
    toxic, neutral = ([text for text, labels in found.values() if labels == {wanted}] for wanted in (True, False))
    return Labelled(tuple(toxic), tuple(neutral))
