"""Which words of prompts show the concept: labels of the tokens in the embeddings that a denoiser is given."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import copy
from functools import cache
from typing import Any

from dsas_core.errors import PromptError
from dsas_core.learning.capture import LabelPositions

from ..pipelines.adapter import PipelineAdapter
from ..pipelines.families.prompt_templates import plain

#: sides of which some words show the concept, or what it becomes
SIDES = ("source", "target")
#: tokens of a prompt that are looked at: some tokenizers have no limit of their own
LONGEST = 512


def words_of(text: str) -> list[str]:
    """The words of a text in lower case.

    Example:
        >>> words_of("A cat, to the left of a dog")
        ['a', 'cat', 'to', 'the', 'left', 'of', 'a', 'dog']
    """
    return re.findall(r"\w+(?:['’-]\w+)*", text.lower())


def own_words(prompts: Mapping[str, Sequence[str]], spans: Sequence[str] = ()) -> dict[str, tuple[str, ...]] | None:
    """The words that show the concept in source prompts, and in target prompts what it becomes.

    These are the spans of the prompt file, else of the words that no control prompt has as few as every prompt has one
    of: not a place that controls happen to lack, nor words such as "an". Of targets they are the same words, where
    every target has one ("a blurred banana"), else those that no source has ("a pear"), nor a control, unless some
    target has no other.

    Args:
        prompts: of "source" and "target"; all others are controls.
        spans: words or phrases that show the concept.

    Returns:
        Words or phrases by side; None where some prompt has none, so that it is not known what shows the concept.

    Example:
        >>> controls = ["a dog on the grass", "a blurred dog at night"]
        >>> own_words({"source": ["a cat at night"], "target": ["a blurred cat at night"], "control": controls})
        {'source': ('cat',), 'target': ('cat',)}
        >>> own_words({"source": ["a cat at night"], "target": ["a fox at night"], "control": controls})
        {'source': ('cat',), 'target': ('fox',)}
        >>> own_words({"source": ["an apple"], "target": ["a lemon"], "control": controls})
        {'source': ('apple',), 'target': ('lemon',)}
        >>> own_words({"source": ["a dog"], "target": ["a dog at night"], "control": controls}) is None
        True
    """
    elsewhere = _words_elsewhere(prompts)
    source = tuple(spans) or _telling(prompts["source"], elsewhere)
    if not _all_have(prompts["source"], source):
        return None
    before = {word for text in prompts["source"] for word in words_of(text)}
    for target in (source, *(_telling(prompts["target"], others) for others in (before | elsewhere, before))):
        if _all_have(prompts["target"], target):
            return {"source": source, "target": target}
    return None


def doubtful_words(prompts: Mapping[str, Sequence[str]], words: Sequence[str]) -> tuple[str, ...]:
    """Words of source prompts that no control prompt has, and that are not taken for the concept all the same.

    Example:
        >>> doubtful_words({"source": ["a cat", "a cat on a table"], "control": ["a dog on a hat"]}, ["cat"])
        ('table',)
    """
    taken = {word for phrase in words for word in words_of(phrase)}
    return tuple(word for word in _words_outside(prompts["source"], _words_elsewhere(prompts)) if word not in taken)


def _words_elsewhere(prompts: Mapping[str, Sequence[str]]) -> set[str]:
    """The words of control prompts."""
    return {word for side in prompts if side not in SIDES for text in prompts[side] for word in words_of(text)}


def _words_outside(texts: Sequence[str], others: set[str]) -> tuple[str, ...]:
    """Words of texts that are not among others; without stop words, where every text has another one, too."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    words = tuple(dict.fromkeys(word for text in texts for word in words_of(text) if word not in others))
    telling = tuple(word for word in words if word not in ENGLISH_STOP_WORDS)
    return telling if _all_have(texts, telling) else words


def _telling(texts: Sequence[str], others: set[str]) -> tuple[str, ...]:
    """Of the words outside others, as few as every text has one of; those that are always together count as one."""
    words = _words_outside(texts, others)
    places = {word: frozenset(i for i, text in enumerate(texts) if word in words_of(text)) for word in words}
    left, chosen = frozenset().union(*places.values()), list[str]()
    while left:
        chosen.append(max(words, key=lambda word: len(places[word] & left)))
        left -= places[chosen[-1]]
    for word in tuple(chosen):  # one that later ones have made superfluous
        rest = [places[other] for other in chosen if other != word]
        if places[word] <= frozenset().union(*rest):
            chosen.remove(word)
    kept = {places[word] for word in chosen}
    return tuple(word for word in words if places[word] in kept)


def _all_have(texts: Sequence[str], phrases: Sequence[str]) -> bool:
    """Whether every text has one of the phrases, as whole words."""
    sought = [f" {' '.join(words_of(phrase))} " for phrase in phrases]
    return all(any(phrase in f" {' '.join(words_of(text))} " for phrase in sought) for text in texts)


class PromptWords:
    """Where the words of prompts are, in the embeddings that the denoiser is given.

    Args:
        adapter: of the pipeline, whose first text encoder's tokens the embeddings follow.
        prompts: by side.
        spans: of the prompt file.

    Attributes:
        words: by side, see `own_words`; None where it is not known which show the concept, or which position is which
            word, as the pipeline puts a template around prompts.
    """

    def __init__(
        self, adapter: PipelineAdapter, prompts: Mapping[str, Sequence[str]], spans: Sequence[str] = ()
    ) -> None:
        self.prompts, self.tokens = prompts, adapter.tokens[0]
        self._ids = cache(self._read)
        self.is_plain = self.tokens.encoder.prompt_template is plain
        self.words = own_words(prompts, spans) if self.is_plain else None
        if self.words is not None and not all(any(self._marks(side, i)) for side in SIDES for i in self._places(side)):
            self.words = None  # a tokenizer that writes words otherwise, or a prompt that is cut off

    def _places(self, side: str) -> range:
        return range(len(self.prompts[side]))

    def _read(self, side: str, prompt: int) -> list[int]:
        length = min(self.tokens.tokenizer.model_max_length, LONGEST)
        ids: list[int] = self.tokens.ids([self.prompts[side][prompt]], length)[0].tolist()
        return ids

    def _marks(self, side: str, prompt: int) -> list[bool]:
        assert self.words is not None
        ids = self._ids(side, prompt)
        marked = set(self.tokens.find_words(self.words[side.rsplit(" ", 1)[-1]], ids))
        return [place in marked for place in range(len(ids))]

    def find(self, side: str, prompt: int, count: int) -> list[bool]:
        """Which of the first `count` positions are words of a prompt, and not padding; for `capture.FindWords`.

        All of them, where the pipeline puts a template around prompts.
        """
        if not self.is_plain:
            return [True] * count
        ids = self._ids(side, prompt)
        special = set(self.tokens.tokenizer.all_special_ids)
        return _of_length([token not in special for token in ids], count)

    def labels(self) -> dict[str, LabelPositions]:
        """By side, which positions of each prompt show the concept.

        Raises:
            PromptError: it is not known which words show it.
        """
        if self.words is None:
            raise PromptError(
                "supervision by positions asks which words show the concept: expected one in each source prompt that "
                "no control prompt has, or spans in the prompt file; add them, or leave supervision to prompts"
            )
        return {side: self.labels_of(side) for side in SIDES}

    def of(self, prompts: Mapping[str, Sequence[str]]) -> PromptWords:
        """The same words in other prompts, by kind; kinds end with the name of their side."""
        other = copy(self)
        other.prompts, other._ids = prompts, cache(other._read)
        return other

    def labels_of(self, side: str) -> LabelPositions:
        """Which positions of each prompt of a kind show the concept."""
        return lambda prompt, count: _of_length(self._marks(side, prompt), count)


def _of_length(marks: Sequence[Any], count: int) -> list[bool]:
    """Marks of the first `count` positions; what is behind the last token is none."""
    return [*marks[:count], *(False,) * (count - len(marks))]
