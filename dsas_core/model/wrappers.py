"""Modules around modules: what torch.compile and PEFT put into a model, and the architecture inside.

Nothing here goes by the names of adapters. PEFT's classes are known by their package, and each says which module it
wraps, so that a tuner that is not written yet is passed through as well: what is inside is the model's own, and what
lies beside it is the tuner's.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from torch import nn

#: where PEFT keeps what a module of its own wraps: tuners' layers, copies that are trained whole, models, X-LoRA, and
#: tuners' models and adaption prompts
_INSIDE = ("base_layer", "original_module", "base_model", "lora_model", "model")


class Place(NamedTuple):
    """A module of the architecture, and where it is.

    Args:
        path: without the levels of wrappers; "" for the root.
        full_path: as `named_modules` of the root has it.
        module: whose output the model goes on with: with the layer of a tuner around it, if it has one.
        bare: without that.
        copy: whether PEFT trains it in place of another of the same path (`modules_to_save`).
    """

    path: str
    full_path: str
    module: nn.Module
    bare: nn.Module
    copy: bool


def bare(module: nn.Module) -> nn.Module:
    """A module without all that is around it.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> bare(layer) is layer
        True
    """
    while (inner := _inside(module)) is not None:
        module = inner[1]
    return module


def models_around(module: nn.Module) -> list[nn.Module]:
    """The models of PEFT around a model, the outermost first. Some call the `forward` of the next, past its hooks."""
    around: list[nn.Module] = []
    while (inner := _inside(module)) is not None:
        around += [module] if is_of_peft(module) else []
        module = inner[1]
    return around


def walk(root: nn.Module) -> list[Place]:
    """Every module of the architecture, each once; the modules of adapters are left out.

    Example:
        >>> [place.path for place in walk(nn.Sequential(nn.ReLU()))]
        ['', '0']
    """
    found: list[Place] = []
    _walk(root, "", "", False, set(), found)
    return found


def _walk(module: nn.Module, path: str, full_path: str, copy: bool, seen: set[int], found: list[Place]) -> None:
    outer, copies = module, list[tuple[str, nn.Module]]()
    while True:
        if id(module) in seen:
            return
        seen.add(id(module))
        inner = _inside(module)
        if inner is None:
            break
        saved = module._modules.get("modules_to_save") if is_of_peft(module) else None
        if isinstance(saved, nn.ModuleDict):
            copies += [(_join(full_path, f"modules_to_save.{name}"), part) for name, part in saved.items()]
        outer = inner[1] if outer is module and _adds_nothing(module, inner[0]) else outer
        full_path, module = _join(full_path, inner[0]), inner[1]
    if is_of_peft(module):
        return
    found.append(Place(path, full_path, outer, module, copy))
    for name, child in module._modules.items():
        if child is not None:
            _walk(child, _join(path, name), _join(full_path, name), copy, seen, found)
    for copy_path, part in copies:  # of the module itself the output is that of what wraps it
        for name, child in part._modules.items():
            if child is not None:
                _walk(child, _join(path, name), _join(copy_path, name), True, seen, found)


def parts_of(root: nn.Module) -> list[nn.Module]:
    """A module and all in it, each once, in no order: what `modules()` gives, several times as fast.

    Example:
        >>> len(parts_of(nn.Sequential(nn.ReLU())))
        2
    """
    found, left = {id(root): root}, [root]
    while left:
        for part in left.pop()._modules.values():
            if part is not None and id(part) not in found:
                found[id(part)] = part
                left.append(part)
    return list(found.values())


def _inside(module: nn.Module) -> tuple[str, nn.Module] | None:
    """The module that a wrapper wraps, with its name there; None where the module is no wrapper."""
    if "_orig_mod" in module._modules:
        return "_orig_mod", module.get_submodule("_orig_mod")
    for name in _INSIDE if is_of_peft(module) else ():
        if (part := module._modules.get(name)) is not None:
            return name, part
        if isinstance(getattr(type(module), name, None), property):  # of a part that is somewhere below
            part = getattr(module, name)
            return next(path for path, below in module.named_modules() if below is part), part
    return None


def _adds_nothing(wrapper: nn.Module, name: str) -> bool:
    """Whether a wrapper is that of torch.compile, or a whole model of PEFT: hooks belong into it."""
    return name in ("_orig_mod", "base_model", "lora_model") or (name == "model" and "peft_config" in vars(wrapper))


def is_of_peft(module: nn.Module) -> bool:
    """Whether a module is PEFT's, or of a class derived from one of its classes."""
    kind: type = type(module)
    return _is_of_peft(kind)


@cache
def _is_of_peft(kind: type) -> bool:
    return any(base.__module__.partition(".")[0] == "peft" for base in kind.__mro__)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
