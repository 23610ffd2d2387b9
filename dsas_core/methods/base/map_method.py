"""The base of every map method: `fit` with checked rows and options, and traits that say what the method needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ...errors import DSASError
from ...maps import Map
from ...probes import Probe
from .checks import check_rows
from .gate_fit import GateRows
from .map_rows import map_rows
from .traits import MapTraits


@dataclass(frozen=True)
class Option:
    """A keyword of `fit`.

    Args:
        default: its value where none is given.
        takes: the values it takes, in words.
        fits: whether a value is one of them.

    Example:
        >>> Option(1.0, "a number above 0", lambda value: value > 0).fits(-1.0)
        False
    """

    default: Any
    takes: str
    fits: Callable[[Any], bool]


def one_of(*values: str | None) -> Option:
    """An option that takes one of a few values; the first is the default. None is written null, as in YAML.

    Example:
        >>> one_of("none", "unit").takes
        'none or unit'
    """
    words = ["null" if value is None else value for value in values]
    return Option(values[0], f"{', '.join(words[:-1])} or {words[-1]}", lambda value: value in values)


class MapMethod:
    """Base of every map method: a subclass has `traits`, perhaps `options`, and `_fit`.

    A negative strength extrapolates the line through x and T(x) beyond x; of maps that are not additive this is ours,
    not their authors'.

    Attributes:
        traits: what `learn` has to know of it.
        options: the keywords of `fit`, by name.

    Example:
        >>> from dsas_core import methods
        >>> methods.mapping("caa").fit(torch.zeros(2, 2), torch.ones(2, 2)).shift
        tensor([1., 1.])
    """

    traits: MapTraits
    options: ClassVar[Mapping[str, Option]] = {}

    def default_gate(self, **options: Any) -> str:
        """The name of the gate where none is chosen, for these options of the method."""
        return self.traits.default_gate

    def from_probe(self, probe: Any) -> Map:
        """The map of a probe that the method's own gate was fitted to, for methods with `MapTraits.from_gate`."""
        raise NotImplementedError

    def obstacle_to_texts(self, options: Mapping[str, Any]) -> str | None:
        """Why a map with these options cannot move texts as they are written, and the way out; None where it can."""
        return None

    def fit(self, source: torch.Tensor, target: torch.Tensor, **options: Any) -> Map:
        """The map from source rows to target rows; computed in float64, returned in the dtype of the source.

        Args:
            source: [n, width].
            target: [m, width].
            options: by name, see `options`.

        Raises:
            DSASError: rows that are too few, not finite or not of one width; an unknown option, or a value that an
                option does not take.
            PromptError: as many rows on both sides are needed, and there are not.
        """
        chosen = with_defaults(self, options)
        rows = check_rows(source=source, target=target)
        self.traits.check_rows(type(self).__name__, *rows)
        return self._fit(*rows, **chosen).map_tensors(lambda tensor: tensor.to(source.dtype))

    def fit_on(self, source: GateRows, target: GateRows, probe: Probe, pooling: str, **options: Any) -> Map:
        """Fit on captured activations of one site and timestep bin; a method that reads other rows overrides this.

        Args:
            source: activations of source prompts.
            target: activations of target prompts.
            probe: the gate of the site, fitted before.
            pooling: which means over positions, "gated", "mean" or "leading", see `map_rows`.
            options: by name, see `options`.
        """
        return self.fit(*map_rows(source, target, probe, pooling), **options)

    def finish(self, trained: Map) -> Map:
        """The map that learning keeps of one that it has trained."""
        return trained

    def _fit(self, *rows: Any, **options: Any) -> Map:
        """The map of checked float64 rows of source and target."""
        raise NotImplementedError


def with_defaults(method: MapMethod, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a method: those given, and the defaults of the others.

    Raises:
        DSASError: an unknown option, or a value that an option does not take.
    """
    options, name = method.options, type(method).__name__
    for key, value in given.items():
        if key not in options:
            known = "; ".join(f"{own} ({option.takes})" for own, option in options.items())
            raise DSASError(f"{name} has no option {key!r}; it has {known or 'none'}")
        if not options[key].fits(value):
            raise DSASError(f"{name} option {key}: expected {options[key].takes}, found {value!r}")
    return {key: given.get(key, option.default) for key, option in options.items()}
