"""How people write to the help desk and how it answers (`tones.yaml`), and the lexicon of rude words."""

from __future__ import annotations

import re

from .sampling import read_corpus

TONES = read_corpus("tones")
#: words for the placeholders {insult} and {bad}
INSULTS = {"insult": TONES["insults"], "bad": TONES["bad"]}
RUDE_WORDS = frozenset({*TONES["insults"], *(f"{word}s" for word in TONES["insults"]), *TONES["bad"]})

#: manner of a message -> its phrases: what is before the bar goes before the problem, what is behind it after it
MANNERS: dict[str, tuple[str, ...]] = {
    **TONES["manners"],
    "angry": (*TONES["taunts"], *TONES["manners"]["angry"]),
}


def is_rude(text: str) -> bool:
    """Whether a text has a word of the lexicon. Meant for answers: a description may mention a clown.

    Args:
        text: in any letter case.

    Example:
        >>> is_rude("Listen, you fool."), is_rude("foolish")
        (True, False)
    """
    return not RUDE_WORDS.isdisjoint(re.findall("[a-z]+", text.lower()))
