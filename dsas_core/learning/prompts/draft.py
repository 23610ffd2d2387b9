"""A prompt file drafted from two phrases, as a first version to edit."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from ...errors import PromptError, quote
from ...utils.saving.names import why_no_name
from .articles import with_article

#: nouns of a draft, at most
MAX_NOUNS = 40
#: of them, those most like the thing, at most
MAX_ALIKE = 10
#: things that a kind stands for, at most
MAX_MEMBERS = 10
#: one noun in so many is kept out of what is learned from, to measure on
HELD_OUT = 5
#: values of a placeholder that stands beside another of many values, at most: prompts multiply
MAX_BESIDE = 8
#: places and relations of a draft, at most
MAX_PLACES, MAX_RELATIONS = 13, 5

#: whether a model knows all words of a text
Known = Callable[[str], bool]
#: how alike a phrase is to each of some nouns, as a model reads them
Alike = Callable[[str, Sequence[str]], Sequence[float]]


def is_name(text: str) -> bool:
    """Whether a text can name a concept and its files: ASCII letters and digits, ".", "_", "-".

    Example:
        >>> is_name("banana-blur"), is_name("../up")
        (True, False)
    """
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text) is not None and not why_no_name(text)


@cache
def everyday() -> dict[str, Any]:
    """Everyday things by kind, places, relations, styles and other words (`everyday.yaml`)."""
    import yaml

    content: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("everyday.yaml").read_text(encoding="utf-8"))
    return content


def draft(
    source: str,
    target: str,
    name: str | None = None,
    *,
    known: Known | None = None,
    alike: Alike | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Draft the content of a prompt file from two phrases.

    The thing is shown alone and beside other things, in places and relations. Controls are other things, alone and in
    pairs, those most like the thing in half of them; what the target adds ("blurred") appears on them too, so that the
    gate learns the thing and not the change. The things come from a list of some hundred nouns in all. A fifth of
    those chosen is held out: only prompts under `held_out`, on which the concept is measured, have them.

    Args:
        source: what to change, "banana"; a kind of things stands for each of them, "fruit".
        target: what to change it into, "blurred banana".
        name: of the concept; None for one made of the phrases.
        known: whether a model knows the words of a text, so that others are left out; None for a model that knows all.
        alike: how alike a model takes a phrase and each of some nouns to be; None for how often they are of one kind.
        seed: of the choice of nouns that are held out.

    Returns:
        Content that `load_prompts` takes and YAML can hold.

    Raises:
        PromptError: an empty phrase, or two that are the same.

    Example:
        >>> content = draft("a banana", "blurred banana")
        >>> content["target"][0], content["spans"], "banana" in content["placeholders"]["other"]
        ('a blurred banana {place}', ['banana'], False)
    """
    source, target = _phrases(source, target)
    known = known or (lambda text: True)
    nouns = _Nouns(source, target, known, alike, seed)
    added = [word for word in target.split() if word.lower() not in {w.lower() for w in source.split()}]
    is_style = bool(added) and target.lower().endswith(source.lower())
    places, relations = (
        [text for text in everyday()[key] if known(text)][:most]
        for key, most in (("places", MAX_PLACES), ("relations", MAX_RELATIONS))
    )
    openings = [text for text in everyday()["openings"] if known(text)][:1]
    changed = [" ".join(added)] if is_style else [style for style in everyday()["styles"] if known(style)][:1]
    templates = _Templates(openings, changed)
    placeholders = {
        "place": places or ["here"],
        "beside": relations or ["and"],
        "alike": nouns.alike,
        "other": nouns.others,
        "second": nouns.others[::-1][:MAX_BESIDE],
        "kind": nouns.kinds,
        "unseen": nouns.unseen,
        "unseen_too": nouns.unseen[::-1],
        "thing": nouns.members,
    }
    before, after = nouns.name_in(source), nouns.name_in(target)
    content = {
        "source": templates.of_thing(before),
        "target": templates.of_thing(after),
        "control": templates.of_others(bool(nouns.alike), bool(nouns.kinds)),
        "held_out": {
            "source": templates.held_out(before),
            "target": templates.held_out(after),
            "control": templates.held_out_others(),
        },
    }
    used = set(re.findall(r"\{(\w+)\}", str(content)))
    return {
        "name": name or re.sub(r"[^a-z0-9]+", "-", f"{source} to {target}".lower())[:100].strip("-"),
        "description": f"Turns {source} into {target}; drafted, edit freely.",
        "placeholders": {key: values for key, values in placeholders.items() if key in used},
        **content,
        "spans": nouns.members or [before],
        **({} if nouns.members or not known(kind_of(source) or "") else unnamed_of(source)),
    }


def unnamed_of(source: str) -> dict[str, list[str]]:
    """Templates of prompts that do not name a thing, under `source_unnamed`; nothing for a thing of no known kind.

    Example:
        >>> unnamed_of("ripe banana")["source_unnamed"][0], unnamed_of("quux")
        ('a fruit {place}', {})
    """
    kind = kind_of(source)
    templates = ("a {} {place}", "a photo of a {} {place}", "a {} {beside} a {other} {place}")
    return {"source_unnamed": [_name(kind, template) for template in templates]} if kind else {}


def kind_of(phrase: str) -> str | None:
    """What a thing is called in general; None where it is in no list.

    Example:
        >>> kind_of("two ripe bananas"), kind_of("fire truck"), kind_of("quux")
        ('fruit', 'vehicle', None)
    """
    return next((kind for kind, things in everyday()["things"].items() if any(_is(phrase, x) for x in things)), None)


def _is(phrase: str, noun: str) -> bool:
    """Whether a phrase ends with a noun, in the singular or the plural."""
    text = f" {phrase.lower()}"
    return any(text.endswith(f" {form}") for form in (noun, f"{noun}s", f"{noun}es"))


def _phrases(source: str, target: str) -> tuple[str, str]:
    """Both phrases without article and further spaces."""
    if not isinstance(source, str) or not isinstance(target, str):
        raise PromptError(f"expected two phrases, found {quote(source)} and {quote(target)}")
    source, target = (" ".join(re.sub(r"^(an?|the)\s+", "", phrase.strip()).split()) for phrase in (source, target))
    if not source or not target:
        raise PromptError("two phrases are needed, what to change and what into: for example banana, blurred banana")
    if source.lower() == target.lower():
        raise PromptError(f"both phrases are {quote(source)}: there is nothing to learn")
    return source, target


class _Nouns:
    """The nouns of a draft.

    Attributes:
        members: where the source is a kind of things ("fruit"), these; else none.
        alike: those most like the thing.
        others: all that are learned from, those alike included.
        unseen: those that are held out.
        kinds: what other things are called in general.
    """

    def __init__(self, source: str, target: str, known: Known, alike: Alike | None, seed: int) -> None:
        by_kind: Mapping[str, list[str]] = everyday()["things"]
        self._kind = next((kind for kind in by_kind if _is(source, kind)), None)
        listed = by_kind[self._kind] if self._kind else []
        self.members = [noun for noun in listed if known(noun) and not _is(target, noun)][:MAX_MEMBERS]
        if len(self.members) < 2:
            self.members, self._kind = [], None
        own = set(listed) if self.members else {noun for noun in chain(*by_kind.values()) if _is(source, noun)}
        free = {kind: [x for x in things if x not in own and not _is(target, x) and known(x)]
                for kind, things in by_kind.items()}  # fmt: skip
        like = list(_most_alike(source, free, alike))[:MAX_ALIKE]
        spread = [noun for noun in chain(*zip_longest(*free.values())) if noun]  # a noun of each kind in turn
        chosen = list(dict.fromkeys([*like, *spread]))[:MAX_NOUNS]
        mixed = random.Random(seed).sample(chosen, len(chosen))
        self.unseen = mixed[: len(mixed) // HELD_OUT]
        self.others = [noun for noun in chosen if noun not in self.unseen]
        self.alike = [noun for noun in like if noun not in self.unseen]
        own_kind = self._kind or kind_of(source)
        self.kinds = [kind for kind, things in free.items() if kind != own_kind and things and known(kind)]

    def name_in(self, phrase: str) -> str:
        """A phrase with a placeholder for the things of the kind that it names."""
        if self._kind is None or not _is(phrase, self._kind):
            return phrase.replace("{", "{{").replace("}", "}}")
        return re.sub(rf"{re.escape(self._kind)}(e?s)?$", "{thing}", phrase, flags=re.IGNORECASE)


def _most_alike(source: str, free: Mapping[str, Sequence[str]], alike: Alike | None) -> Iterable[str]:
    """Nouns, those most like a phrase first: by a model, else those of its kind alone."""
    if alike is None:
        return free.get(kind_of(source) or "", ())
    nouns = list(chain(*free.values()))
    likeness = dict(zip(nouns, alike(source, nouns), strict=True))
    return sorted(nouns, key=lambda noun: -likeness[noun])


class _Templates:
    """The templates of a draft.

    Args:
        openings: what may stand before a scene, "a photo of".
        changed: what targets add, on other things.
    """

    def __init__(self, openings: Sequence[str], changed: Sequence[str]) -> None:
        self.openings, self.changed = openings, changed

    def of_thing(self, phrase: str) -> list[str]:
        """The thing alone, and beside another; of things of a kind beside fewer, as prompts multiply."""
        alone = ["a {} {place}", *(f"{opening} a {{}} {{place}}" for opening in self.openings)]
        beside = ["a {} and a {other} {place}", "a {other} {beside} a {} {place}"]
        texts = [_name(phrase, template) for template in (*alone, *beside)]
        return [text.replace("{other}", "{second}") for text in texts] if "{thing}" in phrase else texts

    def of_others(self, has_alike: bool, has_kinds: bool) -> list[str]:
        """Other things, alone and in pairs, some of them changed as the thing is to be."""
        nouns = ["{other}", *["{alike}"] * has_alike]
        templates = [template for noun in nouns for template in (f"a {noun} {{place}}",
                     f"a {noun} {{beside}} a {{second}} {{place}}")]  # fmt: skip
        templates += [f"{opening} a {{other}} {{place}}" for opening in self.openings]
        templates += ["a {kind} {place}"] * has_kinds
        return [*templates, *(_name(f"{style} {noun}", "a {} {place}") for style in self.changed for noun in nouns)]

    def held_out(self, phrase: str) -> list[str]:
        """The thing beside things that are held out, and alone."""
        beside = [f"a {{}} {relation} a {{unseen}} {{place}}" for relation in ("and", "{beside}")]
        return [_name(phrase, template) for template in (*beside, "a {unseen} and a {} {place}", "a {} {place}")]

    def held_out_others(self) -> list[str]:
        """Things that are held out, alone and in pairs."""
        return ["a {unseen} {place}", "a {unseen} and a {unseen_too} {place}"]


def _name(phrase: str, template: str) -> str:
    """A template with a phrase in place of {}, behind the article that it takes."""
    article = "a" if phrase.startswith("{") else with_article("a", phrase)
    return template.replace("a {}", f"{article} {phrase}")
