"""What tells models from one another: their architecture, and what they have learned."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from ..errors import UnavailableError
from .sites import Roots, Site, canonical, modules

#: parameters that a sample takes values of, and how many of each
PARAMETERS, VALUES = 32, 4
#: how far apart a value and the same value in another precision may be: bfloat16 rounds by 2^-9 of it, and what
#: float16 no longer holds in full by 2^-25
RELATIVE, ABSOLUTE = 2**-8, 1e-7
#: fewer values than this, that both know, tell nothing
LEAST = 8

#: what comes and goes while an architecture stays: adapters, IP-Adapters, and the projections that diffusers fuses
_ADDED = re.compile(
    r"lora_|\.processor\.|^encoder_hid_proj\.image_projection_layers\.|^image_proj\.|\.to_(added_)?q?kv\."
)


def fingerprint(module: nn.Module) -> str:
    """Sixteen hex digits of a module's architecture: parameter names and shapes, adapters left out.

    Example:
        >>> fingerprint(nn.Linear(2, 3)) == fingerprint(nn.Linear(2, 3)) != fingerprint(nn.Linear(2, 4))
        True
    """
    shapes = sorted(f"{name}{_shape(parameter)}" for name, _, parameter in _parameters(module))
    return hashlib.sha256("\n".join([type(_bare(module)).__name__, *shapes]).encode()).hexdigest()[:16]


def portrait(module: nn.Module) -> dict[str, Any]:
    """A module as plain data, for messages and to be recognised: its class, how many parameters it has, and a sample.

    The sample is a few values of a few parameters; None for those that are quantised, or nowhere to be read.

    Example:
        >>> portrait(nn.Linear(2, 3))["parameters"]
        9
    """
    count = sum(torch.Size(_shape(parameter)).numel() for _, _, parameter in _parameters(module))
    return {"class": type(_bare(module)).__name__, "parameters": count, "sample": _sample(module)}


def other_weights(module: nn.Module, known: Mapping[str, Any]) -> bool:
    """Whether a module of the architecture that `portrait` described has other weights; False where too few are known.

    The precision that they are in makes no difference, nor do adapters that lie beside them.
    """
    told = known.get("sample") or []
    if not any(value is not None for value in told):
        return False
    pairs = [(a, b) for a, b in zip(told, _sample(module), strict=False) if a is not None and b is not None]
    changed = [abs(a - b) > RELATIVE * max(abs(a), abs(b)) + ABSOLUTE for a, b in pairs]
    return len(pairs) >= LEAST and any(changed)


def difference(root: str, module: nn.Module, widths: Mapping[Site, int], known: Mapping[str, Any]) -> str:
    """What a module has that the one with some sites had not, in words.

    Args:
        root: its name.
        module: the module.
        widths: site -> channels, in the module that the concept was learned on.
        known: what `portrait` recorded of that module, or nothing.
    """
    own = portrait(module)
    words = []
    if known and any(known.get(part) != own[part] for part in ("class", "parameters")):
        words.append(f"that was {_in_words(known)}, this is {_in_words(own)}")
    here = modules({root: module})
    missing = [site.path for site in widths if site.path not in here]
    if missing:
        return "; ".join([*words, f"{len(missing)} of its {len(widths)} sites are not here, as {missing[0]}"])
    for site, width in widths.items():
        sizes = sorted({size for parameter in here[site.path].parameters() for size in _shape(parameter)})
        if sizes and width not in sizes and site.channels is None:
            found = ", ".join(map(str, sizes))
            return "; ".join([*words, f"{site.path} was {width} wide, and here its parameters have {found}"])
    return "; ".join([*words, "its sites are here and as wide, and other layers differ"])


def weights_digest(roots: Roots) -> str:
    """Sixteen hex digits of what modules have learned: a sample of every parameter, adapters and all, at their scales.

    Raises:
        UnavailableError: parameters that are nowhere to be read.
    """
    digest = hashlib.sha256()
    for name in sorted(roots):
        for path, parameter in roots[name].named_parameters():
            value = _offloaded(roots[name], path) if parameter.is_meta else parameter.detach()
            flat = value.flatten()
            sample = flat[:: max(1, len(flat) // 64)].cpu().double()
            digest.update(f"{name}.{canonical(path)}".encode() + sample.numpy().tobytes())
        for path, module in roots[name].named_modules():
            scales = getattr(module, "scaling", None)
            if isinstance(scales, dict):  # of adapters, as PEFT has them
                told = scales, getattr(module, "active_adapters", []), getattr(module, "disable_adapters", False)
                digest.update(f"{name}.{canonical(path)}{told}".encode())
    return digest.hexdigest()[:16]


def _bare(module: nn.Module) -> nn.Module:
    """A module without the wrapper of torch.compile."""
    inner: nn.Module = getattr(module, "_orig_mod", module)
    return inner


def _parameters(module: nn.Module) -> list[tuple[str, str, nn.Parameter]]:
    """Canonical name, path and value of every parameter that is there to stay, by name.

    Parameters that are one are named once, also where accelerate has offloaded them apart.
    """
    bare = _bare(module)
    tied = getattr(bare, "all_tied_weights_keys", None) or {}
    found: dict[str, tuple[str, str, nn.Parameter]] = {}
    for path, parameter in bare.named_parameters():
        if not _ADDED.search(path):
            name = canonical(tied.get(path, path).replace(".base_layer", ""))
            found.setdefault(name, (name, path, parameter))
    return [found[name] for name in sorted(found)]


def _shape(parameter: torch.Tensor) -> tuple[int, ...]:
    """The shape of a parameter; of one that bitsandbytes or GGUF have packed, that of what is in it."""
    own: Any = parameter
    packed = getattr(own, "quant_shape", None) or getattr(getattr(own, "quant_state", None), "shape", None)
    return tuple(parameter.shape if packed is None else packed)


def _sample(module: nn.Module) -> list[float | None]:
    """VALUES values of each of PARAMETERS parameters, spread over the module, in five digits; None where unknown."""
    every = [one for one in _parameters(module) if torch.Size(_shape(one[2])).numel() >= VALUES]
    count = min(PARAMETERS, len(every))
    found: list[float | None] = []
    for i in range(count):
        _, path, parameter = every[(2 * i + 1) * len(every) // (2 * count)]
        value = _readable(_bare(module), path, parameter)
        if value is None:
            found += [None] * VALUES
            continue
        places = [(2 * k + 1) * value.numel() // (2 * VALUES) for k in range(VALUES)]
        taken = torch.take(value, torch.tensor(places, device=value.device))
        found += [float(f"{number:.5g}") if math.isfinite(number) else None for number in taken.tolist()]
    return found


def _readable(module: nn.Module, path: str, parameter: nn.Parameter) -> torch.Tensor | None:
    """A parameter's values, of 16 bits at least; None where it has none here."""
    value: torch.Tensor = parameter.detach()
    if parameter.is_meta:
        try:
            value = _offloaded(module, path)
        except UnavailableError:
            return None
    plain = type(parameter) is nn.Parameter and value.is_floating_point() and value.element_size() >= 2
    return value if plain and bool(value.numel()) else None


def _offloaded(root: nn.Module, path: str) -> torch.Tensor:
    """A parameter that accelerate keeps elsewhere: a hook on its module, or on one around it, knows where."""
    parts = path.split(".")
    for depth in range(len(parts)):
        hook = getattr(root.get_submodule(".".join(parts[:depth])), "_hf_hook", None)
        for one in getattr(hook, "hooks", [hook]):
            kept, name = getattr(one, "weights_map", None), ".".join(parts[depth:])
            with suppress(KeyError):  # it is not asked whether it has the name, as it lists others than it takes
                value: torch.Tensor | None = None if kept is None else kept[name]
                if value is not None:
                    return value
    raise UnavailableError(f"{path} has no values: load the model's weights first")


def _in_words(known: Mapping[str, Any]) -> str:
    count = known.get("parameters")
    size = f" of {count:,} parameters" if isinstance(count, int) else ""
    return f"{known.get('class', 'another model')}{size}"
