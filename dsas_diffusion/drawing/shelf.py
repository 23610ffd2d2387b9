"""The concepts that pictures are steered by: those given for all of them, and those that tags in prompts name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from dsas_core.concept.concept import Concept
from dsas_core.errors import DSASError, quote
from dsas_core.steering.strengths import Auto, as_strength, warn_beyond_range

from .picture_settings import DrawnConcept
from .prompt_tags import parse_prompt

#: a concept, or its folder, Hub name or builtin:NAME
Source = Concept | str | Path


class Shelf:
    """The concepts that pictures need, each read once, by name.

    Args:
        given: each that steers every picture, a concept or its folder, Hub name or builtin:NAME, and its strength.

    Attributes:
        concepts: name -> concept, of all that were read.
        drawn: name -> those given, with their strengths.

    Raises:
        DSASError: no such concept, or two of one name.
    """

    def __init__(self, given: Iterable[tuple[Source, float | Auto | str]] = ()) -> None:
        self.concepts: dict[str, Concept] = {}
        self.drawn: dict[str, DrawnConcept] = {}
        self._names: dict[str, str] = {}  # what a tag may call it -> name
        self._known: dict[str, DrawnConcept] = {}  # name -> the concept at strength 0
        for source, strength in given:
            name = self.read(source)
            if name in self.drawn:
                raise DSASError(f"two concepts are named {name!r}: give one strength to one concept")
            self.drawn[name] = self.describe(name, strength)

    @property
    def given(self) -> tuple[DrawnConcept, ...]:
        """Those that steer every picture."""
        return tuple(self.drawn.values())

    def read(self, source: Source, expected: str | None = None) -> str:
        """Read a concept, unless it is there, and return its name.

        Raises:
            DSASError: no such concept, one of another name than expected, or two of one name.
        """
        path = source.name if isinstance(source, Concept) else str(source)
        if isinstance(source, Concept):
            concept = source
        else:
            concept = self.concepts[self._names[path]] if path in self._names else Concept.from_pretrained(source)
        if expected not in (None, concept.name):
            raise DSASError(
                f"{quote(source)} holds the concept {concept.name!r}, and the picture was drawn by {quote(expected)}: "
                "give the folder of that one with --concept"
            )
        there = self.concepts.setdefault(concept.name, concept)
        if there is not concept and there.digest != concept.digest:
            raise DSASError(
                f"two concepts are named {concept.name!r}: give one of them, which <dsas:{concept.name}> in a prompt "
                "names, or save one under another name"
            )
        if concept.name not in self._known:
            self._known[concept.name] = DrawnConcept(path, concept.name, 0.0, concept.unit, concept.digest)
        self._names |= {concept.name: concept.name, path: concept.name}
        return concept.name

    def read_prompt(self, text: str) -> tuple[str, tuple[DrawnConcept, ...], set[str]]:
        """A prompt without its tags, the concepts that steer it, and the names of those that its tags set.

        They are those given, with the strengths of tags over theirs, and those of further tags.

        Raises:
            DSASError: a tag that is malformed, or names no concept; one concept twice.
        """
        clean, tags = parse_prompt(text, self._names)
        steering = dict(self.drawn)
        tagged: set[str] = set()
        for source, strength in tags.items():
            name = self.read(source)
            if name in tagged:
                raise DSASError(f"the prompt sets the concept {quote(name)} twice: leave one of its tags out")
            tagged.add(name)
            steering[name] = self.describe(name, strength)
        return clean, tuple(steering.values()), tagged

    def describe(self, name: str, strength: float | Auto | str) -> DrawnConcept:
        """A concept that was read, as settings name it; warns of a strength beyond its range.

        Raises:
            DSASError: a strength out of bounds.
        """
        read = as_strength(strength, f"strength of {quote(name)}")
        if not isinstance(read, Auto):
            warn_beyond_range(name, read, self.concepts[name].range)
        return replace(self._known[name], strength=read)
