"""Hints on prompts before anything is learned from them: what makes a gate fire too often, or a map go astray.

They look at words alone, so they are cheap, and may be wrong: they are advice, not errors.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from .draft import everyday
from .prompt_set import MINIMUM, SIDES

#: warn where one of source and target has more than this many times the prompts of the other
MAX_RATIO = 2.0
#: words that CLIP's text encoders read of a prompt, about; what comes after is cut off
MAX_WORDS = 55
#: share of the target prompts in which a word must be to be what they add
ADDED = 0.5


def hints(prompts: Mapping[str, Sequence[str]], pictures: bool = True) -> list[str]:
    """Say what could be better about prompts.

    Args:
        prompts: by side, "source", "target" and "control": texts without placeholders.
        pictures: whether a text encoder of CLIP may read them, which takes only so many words.

    Returns:
        One sentence for each hint; [] where there is none.

    Example:
        >>> fruits = [f"a banana {place}" for place in "abcdefgh"]
        >>> hints({"source": fruits, "target": [f"blurred {text}" for text in fruits], "control": ["a blurred banana"]})
        ['Too few: control has 1 prompt, 7 more needed.']
    """
    sides = {side: [" ".join(text.split()) for text in prompts.get(side, ()) if text.strip()] for side in SIDES}
    tips = [*_counts(sides), *_doubles(sides), *(_lengths(sides) if pictures else [])]
    if all(sides.values()):
        tips += _hard_negatives(sides)
    return tips


def _counts(sides: Mapping[str, Sequence[str]]) -> list[str]:
    counts = {side: len(set(texts)) for side, texts in sides.items()}
    tips = [
        f"Too few: {side} has {_many(count)}, {MINIMUM - count} more needed."
        for side, count in counts.items()
        if count < MINIMUM
    ]
    source, target = counts["source"], counts["target"]
    if min(source, target) and max(source, target) > MAX_RATIO * min(source, target):
        tips.append(
            f"One-sided: {_many(source)} of source, {_many(target)} of target. With as many of both, line by line "
            "about the same scene, only what is to change differs."
        )
    return tips


def _doubles(sides: Mapping[str, Sequence[str]]) -> list[str]:
    tips = []
    lowered = {side: {text.lower(): text for text in texts} for side, texts in sides.items()}
    if lowered["source"] and lowered["source"].keys() == lowered["target"].keys():
        return ["Source and target are the same prompts: there is nothing to learn."]
    # what targets show may well be a control: cats must stay cats
    for first, second in (("source", "target"), ("source", "control")):
        both = [text for key, text in lowered[first].items() if key in lowered[second]]
        if both:
            more = f" and {len(both) - 1} more are" if len(both) > 1 else " is"
            tips.append(f"“{both[0]}”{more} on both sides, {first} and {second}: leave it on one.")
    for side, texts in sides.items():
        repeated = len(texts) - len(lowered[side])
        if repeated:
            tips.append(f"{side.capitalize()} says the same twice ({repeated} of {_many(len(texts))}): it counts once.")
    return tips


def _lengths(sides: Mapping[str, Sequence[str]]) -> list[str]:
    longest = max((text for texts in sides.values() for text in texts), key=lambda text: len(text.split()), default="")
    count = len(longest.split())
    if count <= MAX_WORDS:
        return []
    return [
        f"Long: “{longest[:40]}…” has {count} words; many text encoders cut off what comes after about {MAX_WORDS}."
    ]


def _hard_negatives(sides: Mapping[str, Sequence[str]]) -> list[str]:
    """Controls must look like sources, but for the thing; and show what targets add, but on something else."""
    words = {side: [_words(text) for text in texts] for side, texts in sides.items()}
    known = {side: set().union(*texts) for side, texts in words.items()}
    tips = []
    if known["source"] and not known["source"] & known["control"]:
        tips.append(
            f"No hard negatives: no control shares a word with a source. Add some like “{sides['source'][0]}” "
            "without the thing, so that the gate learns the thing and not its surroundings."
        )
    often = Counter(word for text in words["target"] for word in text)
    added = [word for word, n in often.items() if n > ADDED * len(words["target"]) and word not in known["source"]]
    replaced = sum(bool(text - known["target"]) for text in words["source"]) > ADDED * len(words["source"])
    if added and not replaced and not known["control"] & set(added):
        phrase = " ".join(word for word in _split(sides["target"][0]) if word in added) or added[0]
        tips.append(
            f"No hard negatives: no control shows “{phrase}” on something else. Add some that do, so that the gate "
            "learns the thing and not the change."
        )
    return tips


def _split(text: str) -> list[str]:
    return re.findall(r"\w+(?:['’-]\w+)*", text.lower())


def _words(text: str) -> set[str]:
    """The words of a text that say something."""
    return set(_split(text)) - set(everyday()["common_words"].split())


def _many(count: int) -> str:
    return f"{count} prompt{'' if count == 1 else 's'}"
