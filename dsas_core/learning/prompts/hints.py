"""Hints on prompts before anything is learned from them: what makes a gate fire too often, or a map go astray.

They look at words alone, so they are cheap, and may be wrong: nobody has to follow them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from .prompt_set import MINIMUM, SIDES

#: a side that is so many times as long as the other makes a concept of one side
UNEQUAL = 2.0
#: words that CLIP's text encoders read of a prompt, about; what comes after is cut off
READ = 55
#: of the target prompts, the share in which a word must be to be what they add
ADDED = 0.5
#: words that every prompt may have
_COMMON = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at by for from he her his i in into is it its next no not of off on one or our over photo "
        "picture she that the their them there they this to two under up was we with without you your",
    )
)


def hints(prompts: Mapping[str, Sequence[str]]) -> list[str]:
    """What could be better about prompts, a sentence each; [] where nothing meets the eye.

    Args:
        prompts: by side, "source", "target" and "control": texts without placeholders.
    """
    sides = {side: [" ".join(text.split()) for text in prompts.get(side, ()) if text.strip()] for side in SIDES}
    tips = [*_counts(sides), *_doubles(sides), *_lengths(sides)]
    if all(sides.values()):
        tips += _hard_negatives(sides)
    return tips


def _counts(sides: Mapping[str, Sequence[str]]) -> list[str]:
    tips = []
    for side, texts in sides.items():
        count = len(set(texts))
        if count < MINIMUM:
            tips.append(f"Too few: {side} has {_many(count)}, {MINIMUM - count} more needed.")
    source, target = len(set(sides["source"])), len(set(sides["target"]))
    if min(source, target) and max(source, target) > UNEQUAL * min(source, target):
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
    if count <= READ:
        return []
    return [f"Long: “{longest[:40]}…” has {count} words; many text encoders cut off what comes after about {READ}."]


def _hard_negatives(sides: Mapping[str, Sequence[str]]) -> list[str]:
    """Controls must look like sources, but for the thing; and show what targets add, but on something else."""
    words = {side: [_words(text) for text in texts] for side, texts in sides.items()}
    known = {side: set().union(*found) for side, found in words.items()}
    tips = []
    if known["source"] and not known["source"] & known["control"]:
        tips.append(
            f"No hard negatives: no control shares a word with a source. Add some like “{sides['source'][0]}” "
            "without the thing, so that the gate learns the thing and not its surroundings."
        )
    often = Counter(word for found in words["target"] for word in found)
    added = [word for word, n in often.items() if n > ADDED * len(words["target"]) and word not in known["source"]]
    replaced = sum(bool(found - known["target"]) for found in words["source"]) > ADDED * len(words["source"])
    if added and not replaced and not known["control"] & set(added):
        shown = " ".join(word for word in _in_order(sides["target"][0]) if word in added) or added[0]
        tips.append(
            f"No hard negatives: no control shows “{shown}” on something else. Add some that do, so that the gate "
            "learns the thing and not the change."
        )
    return tips


def _in_order(text: str) -> list[str]:
    return re.findall(r"\w+(?:['’-]\w+)*", text.lower())


def _words(text: str) -> set[str]:
    return set(_in_order(text)) - _COMMON


def _many(count: int) -> str:
    return f"{count} prompt{'' if count == 1 else 's'}"
