"""The article in front of a filled placeholder: "a {fruit}" becomes "an apple", in English and nowhere else.

"a" and "an" are words of many languages ("va a insultar", "a uva", "denkt an Berlin"), and "a" may be a letter ("plan
a"). So a text counts as English only by words that say so, and what is not known stays as it was written.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

#: an article at the end of what stands in front of a placeholder; a capital one begins a sentence
_ARTICLE = re.compile(r"(?:(?:^|[\s(\[\"'“‘«])(an?)|(?:^|[.!?:;\n][\s\"'“‘«(\[]*)(An?))(\s+)$")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
#: initials that begin with a vowel when they are spelled
_SPELLED_WITH_VOWEL = "AEFHILMNORSX"


@cache
def _words(key: str) -> tuple[str, ...]:
    import yaml

    content: Mapping[str, str] = yaml.safe_load(Path(__file__).with_name("articles.yaml").read_text(encoding="utf-8"))
    return tuple(content[key].split())


@cache
def _set_of(key: str) -> frozenset[str]:
    return frozenset(_words(key))


def is_english(texts: Iterable[str]) -> bool | None:
    """Whether texts are in English, by common words; None where these do not tell.

    Example:
        >>> is_english(["a photo of a"]), is_english(["va a"]), is_english(["hm, a"])
        (True, False, None)
    """
    words = [word.replace("’", "'").lower() for text in texts for word in _WORD.findall(text)]
    english = sum(word in _set_of("english") for word in words)
    other = sum(word in _set_of("other") or not word.isascii() for word in words)
    return None if english == other == 0 else english > other


def may_be_english(texts: Iterable[str]) -> bool:
    """Whether texts, which do not tell their language, have no word that is not known in English, but for names.

    Example:
        >>> may_be_english(["a ", " in Paris"]), may_be_english(["llama a "])
        (True, False)
    """
    return all(word[0].isupper() or word in _set_of("shared") for text in texts for word in _WORD.findall(text))


def are_english(texts: Sequence[Sequence[str]]) -> bool | None:
    """Whether all of several texts, each in pieces, are in English as far as it can be told; None where none tells.

    Example:
        >>> are_english([["a photo of a"], ["hm, a"]]), are_english([["a photo of a"], ["va a"]]), are_english([["hm"]])
        (True, False, None)
    """
    found = {is_english(pieces) for pieces in texts} - {None}
    return found == {True} if found else None


def split_article(text: str, at_start: bool) -> tuple[str, str, str] | None:
    """What stands in front of a placeholder as (text, article, space); None where no article ends it.

    Args:
        text: what stands between this placeholder and the one before.
        at_start: whether it begins the template.

    Example:
        >>> split_article("on a ", True), split_article("vitamin a ", True), split_article("a ", False)
        (('on ', 'a', ' '), None, None)
    """
    found = _ARTICLE.search(text)
    if not found:
        return None
    group = 1 if found[1] else 2
    start = found.start(group)
    if start == 0 and not at_start:
        return None
    before = _WORD.findall(text[:start])
    if before and before[-1].lower() in _set_of("letters_follow"):
        return None
    return text[:start], found[group], found[3]


def with_article(article: str, text: str) -> str:
    """An English article as it is in front of a text: by its sound, and as it was written where that is not known.

    Example:
        >>> [with_article("a", text) for text in ("owl", "unicorn", "hour", "8-ball", "FBI", "is")]
        ['an', 'a', 'an', 'an', 'an', 'a']
        >>> with_article("An", "dog")
        'A'
    """
    vowel = _begins_with_vowel(text)
    return article if vowel is None else article[0] + "n" * vowel


@cache
def _sounds(key: str) -> re.Pattern[str]:
    return re.compile("|".join(_words(key)))


def _begins_with_vowel(text: str) -> bool | None:
    """Whether a text begins with the sound of a vowel; None where that is not known."""
    plain = "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))
    plain = re.sub(r"^[\s\"'“‘«(\[*_]+", "", plain)
    if number := re.match(r"\d[\d,]*", plain):
        return number[0][0] == "8" or re.match(r"1[18](?:,\d{3})*$", number[0]) is not None
    word = re.match(r"[A-Za-z]+(?:[-'’][A-Za-z]+)*", plain)
    if not word:
        return None
    return _word_begins_with_vowel(word[0])


def _word_begins_with_vowel(word: str) -> bool | None:
    first, small = word.split("-")[0], word.lower()
    if word in _set_of("no_noun"):
        return None
    if len(first) == 1:
        return first.upper() in _SPELLED_WITH_VOWEL
    if first.isupper() and len(first) <= 4:  # "an FBI agent", "a RAM": letters, or a word that they make
        if re.match("[^AEIOUY][AEIOUY]", first):
            return None if first[0] in _SPELLED_WITH_VOWEL else False
        if len(first) <= 3 or not re.search("[AEIOUY]", first):
            return first[0] in _SPELLED_WITH_VOWEL
    if _sounds("spoken_with_vowel").match(small):
        return True
    if _sounds("spoken_with_consonant").match(small) or re.match(r"one(?![a-z])", small):
        return False
    return small[0] in "aeiou"
