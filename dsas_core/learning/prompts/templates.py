"""Templates of prompts: texts with placeholders in braces, and their expansion."""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ...errors import PromptError, quote, shorten
from .articles import is_english, may_be_english, split_article, with_article

#: characters that a prompt costs beside its own, where the size of an expansion is estimated
OVERHEAD = 64


#: braces that are text, a placeholder, and a brace that is neither
_BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_TWICE = "braces that are text are written twice, {{ and }}"


def split_template(template: str, what: str = "template") -> list[tuple[str, str | None]]:
    """A template in pieces: a text as it will be, and the placeholder behind it, None at the end.

    Args:
        template: the text with placeholders in braces; braces that are text are written twice.
        what: what it is called in errors.

    Raises:
        PromptError: braces that are no placeholder.

    Example:
        >>> split_template("a {other} {{1}}")
        [('a ', 'other'), (' {1}', None)]
    """
    pieces: list[tuple[str, str | None]] = []
    text, end = "", 0
    for found in _BRACES.finditer(template):
        text += template[end : found.start()]
        end = found.end()
        if found[0] in ("{{", "}}"):
            text += found[0][0]
        elif found[1] is None:
            lacks = "expected '}' behind '{'" if found[0] == "{" else "expected '{' in front of '}'"
            raise PromptError(f"{what} {quote(template)}: {lacks}, at character {end}; {_TWICE}")
        elif ":" in found[1] or "!" in found[1]:
            raise PromptError(
                f"{what} {quote(template)}: a placeholder is a name in braces, without ':' and '!', found "
                f"{quote(found[0])}; {_TWICE}"
            )
        else:
            pieces.append((text, unicodedata.normalize("NFC", found[1])))
            text = ""
    return [*pieces, (text + template[end:], None)]


def placeholder_names(template: str) -> set[str]:
    """The placeholders of a template.

    Raises:
        PromptError: braces that are no placeholder.

    Example:
        >>> sorted(placeholder_names("a {other} {place}"))
        ['other', 'place']
    """
    return {name for _, name in split_template(template) if name is not None}


def check_template(template: str, placeholders: Mapping[str, Sequence[str]], what: str = "template") -> None:
    """Raise an error for a template that cannot be filled.

    Args:
        template: the text with placeholders in braces.
        placeholders: values by name.
        what: what it is called in errors.

    Raises:
        PromptError: braces that are no placeholder, a placeholder that is not defined, or one in double braces, which
            would stay as it is.

    Example:
        >>> check_template("a {other}", {"other": ["dog"]})
    """
    for text, name in split_template(template, what):
        if name is not None and name not in placeholders:
            raise PromptError(
                f"{what} {quote(template)} uses {{{shorten(name, 40)}}}, which placeholders does not define: define "
                f"it; {_TWICE}"
            )
        if name is not None and isinstance(placeholders[name], str):
            raise PromptError(
                f"placeholder {shorten(name, 40)}: expected a list of texts, found a text: put it in a list"
            )
        for written in re.findall(r"\{\s*([^{}]*?)\s*\}", text):
            if written in placeholders:
                raise PromptError(
                    f"{what} {quote(template)} would keep {{{shorten(written, 40)}}} as it is, though it is a "
                    "placeholder: write it in single braces to fill it, or rename the placeholder"
                )


def literal(value: str, what: str = "value", placeholders: Mapping[str, Sequence[str]] | None = None) -> str:
    """A value of a placeholder as it will be: its double braces are single ones.

    Args:
        value: the value; braces that are text are written twice.
        what: what it is called in errors.
        placeholders: values by name; none of them may stand in the value, in whatever braces.

    Raises:
        PromptError: braces that are not doubled: placeholders in values are not filled.

    Example:
        >>> literal("f({{}})")
        'f({})'
    """
    pieces = split_template(value, what)
    if len(pieces) > 1:
        raise PromptError(
            f"{what} {quote(value)} holds a placeholder, which is not filled there: put it into the templates; {_TWICE}"
        )
    check_template(value, placeholders or {}, what)
    return pieces[0][0]


def expansion_size(template: str, placeholders: Mapping[str, Sequence[str]]) -> tuple[int, int]:
    """How many prompts a template gives at most, and their characters, without expanding it.

    Example:
        >>> expansion_size("a {other}", {"other": ["dog", "cat"]})
        (2, 152)
    """
    used = [name for _, name in split_template(template) if name is not None]
    count = math.prod(len(placeholders[name]) for name in set(used))
    return count, count * (OVERHEAD + len(template) + sum(max(map(len, placeholders[name])) for name in used))


def expand(
    template: str,
    placeholders: Mapping[str, Sequence[str]],
    names: Sequence[str] | None = None,
    *,
    english: bool | None = None,
) -> list[str]:
    """Expand a template: one text for each choice of different values of its placeholders.

    Args:
        template: the text with placeholders in braces; braces that are text are written twice, here and in values.
        placeholders: values by name.
        names: placeholders to choose values for; None for those of the template.
        english: whether the texts around a template are, where it does not tell itself (`articles.py`).

    Returns:
        Texts as they were written, but for the placeholders; in English with the article, "a" or "an", that the value
        right behind it takes.

    Raises:
        PromptError: braces that are no placeholder, or a placeholder that is not defined.

    Example:
        >>> expand("a {fruit} {place}", {"fruit": ["apple", "pear"], "place": ["at night"]})
        ['an apple at night', 'a pear at night']
        >>> expand("va a {verbo}", {"verbo": ["insultar"]})
        ['va a insultar']
    """
    check_template(template, placeholders)
    pieces = split_template(template)
    names = sorted(placeholder_names(template)) if names is None else names
    values = {
        name: [literal(value, f"placeholder {shorten(name, 40)}: value", placeholders) for value in placeholders[name]]
        for name in names
    }
    articles = _articles(pieces, values, english)
    texts = []
    for chosen in itertools.product(*values.values()):
        if len(set(chosen)) < len(chosen):  # no "a dog and a dog"
            continue
        filled = dict(zip(names, chosen, strict=True))
        text = ""
        for (piece, name), article in zip(pieces, articles, strict=True):
            value = "" if name is None else filled[name]
            text += (piece if article is None else article[value]) + value
        texts.append(text)
    return texts


def _articles(
    pieces: Sequence[tuple[str, str | None]], values: Mapping[str, Sequence[str]], english: bool | None
) -> list[dict[str, str] | None]:
    """For each piece, by the value behind it, the text with the article that the value takes; None to leave it."""
    found = [None if name is None else split_article(text, at_start=i == 0) for i, (text, name) in enumerate(pieces)]
    if any(found):
        told = is_english(text for text, _ in pieces)
        told = is_english(itertools.chain(*values.values())) if told is None else told
        if told is not None or not may_be_english(text for text, _ in pieces):
            english = told  # whatever is around it: one file may have several languages
    if not english:
        return [None] * len(pieces)
    return [
        None
        if parts is None or name is None
        else {value: f"{parts[0]}{with_article(parts[1], value)}{parts[2]}" for value in values[name]}
        for parts, (_, name) in zip(found, pieces, strict=True)
    ]


def as_same(text: str) -> str:
    """A text in the form that all of its spellings in Unicode share (NFC): those look alike, and are one prompt."""
    return unicodedata.normalize("NFC", text)


def unique(texts: Iterable[str]) -> list[str]:
    """The first of each text.

    Example:
        >>> unique(["e\u0301", "\xe9", "e"]) == ["e\u0301", "e"]
        True
    """
    first: dict[str, str] = {}
    for text in texts:
        first.setdefault(as_same(text), text)
    return list(first.values())


def draw_evenly(pools: Sequence[Sequence[Any]], count: int, seed: int | tuple[int, int]) -> list[Any]:
    """Up to `count` different items, the same number from each pool as long as it lasts, shuffled.

    Of more pools than items, which pools are drawn from is chosen at random.

    Example:
        >>> sorted(draw_evenly([["a", "b", "c"], ["d"]], 3, seed=0))[-1]
        'd'
    """
    rng = np.random.default_rng(seed)
    mixed = [[pool[i] for i in rng.permutation(len(pool))] for pool in pools]
    if len(mixed) > count:
        mixed = [mixed[i] for i in rng.permutation(len(mixed))]
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*mixed))
    chosen = list(dict.fromkeys(item for item in rounds if item is not None))[:count]
    return [chosen[i] for i in rng.permutation(len(chosen))]
