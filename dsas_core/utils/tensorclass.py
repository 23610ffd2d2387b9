"""Frozen dataclasses of tensors: the base of every probe and every map.

The tensor fields of such a class are its parameters, its fields (or tuples) of further such classes its children, and
the rest plain settings. Saving, stacking over timestep bins, moving to a device and comparing need to know nothing
else, so they are written here once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import cache
from types import UnionType
from typing import Any, ClassVar, Self, Union, get_args, get_origin, get_type_hints

import torch

_KINDS: dict[str, type[TensorClass]] = {}


class TensorClass:
    """Base of probes and maps: a frozen dataclass of tensors, children, tuples of children, and plain settings.

    A subclass is registered under its `kind`, which names it in files.

    Example:
        >>> from dsas_core.probes import LinearProbe
        >>> probe = LinearProbe(torch.ones(2), torch.tensor(3.0))
        >>> probe.map_tensors(torch.zeros_like).tensors()
        [tensor([0., 0.]), tensor(0.)]
        >>> probe.pack({}, "it")
        {'kind': 'linear', 'weight': {'tensor': 'it.weight'}, 'bias': {'tensor': 'it.bias'}}
    """

    kind: ClassVar[str]

    def __init_subclass__(cls, kind: str | None = None, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        if kind is not None:
            cls.kind = kind
            _KINDS[kind] = cls

    def tensors(self) -> list[torch.Tensor]:
        """Its tensors and those of its children, in a fixed order."""
        collected: list[torch.Tensor] = []
        self.map_tensors(lambda tensor: collected.append(tensor) or tensor)  # type: ignore[func-returns-value]
        return collected

    def map_tensors(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """A copy in which every tensor is replaced by `change(tensor)`."""
        return type(self)(**{name: _map_value(getattr(self, name), change) for name in _field_types(type(self))})

    def pack(self, tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, Any]:
        """The class as plain JSON data, its tensors apart.

        Args:
            tensors: receives the tensors, by names that begin with `prefix`.
            prefix: begin of these names.
        """
        names = _field_types(type(self))
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
        KeyError: an unknown tensor or kind.
        TypeError: fields that the kind does not have.
        ValueError: anything else that `pack` does not write.

    Example:
        >>> from dsas_core.maps import AffineMap
        >>> tensors = {}
        >>> spec = AffineMap(torch.ones(2)).pack(tensors, "it")
        >>> unpack(spec, tensors).shift
        tensor([1., 1.])
    """
    if isinstance(spec, dict) and set(spec) == {"tensor"}:
        return tensors[spec["tensor"]]
    if isinstance(spec, dict) and "kind" in spec:
        kind = _KINDS[spec["kind"]]
        part = kind(**{name: unpack(value, tensors) for name, value in spec.items() if name != "kind"})
        for name, hint in _field_types(kind).items():
            if not _has_type(getattr(part, name), hint):
                raise ValueError(f"{name} of {kind.kind} must be {hint}")
        return part
    if isinstance(spec, list):
        return tuple(unpack(item, tensors) for item in spec)
    if isinstance(spec, str | int | float | bool | None):
        return spec
    raise ValueError(f"unexpected content {type(spec).__name__}")


def _resolve_field_types(kind: Any) -> dict[str, Any]:
    """The fields of a class, in their order, and their types."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


#: cached, as resolving type hints takes longer than everything else that is done with a class
_field_types: Callable[[Any], dict[str, Any]] = cache(_resolve_field_types)


def _has_type(value: Any, hint: Any) -> bool:
    """Whether a value has the type that a field declares."""
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_has_type(item, get_args(hint)[0]) for item in value)
    if get_origin(hint) in (Union, UnionType):
        return any(_has_type(value, option) for option in get_args(hint))
    return isinstance(value, (int, float) if hint is float else hint)


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
