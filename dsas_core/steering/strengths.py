"""Strengths of concepts: numbers that the user sets, or `Auto`, which solves for the strength at each position."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ..concept.concept import Concept
from ..errors import DSASError, UnsupportedError, did_you_mean, quote
from ..model.sites import Roots
from ..utils.numbers import KINDS, accepts, number, python_number, read_number

AUTO = "auto"


@dataclass(frozen=True)
class Auto:
    """A strength without tuning: at each position, the smallest that brings the probe's probability down to `target`.

    It is solved for in closed form (`solve.solve_strength`), for concepts whose probe has a hyperplane and whose map is
    linear in its strength. It steers away from the concept only: where the probability is lower, nothing changes.

    Args:
        target: a probability; 1/2 is the probe's decision boundary. The model's behaviour may change at another value:
            lower it (0.001) where too little changes.
        cap: the highest strength, in units of the concept. The unit is the smallest strength with the full effect while
            learning, and `dsas eval` measures at most 2 of them.

    Raises:
        DSASError: a target that is not between 0 and 1, or a cap that is not above 0 and finite.

    Example:
        >>> Auto(0.2).cap, Auto(0.5).logit
        (2.0, 0.0)
    """

    target: float = 0.5
    cap: float = 2.0

    def __post_init__(self) -> None:
        if not accepts("share", self.target) or self.target in (0, 1):
            raise DSASError(f"strength auto: the target is a probability between 0 and 1, found {quote(self.target)}")
        if not accepts("cap", self.cap) or self.cap == 0:
            raise DSASError(
                f"strength auto: the cap is a finite number of units above 0, found {quote(self.cap)} ({KINDS['cap']})"
            )
        for name, kind in (("target", "share"), ("cap", "cap")):
            object.__setattr__(self, name, number(kind, getattr(self, name)))

    def __str__(self) -> str:
        return f"{AUTO}:{self.target:g}"

    @property
    def logit(self) -> float:
        """The target as a logit."""
        return math.log(self.target / (1 - self.target))


#: strength over the timestep: float [] in 0 … 1000 -> a factor []
Schedule = Callable[[torch.Tensor], torch.Tensor]
#: one number, one per prompt, or "auto" (for `Auto()`)
Strength = float | Sequence[float] | Auto | Literal["auto"]
#: concepts, or their folders, Hub names or builtin:NAME, each with its strength
Strengthened = Mapping[Concept, Strength] | Mapping[str, Strength] | Mapping[Concept | str | Path, Strength]


class Strengths(MutableMapping[str, "float | list[float] | Auto"]):
    """Strengths by concept name: a number, a list with one number per prompt, or `Auto`. Set them at any time.

    A number beyond the range of its concept warns, once for each end.

    Args:
        obstacles: concept name -> why its strength cannot be "auto"; None where it can.
        ranges: concept name -> lowest and highest useful strength; None, or no entry, where they are unknown.

    Attributes:
        ended: whether the steering that these are of was detached.
        changes: how often strengths were set.

    Raises:
        DSASError: on access to a concept that is not attached; on setting a strength that is not finite, or one of a
            steering that has ended.
        UnsupportedError: on setting "auto" for a concept that does not support it.

    Example:
        >>> strengths = Strengths({"blur": None})
        >>> strengths["blur"] = [0.5, 1.0]
        >>> strengths
        Strengths({'blur': [0.5, 1.0]})
    """

    def __init__(
        self, obstacles: Mapping[str, str | None], ranges: Mapping[str, tuple[float, float] | None] | None = None
    ) -> None:
        self._obstacles, self._ranges = obstacles, ranges or {}
        self._warned: set[tuple[str, bool]] = set()  # of the ends that the user has been warned of
        self.ended, self.changes = False, 0
        self._values = {name: torch.zeros(1) for name in obstacles}
        self._autos: dict[str, Auto] = {}

    def __getitem__(self, name: str) -> float | list[float] | Auto:
        values = self.values_of(name).tolist()
        return self._autos.get(name, values[0] if len(values) == 1 else values)

    def __setitem__(self, name: str, value: Strength) -> None:
        self.set_all({name: value})

    def set_all(self, strengths: Mapping[str, Strength]) -> None:
        """Set several strengths, all of them or, where one is refused, none."""
        if not isinstance(strengths, Mapping):
            raise DSASError(f"strengths: expected {{name: strength}}, found {quote(strengths)}")
        if self.ended:
            raise DSASError(
                "this steering has ended, so its strengths change nothing: attach it again (with steering: …), and set "
                "them then"
            )
        read = {name: self._read(name, value) for name, value in strengths.items()}
        self.changes += 1
        for name, (values, auto) in read.items():
            self._values[name] = values
            self._autos.pop(name, None)
            if auto is not None:
                self._autos[name] = auto
            else:
                self._warn_beyond_range(name, values.tolist())

    def _read(self, name: str, value: Strength) -> tuple[torch.Tensor, Auto | None]:
        """A strength as a tensor, and as the `Auto` that it may be."""
        self.values_of(name)
        if isinstance(value, Auto) or (isinstance(value, str) and value == AUTO):
            obstacle = self._obstacles[name]
            if obstacle is not None:
                raise UnsupportedError(f"concept {name!r} cannot take the strength auto: {obstacle}")
            return torch.ones(1), value if isinstance(value, Auto) else Auto()
        several: Any = value if isinstance(value, Sequence) or getattr(value, "ndim", 0) == 1 else [value]
        if (
            isinstance(value, str | bytes | bytearray)
            or not len(several)
            or not all(accepts("strength", item) for item in several)
        ):
            raise DSASError(
                f"strength of {quote(name)}: expected a finite number, or one per prompt, or {AUTO!r}; found "
                f"{quote(value)} ({KINDS['strength']})"
            )
        return torch.tensor([python_number(item) for item in several], dtype=torch.float32), None

    def _warn_beyond_range(self, name: str, values: Sequence[float]) -> None:
        for value, is_high in ((min(values), False), (max(values), True)):
            ends = self._ranges.get(name)
            if (name, is_high) not in self._warned and is_beyond(value, ends) and (value > 0) == is_high:
                self._warned.add((name, is_high))
                warn_beyond_range(name, value, ends)

    def __delitem__(self, name: str) -> None:
        raise DSASError("a strength cannot be removed; set it to 0")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({dict(self)})"

    def values_of(self, name: str) -> torch.Tensor:
        """A concept's strengths, float32 [1] or [prompts]; 1 for `Auto`."""
        if name not in self._values:
            raise DSASError(
                f"no concept {quote(name)} is attached; there is {', '.join(self._values)}"
                f"{did_you_mean(name, self._values)}"
            )
        return self._values[name]

    def auto_of(self, name: str) -> Auto | None:
        """The `Auto` of a concept; None where its strength is a number."""
        return self._autos.get(name)


def read_strength(text: str) -> float | Auto:
    """The strength that a text spells: a number, `auto`, or `auto:P` with a probability as its target.

    Raises:
        DSASError: anything else, or a number out of bounds.

    Example:
        >>> read_strength("-0.5"), str(read_strength("auto:0.2"))
        (-0.5, 'auto:0.2')
    """
    kind, colon, target = text.partition(":")
    if kind == AUTO:
        return Auto(read_number("factor", target, f"strength {AUTO}")) if colon else Auto()
    try:
        strength: float = read_number("strength", text)
    except DSASError as error:
        raise DSASError(f"{error}; or {AUTO}, or {AUTO}:P") from None
    return strength


def as_strength(value: Any, name: str = "strength") -> float | Auto:
    """A strength as a number, `Auto`, or a text that spells one.

    Args:
        value: of the user.
        name: what messages call it.

    Raises:
        DSASError: anything else, or a number out of bounds.

    Example:
        >>> as_strength("-0.5"), as_strength(1), as_strength("auto") == Auto()
        (-0.5, 1.0, True)
    """
    if isinstance(value, Auto):
        return value
    strength: float | Auto = read_strength(value) if isinstance(value, str) else number("strength", value, name)
    return strength


def is_beyond(strength: float, ends: tuple[float, float] | None) -> bool:
    """Whether a strength is beyond the range of its concept; never where that is unknown.

    Example:
        >>> is_beyond(2.0, (-1.0, 1.5)), is_beyond(1.5, (-1.0, 1.5)), is_beyond(9.0, None)
        (True, False, False)
    """
    rounding = 1e-6 * abs(strength)  # of float32
    return ends is not None and not ends[0] - rounding <= strength <= ends[1] + rounding


def warn_beyond_range(name: str, strength: float, ends: tuple[float, float] | None) -> None:
    """Warn of a strength that is beyond the range of a concept: the rule for Python and the command line."""
    if ends is not None and is_beyond(strength, ends):
        # with the stack level of this line, whoever calls, so that Python's default filter shows it once
        warnings.warn(
            f"strength {strength:g} of {name!r} is beyond its range, {ends[0]:g} to {ends[1]:g}: results may fall "
            "apart, or no longer change",
            stacklevel=1,
        )


def load_concepts(
    concepts: Strengthened, roots: Roots | None = None, *, force: bool = False
) -> dict[Concept, Strength]:
    """Load the concepts that are given by name, and check that all fit the model.

    Args:
        concepts: concept, or its folder, Hub name or builtin:NAME -> strength.
        roots: root modules of the model by name; None checks nothing.
        force: accept concepts that were learned on another architecture.

    Returns:
        Concept -> strength, in the same order.

    Raises:
        DSASError: no concept, or one concept twice.
        ArtifactError: a damaged concept.
        UnavailableError: a concept that does not exist.
        ModelMismatchError: a concept that does not fit the model.

    Example:
        >>> load_concepts({"builtin:banana-blur": 0.5})  # doctest: +ELLIPSIS
        {Concept('banana-blur', ...): 0.5}
    """
    if not isinstance(concepts, Mapping) or not concepts:
        raise DSASError(f"concepts: expected {{concept: strength}}, found {concepts!r}")
    loaded = {
        concept if isinstance(concept, Concept) else Concept.from_pretrained(concept): strength
        for concept, strength in concepts.items()
    }
    if len(loaded) < len(concepts):
        raise DSASError("one concept is given twice: give it one strength")
    if roots is not None:
        for concept in loaded:
            concept.check(roots, force=force)
    return loaded
