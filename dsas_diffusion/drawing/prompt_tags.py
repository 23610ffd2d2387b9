"""Strengths in prompts: `a banana on the grass <dsas:banana-blur:0.5>`.

    <dsas:NAME>               strength 1
    <dsas:NAME:STRENGTH>      a number, auto, or auto:P

NAME is that of a concept at hand, builtin:NAME, a folder, or a Hub name; it has no colon of its own, but for that of
`builtin:` and of a Windows drive. Spaces around the parts do not count, nor do capitals of `dsas`. Tags of other tools
(`<lora:…>`) stay in the prompt.

The prompt without its tags is what it would be if they had never been there. Where there is whitespace on both sides of
a tag, that before it stays; a tag that stands between commas takes one of them with it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from dsas_core.concept.builtin import shipped
from dsas_core.errors import DSASError, PromptError, quote
from dsas_core.model.loading import BUILTIN
from dsas_core.steering.strengths import Auto, read_strength

#: what begins a tag of ours, its content, and what ends it
_TAG = re.compile(r"<\s*dsas(?![\w-])([^<>]*)(>?)", re.IGNORECASE)
#: `NAME` and `STRENGTH`, where there is one; `builtin:` without a name after it is none
_PARTS = re.compile(rf"(?!{BUILTIN}\s*(?::|\Z))((?:{BUILTIN}|[a-zA-Z]:(?=[\\/]))?[^:]+?)\s*(?::(.*))?", re.DOTALL)
#: what follows a word without a space
_CLOSING = tuple(",.;:!?)]}")


def parse_prompt(text: str, names: Collection[str] = ()) -> tuple[str, dict[str, float | Auto]]:
    """Take the strengths of concepts out of a prompt.

    Args:
        text: a prompt, with tags as `<dsas:NAME:STRENGTH>` anywhere in it.
        names: of concepts at hand, which a tag means first.

    Returns:
        The prompt without tags, and concept -> strength in the order of the tags: a name of `names` as it is, and
        others as `steer` takes them, so that a shipped concept needs no `builtin:` unless a folder has its name.

    Raises:
        PromptError: a tag that is malformed, or one concept twice.

    Example:
        >>> parse_prompt("a banana <dsas:banana-blur:0.5>, a dog <dsas:my-greys>")
        ('a banana, a dog', {'builtin:banana-blur': 0.5, 'my-greys': 1.0})
    """
    strengths: dict[str, float | Auto] = {}
    rest, start = text, 0
    while (tag := _TAG.search(rest, start)) is not None:
        name, strength = _read(tag)
        concept = _resolve(name, names)
        if concept in strengths:
            raise PromptError(f"the prompt sets the concept {quote(name)} twice: leave one of its tags out")
        strengths[concept] = strength
        rest, start = _cut(rest[: tag.start()], rest[tag.end() :])
    return rest, strengths


def refuse_tags(text: str, what: str) -> None:
    """Raise a PromptError where a text has a tag that would have no effect there.

    Example:
        >>> refuse_tags("blurry <dsas:x>", "the negative prompt")
        Traceback (most recent call last):
        dsas_core.errors.PromptError: the negative prompt has the tag '<dsas:x>', which steers only prompts: move it ...
    """
    if tag := _TAG.search(text):
        raise PromptError(f"{what} has the tag {quote(tag[0])}, which steers only prompts: move it into the prompt")


def _read(tag: re.Match[str]) -> tuple[str, float | Auto]:
    """Name and strength of a tag."""
    content, end = tag.groups()
    expected = "expected <dsas:NAME> or <dsas:NAME:STRENGTH>"
    if not end:
        raise PromptError(f"the prompt has the tag {quote(tag[0])}, which no > ends: {expected}")
    colon, body = content.strip()[:1], content.strip()[1:].strip()
    parts = _PARTS.fullmatch(body) if colon == ":" else None
    if parts is None:
        raise PromptError(f"the prompt has the tag {quote(tag[0])}, which names no concept: {expected}")
    name, strength = parts[1].strip(), parts[2]
    if strength is None:
        return name, 1.0
    try:
        return name, read_strength(strength.strip())
    except DSASError as error:
        raise PromptError(f"the prompt has the tag {quote(tag[0])}: {error}") from None


def _resolve(name: str, names: Collection[str]) -> str:
    """The concept that a tag names: one at hand, a folder, or one that ships."""
    if name in names:
        return name
    full = f"{BUILTIN}{name}"
    is_shipped = any(concept.name == full for concept in shipped())
    return full if is_shipped and not Path(name).is_dir() else name


def _cut(before: str, after: str) -> tuple[str, int]:
    """A prompt without the tag between two of its parts, and where to look for the next one."""
    left, right = before.rstrip(), after.lstrip()
    space = before[len(left) :] or after[: len(after) - len(right)]
    if left.endswith(",") and (not right or right.startswith(",")):
        left, space = left[:-1].rstrip(), ""
    elif not left and right.startswith(","):
        right = right[1:].lstrip()
    if not left or not right or right.startswith(_CLOSING):
        space = ""
    return left + space + right, len(left)
