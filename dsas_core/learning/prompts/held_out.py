"""Which prompts nothing is fitted on, and what stands beside the concept in them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from .prompt_set import SIDES, PromptSet, Text, held_out_from


def split_held_out(sides: Mapping[str, Sequence[Text]]) -> tuple[dict[str, Sequence[Text]], dict[str, Sequence[Text]]]:
    """Split the prompts of each side into those to fit on, and the quarter held out for choosing the unit.

    Example:
        >>> split_held_out({"source": "abcdefgh"})
        ({'source': 'abcdef'}, {'source': 'gh'})
    """
    cut = {side: held_out_from(len(texts)) for side, texts in sides.items()}
    fitting = {side: texts[: cut[side]] for side, texts in sides.items()}
    return fitting, {side: texts[cut[side] :] for side, texts in sides.items()}


def neighbours_in(content: PromptSet | None, prompts: Sequence[str]) -> list[str | None]:
    """The other thing in each source prompt that must stay as it is, where templates tell.

    It is the value of a placeholder behind an article that control templates have behind one, too.

    Args:
        content: the prompt file; None where it is not known.
        prompts: source prompts.

    Example:
        >>> others = {"other": ["dog", *(f"toy {n}" for n in range(7))], "place": ["here"]}
        >>> sides = ("a cat and a {other} {place}",), ("a fox and a {other} {place}",), ("a {other} {place}",)
        >>> neighbours_in(PromptSet("it", *sides, placeholders=others), ["a cat and a dog here", "a cat here"])
        ['dog', None]
    """
    if content is None:
        return [None] * len(prompts)
    own = content.held_out or {side: getattr(content, side) for side in SIDES}
    source, control = (
        {name for template in own[side] for name in re.findall(r"\ban? \{(\w+)\}", template)}
        for side in ("source", "control")
    )
    values = {value for name in source & control for value in content.placeholders[name]}
    longest = sorted(values, key=len, reverse=True)
    found = (
        next((value for value in longest if re.search(rf"\b{re.escape(value)}\b", text)), None) for text in prompts
    )
    return list(found)
