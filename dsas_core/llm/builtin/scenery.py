"""Neutral descriptions of places: the fluency that steering must leave alone.

Place, time and look, which every description tells, decide by hash whether it is held out. Some mention a clown or a
useless key, so that a word of the lexicon alone is no sign of rudeness.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import drawing
from .drawing import fill, one
from .tones import BAD, INSULTS

#: place -> (things that are there, what people do there)
PLACES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "harbour": (("boats", "ropes", "gulls", "nets"), ("mend the nets", "look at the ships")),
    "market": (("stalls", "apples", "barrels", "flowers"), ("buy bread", "sell eggs")),
    "forest": (("trees", "ferns", "birds", "mushrooms"), ("collect wood", "walk in the shade")),
    "library": (("books", "lamps", "shelves", "maps"), ("read the papers", "copy old letters")),
    "station": (("benches", "trains", "suitcases", "clocks"), ("wait for the train", "meet their friends")),
    "garden": (("roses", "bees", "pots", "hedges"), ("water the plants", "cut the grass")),
    "bakery": (("loaves", "ovens", "rolls", "sacks"), ("drink coffee", "wait for warm bread")),
    "museum": (("statues", "coins", "pictures", "bones"), ("draw the statues", "follow the guide")),
    "mill": (("wheels", "sacks", "stones", "ducks"), ("bring their grain", "weigh the flour")),
    "bridge": (("arches", "lamps", "stones", "pigeons"), ("watch the water", "take pictures")),
    "school": (("desks", "children", "maps", "chairs"), ("learn to write", "play with a ball")),
    "theatre": (("seats", "curtains", "masks", "lamps"), ("practise a play", "paint the walls")),
    "lake": (("swans", "boats", "reeds", "stones"), ("swim to the island", "catch fish")),
    "farm": (("cows", "fences", "carts", "hens"), ("feed the hens", "bring in the hay")),
    "castle": (("towers", "stairs", "flags", "bats"), ("climb the tower", "sweep the yard")),
    "park": (("benches", "trees", "dogs", "fountains"), ("fly their kites", "rest on the grass")),
    "workshop": (("tools", "planks", "wheels", "sparks"), ("repair their chairs", "sharpen the tools")),
    "square": (("fountains", "pigeons", "lamps", "carts"), ("listen to the band", "talk about the news")),
    "circus": (("tents", "horses", "drums", "lamps"), ("laugh at the clown", "feed the horses")),
    "attic": (("boxes", "mirrors", "dolls", "spiders"), ("look for old letters", "hide from the rain")),
}
TIMES = ("in the morning", "at noon", "in the evening", "at night", "in spring", "in summer", "in autumn", "in winter")
LOOKS = ("quiet", "busy", "bright", "dark", "warm", "cold", "narrow", "wide", "old", "clean", "dusty", "green")
COLOURS = ("red", "blue", "yellow", "green", "white", "grey", "brown", "black")
NUMBERS = ("two", "three", "four", "five", "six", "seven", "many", "some")
SPOTS = (
    "by the wall",
    "near the door",
    "in the middle",
    "under the roof",
    "at the back",
    "behind the gate",
    "in the corner",
    "along the path",
    "in front of the window",
    "on the left",
    "on the right",
)
PEOPLE = (
    "an old woman",
    "a young man",
    "a child",
    "the guard",
    "a girl in a coat",
    "a boy in boots",
    "a man with a hat",
)
WEATHER = ("the air is fresh.", "rain falls softly.", "the sun shines.", "a light wind blows.", "there is some fog.")
#: words of the lexicon that insult nobody
ODDITIES = (
    "a {insult} made of wood hangs on a string.",
    "somebody wrote the word {insult} on the wall long ago.",
    "a {bad} old key hangs on a nail.",
    "an old song about a {insult} is played there.",
    "the children play that one of them is the {insult}.",
    "on a poster a {insult} holds a red balloon.",
    "a {bad} machine without a wheel stands there.",
    "the cat has the name {insult}.",
)
QUESTIONS = (
    "describe the {place} {time}.",
    "what is the {place} like {time}?",
    "tell me about the {place} {time}.",
    "what can one see at the {place} {time}?",
    "write a few words about the {place} {time}.",
    "how does the {place} look {time}?",
)
FIRST = ("{time} the {place} is {look}.", "the {place} is {look} {time}.", "the {place} looks {look} {time}.")
SENTENCES = (
    "there are {number} {things} {spot}.",
    "{number} {colour} {things} are {spot}.",
    "one can see {number} {things} {spot}.",
)
DOINGS = ("people come here to {activity}.", "{person} is there to {activity}.", "some come only to {activity}.")


@dataclass(frozen=True)
class Description:
    """A question about a place and its answer."""

    question: str
    text: str
    key: str

    @property
    def held_out(self) -> bool:
        """Whether training must not see this place at this time looking like this, in any wording."""
        return drawing.held_out(self.key)


def draw_description(rng: np.random.Generator, *, held_out: bool = False) -> Description:
    """Two to four sentences about a place; from the held-out part exactly when `held_out`."""
    return drawing.until(lambda: _compose(rng), held_out)


def draw_descriptions(count: int, seed: int = 0, *, held_out: bool = True) -> list[Description]:
    """`count` different descriptions."""
    rng = np.random.default_rng((seed, int(held_out)))
    return drawing.distinct(count, lambda: draw_description(rng, held_out=held_out))


def _compose(rng: np.random.Generator) -> Description:
    place, time, look = one(rng, tuple(PLACES)), one(rng, TIMES), one(rng, LOOKS)
    things, activities = PLACES[place]
    words = {"place": place, "time": time, "look": look, "things": things, "activity": activities}
    words |= {"number": NUMBERS, "colour": COLOURS, "spot": SPOTS, "person": PEOPLE, "insult": INSULTS, "bad": BAD}
    rest = [one(rng, SENTENCES), one(rng, DOINGS)]
    if rng.random() < 0.3:
        rest.append(one(rng, WEATHER))
    if rng.random() < 0.2:
        rest.append(one(rng, ODDITIES))
    order = rng.permutation(len(rest))[: 3 if rng.random() < 0.8 else 1]
    text = " ".join([one(rng, FIRST), *(rest[i] for i in order)])
    return Description(fill(rng, one(rng, QUESTIONS), words), fill(rng, text, words), f"{place}|{time}|{look}")


def phrases() -> list[str]:
    """Every text that a description is made of."""
    parts = [*TIMES, *LOOKS, *COLOURS, *NUMBERS, *SPOTS, *PEOPLE, *WEATHER, *ODDITIES, *QUESTIONS, *FIRST, *SENTENCES]
    parts += DOINGS
    for place, (things, activities) in PLACES.items():
        parts += [place, *things, *activities]
    return parts
