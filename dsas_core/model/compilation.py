"""Models that are given to torch.compile: whether hooks that come later count."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from torch import nn

from ..errors import UnsupportedError


def is_compiled(root: nn.Module) -> bool:
    """Whether a module, or one inside it, was given to torch.compile.

    Example:
        >>> is_compiled(nn.Identity())
        False
    """
    return any(hasattr(part, "_orig_mod") or part._compiled_call_impl is not None for part in root.modules())


def runs_compiled() -> bool:
    """Whether this is called, however far down, by a function that torch.compile made.

    Example:
        >>> runs_compiled()
        False
    """
    frame = sys._getframe() if "torch._dynamo" in sys.modules else None
    while frame is not None:
        if frame.f_code.co_qualname.startswith("_TorchDynamoContext.__call__."):  # the wrapper around a function
            return True
        frame = frame.f_back
    return False


def ways_to(roots: Mapping[str, nn.Module], wanted: Collection[nn.Module]) -> list[Way]:
    """The steps that lead from roots to some modules, the last ones first.

    Example:
        >>> model = nn.Sequential(nn.Sequential(nn.ReLU()), nn.ReLU())
        >>> [way.name for way in ways_to({"model": model}, [model[0][0]])]
        ['0', '0']
    """
    ids, found = {id(module) for module in wanted}, list[Way]()
    for root in roots.values():
        _collect_ways(root, ids, found, {})
    return found


class Way(NamedTuple):
    """One step: a module, the name of one in it, and that."""

    around: nn.Module
    name: str
    module: nn.Module

    def holds(self) -> bool:
        """Whether the module is still there."""
        return self.around._modules.get(self.name) is self.module


def _collect_ways(module: nn.Module, ids: Collection[int], found: list[Way], known: dict[int, bool]) -> bool:
    """Collect the steps below a module; whether there are any, or it is wanted itself."""
    if id(module) not in known:
        known[id(module)] = id(module) in ids
        for name, part in module._modules.items():
            if part is not None and _collect_ways(part, ids, found, known):
                found.append(Way(module, name, part))
                known[id(module)] = True
    return known[id(module)]


class CompileWatch:
    """Tells whether a call of a root, down to some modules, may be compiled, which can happen at any time.

    Args:
        roots: root modules by name.
        ways: to the modules.

    Example:
        >>> model = nn.Sequential(nn.Identity())
        >>> CompileWatch({"model": model}, ways_to({"model": model}, [model[0]]))()
        False
    """

    def __init__(self, roots: Mapping[str, nn.Module], ways: Sequence[Way]) -> None:
        self._modules = [*roots.values(), *dict.fromkeys(way.module for way in ways)]
        self._ways, self._seen = ways, False

    def __call__(self) -> bool:
        self._seen = (
            self._seen
            or runs_compiled()
            or any(module._compiled_call_impl is not None for module in self._modules)
            or not all(way.holds() for way in self._ways)  # torch.compile may have put another in its place
        )
        return self._seen


def guard_hooks() -> None:
    """Make torch check for hooks before it reuses a compiled graph, in graphs that it compiles from now on.

    By default it does not. A graph that it compiled for another model of the class, or for another block of this model,
    without a hook would then serve modules that have one. The setting stays after all hooks are gone: the graphs with
    hooks must not serve modules without.
    """
    dynamo = sys.modules.get("torch._dynamo")  # importing it takes a second, and without it nothing is compiled
    if dynamo is not None:
        dynamo.config.skip_nnmodule_hook_guards = False


def refuse_compiled(name: str, root: nn.Module) -> None:
    """Refuse a compiled module, unless torch checks for hooks: then it compiles again for those added later."""
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None and dynamo.config.skip_nnmodule_hook_guards and is_compiled(root):
        raise UnsupportedError(
            f"{name} is compiled, and torch ignores hooks that come later: attach first (strength 0 does nothing) "
            "and compile then; strengths move freely afterwards"
        )
