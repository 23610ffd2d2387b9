"""Frozen dataclasses of tensors: the base of every probe and every map.

The tensor fields of such a class are its parameters, its fields (or tuples) of further such classes its children, and
the rest plain settings. Saving, stacking over timestep bins, moving to a device and comparing need to know nothing
else, so they are written here once. So is the check of shapes and values: each field says with its type what it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields
from functools import cache
from types import UnionType
from typing import Annotated, Any, ClassVar, NamedTuple, Self, Union, get_args, get_origin, get_type_hints

import torch

from ..errors import quote

#: classes of probes and maps that files may have, by kind
KINDS: dict[str, type[TensorClass]] = {}
#: largest number in a field that declares no other; products of such ones and of activations stay finite in float32
LARGEST = 1e12
#: the same of logits, which are clamped: their slopes are large in dimensions that hardly vary
LARGEST_SLOPE = 1e24
#: by how much a length may differ from 1: float16 rounds
NEAR = 1e-2
#: the dimension of activations, which parts and the parts within them share
WIDTH = "width"


@dataclass(frozen=True)
class Holds:
    """What a field of a `TensorClass` holds, declared with its type: `Annotated[torch.Tensor, Holds("rank width")]`.

    Args:
        shape: names of a tensor's dimensions, "" for a scalar; dimensions of one name are equal in one part, and
            "width" also in the parts within it. None has a size of 0. Numbers have no shape.
        high: largest value.
        low: smallest value; None for -high.
        zero: whether 0 is allowed.
        unit: whether each row has length 1, or is zeros.
    """

    shape: str = ""
    high: float = LARGEST
    low: float | None = None
    zero: bool = True
    unit: bool = False

    def check(self, name: str, value: torch.Tensor | float) -> None:
        """Raise a ValueError where a value is out of bounds, or no number."""
        least = -self.high if self.low is None else self.low
        if isinstance(value, torch.Tensor) and not value.numel():
            raise ValueError(f"{name} is empty, its shape is {list(value.shape)}")
        low, high = map(float, torch.aminmax(value)) if isinstance(value, torch.Tensor) else (value, value)
        if not least <= low <= high <= self.high:  # NaN is neither
            worst = low if not low >= least else high
            raise ValueError(f"{name} must be from {least:g} to {self.high:g}, found {worst:g}")
        if not self.zero and low <= 0 <= high and (low == high or bool((torch.as_tensor(value) == 0).any())):
            raise ValueError(f"{name} must not be 0")
        if self.unit and isinstance(value, torch.Tensor):
            lengths = value.norm(dim=-1)
            if bool(((lengths != 0) & ((lengths - 1).abs() > NEAR)).any()):
                raise ValueError(f"{name} must have length 1, found {float(lengths.max()):g}")


#: a tensor [], one [width], and one [width] of length 1
Scalar = Annotated[torch.Tensor, Holds()]
Vector = Annotated[torch.Tensor, Holds(WIDTH)]
Direction = Annotated[torch.Tensor, Holds(WIDTH, unit=True)]


class TensorClass:
    """Base of probes and maps: a frozen dataclass of tensors, children, tuples of children, and plain settings.

    A subclass is registered under its `kind`, which names it in files, unless it is not `stored` in any. Its fields
    declare what they hold (`Holds`).

    Example:
        >>> from dsas_core.probes import LinearProbe
        >>> probe = LinearProbe(torch.ones(2), torch.tensor(3.0))
        >>> probe.map_tensors(torch.zeros_like).tensors()
        [tensor([0., 0.]), tensor(0.)]
        >>> probe.pack({}, "it")
        {'kind': 'linear', 'weight': {'tensor': 'it.weight'}, 'bias': {'tensor': 'it.bias'}}
    """

    kind: ClassVar[str]

    def __init_subclass__(cls, kind: str | None = None, stored: bool = True, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        if kind is not None:
            cls.kind = kind
            if stored:
                KINDS[kind] = cls

    def tensors(self) -> list[torch.Tensor]:
        """Its tensors and those of its children, in a fixed order."""
        collected: list[torch.Tensor] = []
        self.map_tensors(lambda tensor: collected.append(tensor) or tensor)  # type: ignore[func-returns-value]
        return collected

    def children(self) -> list[TensorClass]:
        """The parts that are its fields, or items of them."""
        found: list[TensorClass] = []
        for name, field in _declared(type(self)).items():
            if field.nests:
                value = getattr(self, name)
                found += [item for item in (value if isinstance(value, tuple) else (value,)) if _is_part(item)]
        return found

    def map_tensors(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """A copy in which every tensor is replaced by `change(tensor)`."""
        return type(self)(**{name: _map_value(getattr(self, name), change) for name in _declared(type(self))})

    def pack(self, tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, Any]:
        """The class as plain JSON data, its tensors apart.

        Args:
            tensors: receives the tensors, by names that begin with `prefix`.
            prefix: begin of these names.
        """
        names = _declared(type(self))
        return {
            "kind": self.kind,
            **{name: _pack_value(getattr(self, name), tensors, f"{prefix}.{name}") for name in names},
        }


# functions of the module: ones that call themselves from inside a method would keep its tensors for the collector


def _map_value(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, TensorClass):
        return value.map_tensors(change)
    return tuple(_map_value(item, change) for item in value) if isinstance(value, tuple) else value


def _pack_value(value: Any, tensors: dict[str, torch.Tensor], name: str) -> Any:
    if isinstance(value, torch.Tensor):
        tensors[name] = value.contiguous()
        return {"tensor": name}
    if isinstance(value, TensorClass):
        return value.pack(tensors, name)
    if isinstance(value, tuple):
        return [_pack_value(item, tensors, f"{name}.{i}") for i, item in enumerate(value)]
    return value


def unpack(spec: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The inverse of `TensorClass.pack`.

    Args:
        spec: the data that `pack` returned, perhaps read from JSON.
        tensors: name -> tensor.

    Raises:
        ValueError: anything that `pack` does not write; shapes and values are checked by `check_parts`.

    Example:
        >>> from dsas_core.maps import AffineMap
        >>> tensors = {}
        >>> spec = AffineMap(torch.ones(2)).pack(tensors, "it")
        >>> unpack(spec, tensors).shift
        tensor([1., 1.])
    """
    if isinstance(spec, dict) and set(spec) == {"tensor"}:
        name = spec["tensor"]
        if not isinstance(name, str) or name not in tensors:
            raise ValueError(f"there is no tensor {quote(name)}")
        return tensors[name]
    if isinstance(spec, dict) and "kind" in spec:
        kind = KINDS.get(spec["kind"]) if isinstance(spec["kind"], str) else None
        if kind is None:
            raise ValueError(f"this version knows no kind {quote(spec['kind'])} of probe or map")
        parts = {name: unpack(value, tensors) for name, value in spec.items() if name != "kind"}
        needed = {field.name for field in fields(kind) if field.default is MISSING}  # type: ignore[arg-type]
        if not needed <= set(parts) <= set(_declared(kind)):
            raise ValueError(f"{kind.kind} has {', '.join(_declared(kind))}, found {quote(', '.join(parts))}")
        part = kind(**parts)
        _check_types(part)
        return part
    if isinstance(spec, list):
        return tuple(unpack(item, tensors) for item in spec)
    if isinstance(spec, str | int | float | bool | None):
        return spec
    raise ValueError(f"unexpected content {type(spec).__name__}")


# ---- what fields hold -----------------------------------------------------------------------------------------------


class _Field(NamedTuple):
    """The type of a field, what it holds, where it declares so, and whether that may be parts."""

    hint: Any
    holds: Holds | None
    nests: bool


def _resolve_fields(kind: Any) -> dict[str, _Field]:
    """The fields of a class, in their order."""
    plain, full = get_type_hints(kind), get_type_hints(kind, include_extras=True)
    found = {}
    for name in (field.name for field in fields(kind)):
        holds = _find_holds(full[name])
        found[name] = _Field(plain[name], holds, holds is None and plain[name] not in (bool, str))
    return found


def _is_part(value: Any) -> bool:
    return isinstance(value, TensorClass)


#: cached, as resolving type hints takes longer than everything else that is done with a class
_declared: Callable[[Any], dict[str, _Field]] = cache(_resolve_fields)


def _find_holds(hint: Any) -> Holds | None:
    if get_origin(hint) is Annotated:
        return next((item for item in hint.__metadata__ if isinstance(item, Holds)), None)
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else ()
    return next(filter(None, map(_find_holds, options)), None)


def _has_type(value: Any, hint: Any) -> bool:
    """Whether a value has the type that a field declares."""
    if hint is torch.Tensor:
        return isinstance(value, torch.Tensor)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and bool(value) and all(_has_type(item, get_args(hint)[0]) for item in value)
    if get_origin(hint) in (Union, UnionType):
        return any(_has_type(value, option) for option in get_args(hint))
    if hint in (float, int):
        return type(value) is int or type(value) is hint
    return isinstance(value, hint)


def _check_types(part: TensorClass) -> None:
    for name, (hint, *_) in _declared(type(part)).items():
        if not _has_type(value := getattr(part, name), hint):
            expected = getattr(hint, "__name__", str(hint)).replace("torch.", "")
            raise ValueError(f"{name} of {part.kind} must be {expected}, found {quote(value)}")


def check_shapes(part: TensorClass, width: int | None = None) -> int | None:
    """Raise a ValueError where tensors have other shapes than their fields declare, or do not agree with one another.

    Args:
        part: a probe, a map, or another part.
        width: of the activations that it is for; None where it is not known.

    Returns:
        The width; None where neither is it known nor has a tensor it.

    Example:
        >>> from dsas_core.maps import AffineMap
        >>> check_shapes(AffineMap(torch.ones(2)))
        2
        >>> check_shapes(AffineMap(torch.ones(2), slope=torch.ones(1)))
        Traceback (most recent call last):
        ValueError: slope of affine has shape [1], expected [width] with width 2
    """
    sizes = {} if width is None else {WIDTH: width}
    for name, (_, holds, _) in _declared(type(part)).items():
        value = getattr(part, name)
        if isinstance(value, torch.Tensor) and holds is not None:
            names = holds.shape.split()
            if len(names) != value.ndim or any(
                not size or sizes.setdefault(dim, size) != size for dim, size in zip(names, value.shape, strict=True)
            ):
                known = ", ".join(f"{dim} {sizes[dim]}" for dim in names if dim in sizes)
                raise ValueError(
                    f"{name} of {_kind_of(part)} has shape {list(value.shape)}, expected [{', '.join(names)}]"
                    + (f" with {known}" if known else "")
                )
    for child in part.children():
        if (found := check_shapes(child, sizes.get(WIDTH))) is not None:
            sizes[WIDTH] = found
    return sizes.get(WIDTH)


def check_values(part: TensorClass) -> None:
    """Raise a ValueError where a part, or one within it, is of no kind that files have, or holds what it must not."""
    if KINDS.get(_kind_of(part)) is not type(part):
        raise ValueError(f"{type(part).__name__} is of no kind that files have")
    _check_types(part)
    for name, (_, holds, _) in _declared(type(part)).items():
        value = getattr(part, name)
        if holds is not None and value is not None:
            holds.check(f"{name} of {part.kind}", value)
    for child in part.children():
        check_values(child)


def undeclared_fields(kind: type[TensorClass]) -> list[str]:
    """Fields with tensors or numbers of which a class does not declare what they hold.

    Example:
        >>> from dsas_core.maps import AffineMap
        >>> undeclared_fields(AffineMap)
        []
    """
    numeric = (torch.Tensor, float, int)
    return [
        name
        for name, (hint, holds, _) in _declared(kind).items()
        if holds is None and any(option in numeric for option in (hint, *get_args(hint)))
    ]


def same_structure(parts: Iterable[TensorClass]) -> bool:
    """Whether parts are alike but for the values of their tensors.

    Example:
        >>> from dsas_core.probes import ConstantProbe
        >>> on, off = ConstantProbe(1.0), ConstantProbe(0.0)
        >>> same_structure([on, ConstantProbe(1.0)]), same_structure([on, off])
        (True, False)
    """
    first, *others = {id(part): part for part in parts}.values()
    return all(_structure(part) == _structure(first) for part in others)


def _structure(value: Any) -> Any:
    """A value of a field, or a part, with shapes in the place of tensors."""
    if isinstance(value, TensorClass):
        return type(value), [_structure(getattr(value, name)) for name in _declared(type(value))]
    if isinstance(value, tuple):
        return [_structure(item) for item in value]
    return value.shape if isinstance(value, torch.Tensor) else value


def _kind_of(part: TensorClass) -> str:
    return getattr(part, "kind", type(part).__name__)


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype that gates and maps compute in: that of the input, but at least float32.

    Example:
        >>> compute_dtype(torch.zeros(1, dtype=torch.bfloat16))
        torch.float32
    """
    return torch.promote_types(x.dtype, torch.float32)


def cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`tensor.to(dtype)` for the hot path, where `to` takes as long as a product even if there is nothing to convert.

    Example:
        >>> tensor = torch.zeros(1)
        >>> cast(tensor, torch.float32) is tensor
        True
    """
    return tensor if tensor.dtype == dtype else tensor.to(dtype)
