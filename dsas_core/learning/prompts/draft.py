"""A prompt file drafted from two phrases, as a first version to edit."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from ...errors import PromptError, quote
from ...utils.saving.names import why_no_name
from .articles import with_article


def is_name(text: str) -> bool:
    """Whether a text can name a concept and its files: ASCII letters and digits, ".", "_", "-".

    Example:
        >>> is_name("banana-blur"), is_name("../up")
        (True, False)
    """
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text) is not None and not why_no_name(text)


@cache
def everyday() -> dict[str, Any]:
    """Everyday things, places and words (`everyday.yaml`)."""
    import yaml

    content: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("everyday.yaml").read_text(encoding="utf-8"))
    return content


def draft(source: str, target: str, name: str | None = None) -> dict[str, Any]:
    """Draft the content of a prompt file from two phrases.

    Half of the pairs show the thing alone and half beside another one. Controls are everyday things, alone and in
    pairs, in the same places; what the target adds ("blurred") appears on them too, so that the gate learns the thing
    and not the change.

    Args:
        source: what to change, "banana".
        target: what to change it into, "blurred banana".
        name: of the concept; None for one made of the phrases.

    Returns:
        Content that `load_prompts` takes and YAML can hold.

    Raises:
        PromptError: an empty phrase, or two that are the same.

    Example:
        >>> draft("a banana", "blurred banana")["target"][0]
        'a blurred banana {place}'
    """
    if not isinstance(source, str) or not isinstance(target, str):
        raise PromptError(f"expected two phrases, found {quote(source)} and {quote(target)}")
    source, target = (" ".join(re.sub(r"^(an?|the)\s+", "", phrase.strip()).split()) for phrase in (source, target))
    if not source or not target:
        raise PromptError("two phrases are needed, what to change and what into: for example banana, blurred banana")
    if source.lower() == target.lower():
        raise PromptError(f"both phrases are {quote(source)}: there is nothing to learn")
    words = {word.lower() for word in f"{source} {target}".split()}
    others = [thing for thing in everyday()["things"] if thing not in words]
    added = [word for word in target.split() if word.lower() not in {w.lower() for w in source.split()}]
    controls = list(everyday()["controls"])
    if added and target.lower().endswith(source.lower()):
        controls.append(_name(" ".join(added), "a {} {other} {place}"))
    return {
        "name": name or re.sub(r"[^a-z0-9]+", "-", f"{source} to {target}".lower())[:100].strip("-"),
        "description": f"Turns {source} into {target}; drafted, edit freely.",
        "placeholders": {"other": others, "second": others[::-1], "place": list(everyday()["places"])},
        "source": [_name(source, template) for template in everyday()["pairs"]],
        "target": [_name(target, template) for template in everyday()["pairs"]],
        "control": controls,
        **unnamed_of(source),
    }


def unnamed_of(source: str) -> dict[str, list[str]]:
    """Templates of prompts that do not name a thing, under `source_unnamed`; nothing for a thing of no known kind.

    Example:
        >>> unnamed_of("ripe banana")["source_unnamed"][0], unnamed_of("quux")
        ('a fruit {place}', {})
    """
    *_, noun = source.lower().split()
    forms = {noun, noun.removesuffix("s"), noun.removesuffix("es")}
    kind = next((kind for kind, things in everyday()["kinds"].items() if forms & set(things)), None)
    return {"source_unnamed": [_name(kind, template) for template in everyday()["unnamed"]]} if kind else {}


def _name(phrase: str, template: str) -> str:
    """A template with a phrase in place of {}, behind the article that it takes."""
    phrase = phrase.replace("{", "{{").replace("}", "}}")
    return template.replace("a {}", f"{with_article('a', phrase)} {phrase}")
