"""The one way into a model: `visit(model, sites, visitor)`. No other file registers a hook.

Torch forward hooks with `prepend=True` on the sites' own modules: they survive processor replacement, QKV fusion,
offload and transformers' own recorders of `hidden_states`, and leave no trace on the model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import nn
from torch._compile import _disable_dynamo

from ..errors import ModelMismatchError, UnsupportedError
from .compilation import Way, guard_hooks, refuse_compiled, ways_to
from .sites import Joint, Roots, Site, modules, modules_and_copies, read_site, write_site
from .wrappers import models_around, parts_of


@dataclass(frozen=True)
class Call:
    """What is known about one call of a root module. Tensors only: a compiled graph must not depend on its values.

    Args:
        steered: float [batch], 1 for rows that are steered, 0 for others.
        prompts: int64 [batch], the number of the prompt that each row belongs to.
        timestep: float [], 0 (clean) to 1000 (noise); None for models without a timestep.
        mask: float [batch, positions], 1 for positions that count; None for all.
        prompt: float [batch, positions], 1 for positions of the prompt, 0 for generated ones; None where none are.
        memory_mask: float [batch, positions], those that states go by, whatever phase is steered; None: `mask`.
        joint: how image patches and text tokens share one sequence; it has shapes only, by which a graph may go.
        first: bool [batch, positions], the first token of each row, which maps may read, but do not steer.
        groups: int64 [batch], one number for the runs of one prompt, see `row_groups`; None for `prompts`.

    Example:
        >>> call = Call(torch.ones(1), torch.arange(1), mask=torch.tensor([[0.0, 1.0, 1.0]]))
        >>> call.position_mask(Site("model.0", tokens=(1, None)), 2)
        tensor([[1., 1.]])
    """

    steered: torch.Tensor
    prompts: torch.Tensor
    timestep: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    prompt: torch.Tensor | None = None
    memory_mask: torch.Tensor | None = None
    joint: Joint | None = None
    first: torch.Tensor | None = None
    groups: torch.Tensor | None = None

    def position_mask(self, site: Site, count: int) -> torch.Tensor | None:
        """Which of the `count` positions at a site count, float [batch, count]; None for all.

        Raises:
            UnsupportedError: the site has another number of positions than the call.
        """
        if site.stream == "text" and self.joint is not None:
            return self.joint.token_mask(count)
        if self.mask is None:
            return None
        mask = self.mask[:, slice(*(site.tokens or (None,)))]
        if mask.shape[1] != count:
            raise UnsupportedError(
                f"{count} positions reach {site}, but {site.root!r} was called with {mask.shape[1]}: the model adds "
                "tokens of its own, or leaves some out, so that it is not known which is which: choose another site"
            )
        return mask

    def check_rows(self, site: Site, count: int) -> None:
        """Raise an UnsupportedError where another number of rows reaches a site than the call has."""
        if count != len(self.steered):
            raise UnsupportedError(
                f"{count} rows reach {site}, but {site.root!r} was called with {len(self.steered)}: something between "
                "takes rows away, as FasterCache does those of the negative prompt, or has its positions first; steer "
                "without it, or at other sites"
            )


class Visitor(Protocol):
    """Reads activations during a forward pass, and may change them."""

    def begin(self, root: str, call: Call) -> None:
        """Called before the forward pass of a root module; always eagerly, even if the module is compiled."""

    def visit(self, site: Site, x: torch.Tensor) -> torch.Tensor | None:
        """Called with the activation [batch, positions, width] at a site; returns its replacement, or None."""


class Recaller(Protocol):
    """What a visitor has in addition whose calls may be computed again in a backward pass (gradient checkpointing)."""

    def recall(self, root: str, *, inputs: object = None) -> Call | None:
        """The earlier call of a root that is computed again; None outside of a backward pass.

        Args:
            root: name of the root.
            inputs: arguments of a whole call of the root that begins; None in the midst of one.
        """


#: makes the Call of a root module from its positional and keyword arguments
DescribeCall = Callable[[tuple[Any, ...], dict[str, Any]], Call]
#: called with the name of a root, and the sites below it that a call of the root has not reached
OnUnreached = Callable[[str, list[Site]], object]
#: called with the name of a root after each call of it, and with what it returned
OnEnd = Callable[[str, Any], object]


class Visit:
    """The hooks that one `visit` registered. A context manager; `detach` removes them and can be called again."""

    def __init__(self, visitor: Visitor) -> None:
        self.visitor = visitor
        self.ways: list[Way] = []  # from the roots to the modules of the sites
        self.once = bool(getattr(visitor, "stateful", False))  # whether it may see a site once in a call at most
        self._joint: dict[str, Joint | None] = {}  # by root, of its current call
        self._recall: Callable[..., Call | None] | None = getattr(visitor, "recall", None)
        self._pending: dict[str, _Pending] = {}  # by root: models around it were called, and it was not yet
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._hooks: list[_SiteHook] = []
        self._unhooked: dict[Site, _SiteHook] = {}
        self._visited: set[Site] = set()  # by hooks that have been removed

    @property
    def visited(self) -> set[Site]:
        """Sites that have been reached since the beginning, or since `reset`."""
        return self._visited | {hook.site for hook in self._hooks if hook.visited}

    def modules(self) -> list[tuple[Site, nn.Module]]:
        """Every site, with the module that it is at."""
        return [(hook.site, hook.module) for hook in self._hooks]

    def reset(self) -> None:
        """Count no site as visited."""
        self._visited.clear()
        for hook in self._hooks:
            hook.visited = False

    def joint_of(self, root: str) -> Joint | None:
        """How both streams share one sequence in the call of a root that is computed."""
        again = None if self._recall is None else self._recall(root)
        return self._joint.get(root) if again is None else again.joint

    def find_replaced(self, model: nn.Module | Roots) -> list[Site]:
        """Sites whose module has been replaced since: the hook stays on the old one, which the new one may contain."""
        current = modules(_roots(model))
        return [hook.site for hook in self._hooks if current.get(hook.site.path) is not hook.module]

    def wrapped_since(self) -> list[Site]:
        """As `find_replaced`, by the modules that held those of the sites: in no time, and blind to what holds them."""
        return [hook.site for hook in self._hooks if not hook.is_in_place()]

    def detach(self) -> None:
        """Remove every hook. Can be called again."""
        while self._handles:
            self._handles.pop().remove()
        self._visited = self.visited
        # hooks hold this object: kept any longer, it and its visitor would wait for the garbage collector
        self._hooks, self._unhooked, self.ways = [], {}, []

    def apply(self, site: Site, value: Any) -> Any:
        """The input or output of the module of an `unhooked` site as the visitor leaves it; unchanged once detached."""
        hook = self._unhooked.get(site)
        changed = None if hook is None else hook.change(value)
        return value if changed is None else changed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()


def visit(
    model: nn.Module | Roots,
    sites: Iterable[Site],
    visitor: Visitor,
    describe: Mapping[str, DescribeCall] | None = None,
    *,
    on_unreached: OnUnreached | None = None,
    on_end: OnEnd | None = None,
    unhooked: Collection[Site] = (),
) -> Visit:
    """Let a visitor read, and change, the activations at some sites.

    Args:
        model: a module, or root modules by name; the first part of each site's path is the name of a root ("model" for
            a bare module).
        sites: where to read.
        visitor: reads and changes the activations.
        describe: root name -> makes the Call of a call of that root. `Visitor.begin` is called for these roots only.
        on_unreached: called after each call of a described root with the sites below it that were not reached, if any.
        on_end: called after each call of a described root with what it returned, before `on_unreached`.
        unhooked: sites that get no hook, because the caller passes their activations to `Visit.apply` itself.

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
    roots, sites = _roots(model), list(sites)
    known, twins = modules_and_copies(roots)
    for site in sites:
        if site.path not in known:
            near = sorted(path for path in known if path.rsplit(".", 1)[-1] == site.path.rsplit(".", 1)[-1])
            raise ModelMismatchError(
                f"no module at {site.path}; this model has {', '.join(near[:8]) or ', '.join(roots)}"
            )
    for name, root in roots.items():
        refuse_compiled(name, root)
    placed = Visit(visitor)
    placed.ways = ways_to(roots, [known[site.path] for site in sites])
    holders = {id(way.module): way for way in placed.ways}
    placed._hooks = [_SiteHook(site, placed, known[site.path], holders.get(id(known[site.path]))) for site in sites]
    placed._unhooked = {hook.site: hook for hook in placed._hooks if hook.site in unhooked}
    try:
        for name, describe_call in (describe or {}).items():
            begin = _BeginHook(name, placed, describe_call)
            end = _EndHook(begin, on_unreached, on_end)
            placed._handles.append(known[name].register_forward_pre_hook(begin, with_kwargs=True, prepend=True))
            placed._handles.append(known[name].register_forward_hook(end))
            for around in models_around(roots[name]):
                placed._handles.append(around.register_forward_pre_hook(_AroundHook(begin), with_kwargs=True))
                placed._handles.append(around.register_forward_hook(end))
        for hook in placed._hooks:
            for module in [] if hook.site in unhooked else [hook.module, *twins.get(hook.site.path, ())]:
                placed._handles.append(_register(hook, module))
    except BaseException:
        placed.detach()
        raise
    return placed


def _register(hook: _SiteHook, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
    """Place a hook where it is called first: but behind what begins a call, as an argument may be a root's own."""
    if hook.site.argument:
        return module.register_forward_pre_hook(hook, with_kwargs=True)
    register = module.register_forward_pre_hook if hook.site.side == "input" else module.register_forward_hook
    return register(hook, prepend=True)


def find_visitors(model: nn.Module | Roots) -> list[Visitor]:
    """The visitors whose hooks are on a model, without repetitions."""
    visitors: list[Visitor] = []
    for module in (module for root in _roots(model).values() for module in parts_of(root)):
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            if isinstance(hook, _SiteHook | _BeginHook) and hook.placed.visitor not in visitors:
                visitors.append(hook.placed.visitor)
    return visitors


def _roots(model: nn.Module | Roots) -> Roots:
    return {"model": model} if isinstance(model, nn.Module) else model


class DetachedOnCopy:
    """A hook that belongs to one `visit`: a copy of the model, or a pickle, gets one that does nothing."""

    def __deepcopy__(self, memo: dict[int, Any]) -> NoOpHook:
        return NoOpHook()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return NoOpHook, ()


class NoOpHook:
    def __call__(self, *_: Any) -> None: ...


class _Pending(NamedTuple):
    """A call of a model around a root, which may or may not call the root's hooks."""

    begin: _BeginHook
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _BeginHook(DetachedOnCopy):
    """Begins the call of a root.

    Attributes:
        entered: the module whose call began it: the root, or a model around it that calls the root's `forward`.
    """

    def __init__(self, name: str, placed: Visit, describe: DescribeCall) -> None:
        self.name, self.placed, self.describe = name, placed, describe
        self.site_hooks = [hook for hook in placed._hooks if hook.site.root == name]
        self.entered: nn.Module | None = None

    @_disable_dynamo  # torch.compiler.disable, which would import torch._dynamo right here: 1.5 s
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        guard_hooks()
        placed = self.placed
        placed._pending.pop(self.name, None)
        self.entered = None
        if placed._recall is not None and placed._recall(self.name, inputs=(args, kwargs)) is not None:
            return  # what began, and ended, in the forward pass
        self.entered = module
        call = self.describe(args, kwargs)
        placed._joint[self.name] = call.joint
        for hook in self.site_hooks:
            hook.reached = False
        placed.visitor.begin(self.name, call)


class _AroundHook(DetachedOnCopy):
    """On a model of PEFT around a root: keeps how it was called, in case that it calls the root past its hooks."""

    def __init__(self, begin: _BeginHook) -> None:
        self.begin = begin

    @_disable_dynamo
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.begin.entered = None
        self.begin.placed._pending[self.begin.name] = _Pending(self.begin, module, args, kwargs)


class _EndHook(DetachedOnCopy):
    def __init__(self, begin: _BeginHook, on_unreached: OnUnreached | None, on_end: OnEnd | None) -> None:
        self.begin, self.on_unreached, self.on_end = begin, on_unreached, on_end

    @_disable_dynamo
    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        pending = self.begin.placed._pending.get(self.begin.name)
        if pending is not None and pending.module is module:  # neither the root's hooks nor a site was reached
            pending.begin(*pending[1:])
        if self.begin.entered is not module:
            return
        self.begin.entered = None
        if self.on_end is not None:
            self.on_end(self.begin.name, output)
        unreached = [hook.site for hook in self.begin.site_hooks if not hook.reached]
        if unreached and self.on_unreached is not None:
            self.on_unreached(self.begin.name, unreached)


class _SiteHook(DetachedOnCopy):
    """Shows a visitor the activation at a site, before or after the site's module.

    Attributes:
        reached: whether an activation has passed in the current call of the root; compiled graphs set it, too.
        visited: the same since the beginning, or since `Visit.reset`.
    """

    def __init__(self, site: Site, placed: Visit, module: nn.Module, holder: Way | None) -> None:
        self.site, self.placed, self.module, self.holder = site, placed, module, holder
        self.reached = self.visited = False
        parameters = [*inspect.signature(module.forward).parameters] if site.argument else []
        self.place = parameters.index(site.argument) if site.argument in parameters else len(parameters)

    def is_in_place(self) -> bool:
        """Whether the module is still where it was."""
        return self.holder is None or self.holder.holds()

    def change(self, value: Any) -> Any:
        placed = self.placed
        if placed._pending and (pending := placed._pending.get(self.site.root)) is not None:
            pending.begin(*pending[1:])
        if placed.once and self.reached and (placed._recall is None or placed._recall(self.site.root) is None):
            raise UnsupportedError(
                f"{self.site} is reached several times in one call, as layers that are shared or repeated are, and the "
                "gate or map goes by what came before: choose other sites, or learn with form token"
            )
        joint = placed.joint_of(self.site.root) if self.site.stream else None
        changed = placed.visitor.visit(self.site, read_site(value, self.site, joint))
        self.reached = self.visited = True
        return None if changed is None else write_site(value, self.site, changed, joint)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], *output: Any) -> Any:
        """As a forward pre-hook, or with an output as a forward hook; of an argument a pre-hook with keywords."""
        if name := self.site.argument:
            place, by_name = self.place, output[0]
            if name not in by_name and place >= len(args):
                return None  # it is not reached, which the end of the call tells
            changed = self.change(by_name[name] if name in by_name else args[place])
            if changed is None or name in by_name:
                return None if changed is None else (args, {**by_name, name: changed})
            return (*args[:place], changed, *args[place + 1 :]), by_name
        return self.change(output[0] if output else args)
