"""Frozen dataclasses of tensors. Every probe and every map is one.

The tensor fields of one are its parameters, its part fields (or tuples of parts) its children, the rest plain settings.
That is all that saving, stacking over timestep bins, moving and comparing need to know, so they are written here once.
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
    """Base of probes and maps: a frozen dataclass of tensors, parts, tuples of parts, and plain settings.

    A subclass is registered by its `kind`, which names it in files.

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
        """Every tensor in the part and its children, in a fixed order."""
        collected: list[torch.Tensor] = []

        def collect(tensor: torch.Tensor) -> torch.Tensor:
            collected.append(tensor)
            return tensor

        self.map_tensors(collect)
        return collected

    def map_tensors(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """The same part with every tensor replaced by `change(tensor)`."""

        def mapped(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                return change(value)
            if isinstance(value, TensorClass):
                return value.map_tensors(change)
            if isinstance(value, tuple):
                return tuple(mapped(item) for item in value)
            return value

        return type(self)(**{name: mapped(getattr(self, name)) for name in _hints(type(self))})

    def pack(self, tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, Any]:
        """Put the tensors under names that start with `prefix`; return the rest as plain JSON data."""

        def packed(value: Any, name: str) -> Any:
            if isinstance(value, torch.Tensor):
                tensors[name] = value.contiguous()
                return {"tensor": name}
            if isinstance(value, TensorClass):
                return value.pack(tensors, name)
            if isinstance(value, tuple):
                return [packed(item, f"{name}.{i}") for i, item in enumerate(value)]
            return value

        content = {name: packed(getattr(self, name), f"{prefix}.{name}") for name in _hints(type(self))}
        return {"kind": self.kind, **content}


def unpack(spec: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The inverse of `Part.pack`.

    Args:
        spec: what `pack` returned, perhaps read from JSON.
        tensors: by name.

    Raises:
        KeyError: a tensor or kind that there is not.
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
        content = {name: unpack(value, tensors) for name, value in spec.items() if name != "kind"}
        part = _KINDS[spec["kind"]](**content)
        for name, hint in _hints(type(part)).items():
            if not _fits(getattr(part, name), hint):
                raise ValueError(f"{name} of {part.kind} must be {hint}")
        return part
    if isinstance(spec, list):
        return tuple(unpack(item, tensors) for item in spec)
    if isinstance(spec, str | int | float | bool | None):
        return spec
    raise ValueError(f"unexpected content {type(spec).__name__}")


def _resolved(kind: Any) -> dict[str, Any]:
    """The fields of a part, in their order, and their types."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


#: cached, as to resolve hints takes longer than all else that is done with a part
_hints: Callable[[Any], dict[str, Any]] = cache(_resolved)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type that a field of a part announces."""
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    return isinstance(value, (int, float) if hint is float else hint)


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype that gates and maps compute in: the input's own, and float32 at least.

    Example:
        >>> compute_dtype(torch.zeros(1, dtype=torch.bfloat16))
        torch.float32
    """
    return torch.promote_types(x.dtype, torch.float32)


def cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`tensor.to(dtype)` for the hot path: with nothing to do, that takes as long as a product.

    Example:
        >>> tensor = torch.zeros(1)
        >>> cast(tensor, torch.float32) is tensor
        True
    """
    return tensor if tensor.dtype == dtype else tensor.to(dtype)
