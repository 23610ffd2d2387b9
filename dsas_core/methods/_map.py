"""What every map method has: `fit` with checked rows and options, and traits that say what it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..errors import DSASError
from ..maps import Map
from ._rows import checked


@dataclass(frozen=True)
class Option:
    """A keyword of `fit`: its default, the values it takes, in words, and the test of a value."""

    default: Any
    takes: str
    fits: Callable[[Any], bool]


def one_of(*values: str | None) -> Option:
    """One of a few values; the first is the default. None is written null, as in YAML."""
    words = ["null" if value is None else value for value in values]
    return Option(values[0], f"{', '.join(words[:-1])} or {words[-1]}", lambda value: value in values)


class MapMethod:
    """Base of every map method: a subclass has a `line`, perhaps `options`, and `_fit`.

    Traits: `least` rows are needed of each side; with `pairs`, row i of the target belongs to row i of the source;
    `signed` says that a negative strength is the change in the opposite direction. Without it a negative strength is
    allowed as well, and goes on along the line through x and T(x) behind x, which the method's authors do not do.
    With `of_gate` the map is made of what the method's own gate was fitted to, also where another one is worn. `keep`
    is how many sites are steered, None for all. `scaled` is False where a strength of 1 is the method's own, so that
    `learn` has no unit to choose.
    """

    line: ClassVar[str]
    options: ClassVar[Mapping[str, Option]] = {}
    least: ClassVar[int] = 1
    pairs: ClassVar[bool] = False
    signed: ClassVar[bool] = True
    of_gate: ClassVar[bool] = False
    keep: ClassVar[int | None] = None
    scaled: ClassVar[bool] = True

    def own_gate(self, **options: Any) -> str:
        """The name of the gate that is worn where none is chosen: the method's own, or "dsas"."""
        return "dsas"

    def of(self, probe: Any) -> Map:
        """The map of a probe that the method's own gate was fitted to, for methods with `of_gate`."""
        raise NotImplementedError

    def fit(self, source: torch.Tensor, target: torch.Tensor, **options: Any) -> Map:
        """The map from source rows to target rows, [n, width] and [m, width].

        Computed in float64; the map's tensors have the dtype of the source.

        Raises:
            DSASError: rows that are too few, not finite, not of one width, or no pairs where pairs are needed; an
                option that there is not, or a value that it does not take.
        """
        chosen = with_defaults(self, options)
        rows = {"source": checked("source", source), "target": checked("target", target, source.shape[-1])}
        name = type(self).__name__
        for side, found in rows.items():
            if len(found) < self.least:
                raise DSASError(f"{side}: {name} needs at least {self.least} rows, found {len(found)}")
        if self.pairs and len(source) != len(target):
            raise DSASError(
                f"{name} is fitted on pairs, so it needs as many target rows as source rows, found {len(target)} and "
                f"{len(source)}: write the prompts as pairs, or choose a method without pairs (caa)"
            )
        return self._fit(*rows.values(), **chosen).map_tensors(lambda tensor: tensor.to(source.dtype))

    def _fit(self, *rows: Any, **options: Any) -> Map:
        """The map of checked float64 rows of source and target."""
        raise NotImplementedError


def with_defaults(method: object, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a method: those given, and the defaults of the others.

    Raises:
        DSASError: an option that there is not, or a value that it does not take.
    """
    options: Mapping[str, Option] = getattr(method, "options", {})
    name = type(method).__name__
    for key, value in given.items():
        if key not in options:
            known = "; ".join(f"{own} ({option.takes})" for own, option in options.items())
            raise DSASError(f"{name} has no option {key!r}; it has {known or 'none'}")
        if not options[key].fits(value):
            raise DSASError(f"{name} option {key}: expected {options[key].takes}, found {value!r}")
    return {key: given.get(key, option.default) for key, option in options.items()}
