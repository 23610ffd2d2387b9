"""Models that are given to torch.compile: whether hooks that come later count."""

from __future__ import annotations

import sys

from torch import nn

from ..errors import UnsupportedError


def is_compiled(root: nn.Module) -> bool:
    """Whether a module, or one inside it, was given to torch.compile.

    Example:
        >>> is_compiled(nn.Identity())
        False
    """
    return any(hasattr(part, "_orig_mod") or part._compiled_call_impl is not None for part in root.modules())


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
