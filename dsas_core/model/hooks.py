"""The one way into a model: `visit(model, sites, visitor)`. No other file registers a hook.

Hooks are torch forward hooks with `prepend=True` on the sites' own modules: they survive processor replacement, QKV
fusion, offload and transformers' own `hidden_states` recorders, and leave no trace on the model when they go.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import nn
from torch._compile import _disable_dynamo

from ..errors import ModelMismatchError, UnsupportedError
from . import sites as site_access
from .sites import Joint, Roots, Site


@dataclass(frozen=True)
class Call:
    """What is known about one call of a root module. Tensors only: a compiled graph must not depend on its values.

    Args:
        steered: float [batch], 1 where a row is to be steered, 0 where it must stay as it is.
        prompts: int64 [batch], the prompt that each row belongs to.
        timestep: float [], 0 (clean) to 1000 (noise), or None where there is no clock.
        mask: float [batch, positions], 1 for positions that count, or None for all.
        prompt: float [batch, positions], 1 for positions that were given and 0 for those that the model wrote, or None
            where nothing is written.
        read: float [batch, positions], as `mask`, but whatever phase is steered: what probes that remember go by. None
            for `mask`.
        joint: how patches and tokens lie in one sequence, where the root attends to both at once. Its numbers are of
            shapes, which a graph depends on as it is.
    """

    steered: torch.Tensor
    prompts: torch.Tensor
    timestep: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    prompt: torch.Tensor | None = None
    read: torch.Tensor | None = None
    joint: Joint | None = None

    def counted(self, site: Site, count: int) -> torch.Tensor | None:
        """Which of the `count` positions at a site count, float [batch, count]; None where all do."""
        if site.stream == "text" and self.joint is not None:
            return self.joint.tokens(count)
        return None if self.mask is None else self.mask[:, slice(*(site.tokens or (None,)))]


class Visitor(Protocol):
    """Whoever reads activations during a forward pass, and may change them."""

    def begin(self, root: str, call: Call) -> None:
        """A root module is about to run. Always eager, also when the module is compiled."""

    def visit(self, site: Site, x: torch.Tensor) -> torch.Tensor | None:
        """An activation [batch, positions, width] at a site; return what goes on, or None to leave it."""


#: makes the Call of a root module from its positional and keyword arguments
Describe = Callable[[tuple[Any, ...], dict[str, Any]], Call]
#: called with the name of a root, and the sites below it that a call of it has not reached
Missed = Callable[[str, list[Site]], object]


class Visit:
    """The hooks that one `visit` placed. A context manager; `detach` removes them and can be called again."""

    def __init__(self, visitor: Visitor) -> None:
        self.visitor = visitor
        self.joint: dict[str, Joint | None] = {}  # by root, of its current call
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._places: dict[Site, nn.Module] = {}
        self._marks: dict[Site, SiteVisits] = {}
        self._by_hand: dict[Site, _SiteHook] = {}

    @property
    def visited(self) -> set[Site]:
        """Sites that have been reached since the beginning, or since `reset`."""
        return {site for site, mark in self._marks.items() if mark.visited}

    def reset(self) -> None:
        """Begin anew with what has been reached."""
        for mark in self._marks.values():
            mark.visited = False

    def replaced(self, model: nn.Module | Roots) -> list[Site]:
        """Sites whose module has been replaced since: a hook stays with the old one, which may be inside the new."""
        known = site_access.modules(_roots(model))
        return [site for site, module in self._places.items() if known.get(site.path) is not module]

    def detach(self) -> None:
        """Remove every hook. Can be called again."""
        while self._handles:
            self._handles.pop().remove()
        self._by_hand.clear()  # each holds this object

    def bring(self, site: Site, value: Any) -> Any:
        """What a module takes or returns at a site, as the visitor leaves it: for sites that were given `by_hand`."""
        changed = self._by_hand[site].change(value)
        return value if changed is None else changed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()


def visit(
    model: nn.Module | Roots,
    sites: Iterable[Site],
    visitor: Visitor,
    describe: Mapping[str, Describe] | None = None,
    *,
    missed: Missed | None = None,
    by_hand: Collection[Site] = (),
) -> Visit:
    """Let a visitor read, and change, the activations at some sites.

    Args:
        model: a module, or root modules by name; the first part of each site's path is a root's name ("model" for
            a bare module).
        sites: where to read.
        visitor: who reads.
        describe: root name -> what makes the Call of a call of that root. A root without an entry is not announced.
        missed: called after each call of a root that was announced with the sites below it that it has not reached, if
            any.
        by_hand: sites that get no hook: somebody else brings their activations, see `Visit.bring`.

    Returns:
        A Visit; use it in a `with` or call its `detach`.

    Raises:
        ModelMismatchError: a site that the model lacks.
        UnsupportedError: a module that is already compiled.

    Example:
        >>> class Doubler:
        ...     def begin(self, root, call): ...
        ...     def visit(self, site, x): return 2 * x
        >>> model = nn.Sequential(nn.Identity())
        >>> with visit(model, [Site("model.0")], Doubler()):
        ...     model(torch.ones(1, 1, 2))
        tensor([[[2., 2.]]])
    """
    roots = _roots(model)
    known = site_access.modules(roots)
    sites = list(sites)
    for site in sites:
        if site.path not in known:
            near = sorted(path for path in known if path.rsplit(".", 1)[-1] == site.path.rsplit(".", 1)[-1])
            raise ModelMismatchError(
                f"no module at {site.path}; this model has {', '.join(near[:8]) or ', '.join(roots)}"
            )
    for name, root in roots.items():
        _refuse_compiled(name, root)
    placed = Visit(visitor)
    placed._places = {site: known[site.path] for site in sites}
    placed._marks = {site: SiteVisits() for site in sites}
    try:
        for name, tell in (describe or {}).items():
            begin = _BeginHook(name, placed, tell)
            placed._handles.append(known[name].register_forward_pre_hook(begin, with_kwargs=True, prepend=True))
            if missed is not None:
                placed._handles.append(known[name].register_forward_hook(_EndHook(begin, missed)))
        for site in sites:
            module, mark = known[site.path], placed._marks[site]
            if site in by_hand:
                placed._by_hand[site] = _SiteHook(site, placed, mark)
            elif site.side == "input":
                handle = module.register_forward_pre_hook(_InputHook(site, placed, mark), prepend=True)
                placed._handles.append(handle)
            else:
                handle = module.register_forward_hook(_OutputHook(site, placed, mark), prepend=True)
                placed._handles.append(handle)
    except BaseException:
        placed.detach()
        raise
    return placed


def visitors(model: nn.Module | Roots) -> list[Visitor]:
    """The visitors of a model's hooks, each once."""
    found: list[Visitor] = []
    for module in site_access.modules(_roots(model)).values():
        for hook in [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]:
            if isinstance(hook, _SiteHook | _BeginHook) and hook.placed.visitor not in found:
                found.append(hook.placed.visitor)
    return found


def _roots(model: nn.Module | Roots) -> Roots:
    return {"model": model} if isinstance(model, nn.Module) else model


def is_compiled(root: nn.Module) -> bool:
    """Whether a module, or one inside it, was given to torch.compile."""
    return any(hasattr(part, "_orig_mod") or part._compiled_call_impl is not None for part in root.modules())


def _guard_hooks() -> None:
    """Have torch look for hooks before a graph serves a module, in graphs that it makes from now on.

    It does not by default. Then what it compiled of another model of the class, or of another block of this one, which
    had no hook, serves those that have one. It stays so when all hooks have gone: those graphs are looked for by hooks.
    """
    dynamo = sys.modules.get("torch._dynamo")  # importing it takes a second, and without it nothing is compiled
    if dynamo is not None:
        dynamo.config.skip_nnmodule_hook_guards = False


def _refuse_compiled(name: str, root: nn.Module) -> None:
    """Where torch heeds hooks, it compiles anew for those that come later."""
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None and dynamo.config.skip_nnmodule_hook_guards and is_compiled(root):
        raise UnsupportedError(
            f"{name} is compiled, and torch ignores hooks that come later: attach first (strength 0 does nothing) "
            "and compile then; strengths move freely afterwards"
        )


class DetachedOnCopy:
    """A hook belongs to one `visit`: a copy of the model, or a pickle, gets one that does nothing."""

    def __deepcopy__(self, memo: dict[int, Any]) -> NoOpHook:
        return NoOpHook()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return NoOpHook, ()


class NoOpHook:
    def __call__(self, *_: Any) -> None:
        return None


class _BeginHook(DetachedOnCopy):
    def __init__(self, name: str, placed: Visit, describe: Describe) -> None:
        self.name, self.placed, self.describe = name, placed, describe
        #: of the sites below this root
        self.marks = {site: mark for site, mark in placed._marks.items() if site.root == name}

    @_disable_dynamo  # torch.compiler.disable, which would import torch._dynamo right here: 1.5 s
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _guard_hooks()
        call = self.describe(args, kwargs)
        self.placed.joint[self.name] = call.joint
        for mark in self.marks.values():
            mark.came = False
        self.placed.visitor.begin(self.name, call)


class _EndHook(DetachedOnCopy):
    def __init__(self, begun: _BeginHook, missed: Missed) -> None:
        self.begun, self.missed = begun, missed

    @_disable_dynamo
    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        missed = [site for site, mark in self.begun.marks.items() if not mark.came]
        if missed:
            self.missed(self.begun.name, missed)


class SiteVisits:
    """Whether an activation has come by a site; compiled graphs set it, too.

    Attributes:
        came: in the current call of the root.
        visited: since the beginning, or since `Visit.reset`.
    """

    def __init__(self) -> None:
        self.came = self.visited = False


class _SiteHook(DetachedOnCopy):
    def __init__(self, site: Site, placed: Visit, mark: SiteVisits) -> None:
        self.site, self.placed, self.mark = site, placed, mark

    def change(self, value: Any) -> Any:
        joint = self.placed.joint.get(self.site.root) if self.site.stream else None
        x = site_access.read_site(value, self.site, joint)
        changed = self.placed.visitor.visit(self.site, x)
        self.mark.came = self.mark.visited = True
        return None if changed is None else site_access.write_site(value, self.site, changed, joint)


class _OutputHook(_SiteHook):
    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        return self.change(output)


class _InputHook(_SiteHook):
    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        return self.change(args)
