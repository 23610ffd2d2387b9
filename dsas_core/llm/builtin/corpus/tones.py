"""How people write to the help desk and how it answers (`tones.yaml`), and the lexicon of rude words."""

from __future__ import annotations

import re

from .sampling import read_corpus

TONES = read_corpus("tones")
#: words for the placeholders {insult} and {bad}
INSULTS = {"insult": TONES["insults"], "bad": TONES["bad"]}
RUDE_WORDS = frozenset({*TONES["insults"], *(f"{word}s" for word in TONES["insults"]), *TONES["bad"]})

#: how a message is put -> the phrases that make it so: before the bar a start, behind it an end
MANNERS: dict[str, tuple[str, ...]] = {
    **TONES["manners"],
    "angry": (*TONES["taunts"], *TONES["manners"]["angry"]),
}


def rude(text: str) -> bool:
    """Whether a word of the lexicon is in a text: made for answers, since a description may mention a clown.

    Example:
        >>> rude("Listen, you fool."), rude("foolish")
        (True, False)
    """
    return not RUDE_WORDS.isdisjoint(re.findall("[a-z]+", text.lower()))
