"""Fingerprints: which architecture a model has, and which weights."""

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
from .sites import Roots, Site, canonical_path
from .wrappers import bare, is_of_peft, walk

#: number of parameters that a sample takes values of, and of values from each
PARAMETERS, VALUES = 32, 4
#: largest difference between a value and the same value in another precision: bfloat16 rounds by 2^-9 of it, float16
#: rounds small values by 2^-25
RELATIVE, ABSOLUTE = 2**-8, 1e-7
#: two samples are compared only if they share at least so many values
MIN_VALUES = 8

#: parameters of diffusers that come and go while the architecture stays: IP-Adapters, projections that it fuses
_ADDED = re.compile(r"\.processor\.|^encoder_hid_proj\.image_projection_layers\.|^image_proj\.|\.to_(added_)?q?kv\.")


def fingerprint(module: nn.Module) -> str:
    """Sixteen hex digits of a module's architecture: its class, parameter names and shapes, whatever PEFT put around.

    Example:
        >>> fingerprint(nn.Linear(2, 3)) == fingerprint(nn.Linear(2, 3)) != fingerprint(nn.Linear(2, 4))
        True
    """
    shapes = sorted(f"{name}{_shape(parameter)}" for name, _, parameter in _parameters(module))
    return hashlib.sha256("\n".join([type(bare(module)).__name__, *shapes]).encode()).hexdigest()[:16]


def describe_module(module: nn.Module) -> dict[str, Any]:
    """A module's class, number of parameters and a sample of its weights, as plain data.

    The sample has a few values of a few parameters; None for those that are quantised or not loaded.

    Example:
        >>> describe_module(nn.Linear(2, 3))["parameters"]
        9
    """
    count = sum(torch.Size(_shape(parameter)).numel() for _, _, parameter in _parameters(module))
    return {"class": type(bare(module)).__name__, "parameters": count, "sample": _sample(module)}


def has_other_weights(module: nn.Module, known: Mapping[str, Any]) -> bool:
    """Whether a module has other weights than the one of its architecture that `describe_module` described.

    Precision makes no difference, nor do adapters beside the weights.

    Args:
        module: the module.
        known: the description, or nothing.

    Returns:
        False also where too few values are known on both sides.

    Example:
        >>> layer = nn.Linear(4, 4)
        >>> known = describe_module(layer)
        >>> has_other_weights(layer, known), has_other_weights(nn.Linear(4, 4), known)
        (False, True)
    """
    sample = known.get("sample") or []
    if not any(value is not None for value in sample):
        return False
    pairs = [(a, b) for a, b in zip(sample, _sample(module), strict=False) if a is not None and b is not None]
    changed = [abs(a - b) > RELATIVE * max(abs(a), abs(b)) + ABSOLUTE for a, b in pairs]
    return len(pairs) >= MIN_VALUES and any(changed)


def explain_difference(root: str, module: nn.Module, widths: Mapping[Site, int], known: Mapping[str, Any]) -> str:
    """How a module differs from the one that a concept was learned on, for a message.

    Args:
        root: name of the module.
        module: the module.
        widths: site -> channels, in the module that the concept was learned on.
        known: the description of that module by `describe_module`, or nothing.

    Example:
        >>> explain_difference("unet", nn.Sequential(nn.ReLU()), {Site("unet.1"): 4}, {})
        '1 of its 1 sites are not here, as unet.1'
    """
    own = describe_module(module)
    differs = known and any(known.get(part) != own[part] for part in ("class", "parameters"))
    sizes = f"that was {_describe_size(known)}, this is {_describe_size(own)}; " if differs else ""
    here = {canonical_path(_join(root, place.path)): place.bare for place in walk(module) if not place.copy}
    missing = [site.path for site in widths if site.path not in here]
    if missing:
        return f"{sizes}{len(missing)} of its {len(widths)} sites are not here, as {missing[0]}"
    for site, width in widths.items():
        present = sorted({size for parameter in here[site.path].parameters() for size in _shape(parameter)})
        if present and width not in present and site.channels is None:
            return f"{sizes}{site.path} was {width} wide, and here its parameters have {', '.join(map(str, present))}"
    return f"{sizes}its sites are here and as wide, and other layers differ"


def weights_digest(roots: Roots) -> str:
    """Sixteen hex digits of modules' weights: a sample of every parameter, adapters and their scales included.

    Args:
        roots: root modules by name.

    Raises:
        UnavailableError: parameters that are not loaded.

    Example:
        >>> layer = nn.Linear(2, 3)
        >>> weights_digest({"unet": layer}) == weights_digest({"unet": layer}) != weights_digest({"text": layer})
        True
    """
    digest = hashlib.sha256()
    for name in sorted(roots):
        for path, parameter in roots[name].named_parameters():
            value = _load_offloaded(roots[name], path) if parameter.is_meta else parameter.detach()
            flat = value.flatten()
            sample = flat[:: max(1, len(flat) // 64)].cpu().double()
            digest.update(f"{name}.{canonical_path(path)}".encode() + sample.numpy().tobytes())
        for path, module in roots[name].named_modules():
            if is_of_peft(module) and hasattr(module, "active_adapters"):
                scales = vars(module).get("scaling")
                adapters = scales, module.active_adapters, vars(module).get("_disable_adapters", False)
                digest.update(f"{name}.{canonical_path(path)}{adapters}".encode())
    return digest.hexdigest()[:16]


def _parameters(module: nn.Module) -> list[tuple[str, str, nn.Parameter]]:
    """Canonical name, full path and value of every parameter of the architecture itself, by name.

    Tied parameters are listed once, even if accelerate has offloaded them separately.
    """
    tied = getattr(bare(module), "all_tied_weights_keys", None) or {}
    parameters: dict[str, tuple[str, str, nn.Parameter]] = {}
    seen: set[int] = set()
    for place in walk(module):
        for name, parameter in place.bare._parameters.items():
            path = _join(place.path, name)
            if parameter is None or place.copy or id(parameter) in seen or _ADDED.search(path):
                continue
            seen.add(id(parameter))
            name_here = canonical_path(tied.get(path, path))
            parameters.setdefault(name_here, (name_here, _join(place.full_path, name), parameter))
    return [parameters[name] for name in sorted(parameters)]


def _shape(parameter: torch.Tensor) -> tuple[int, ...]:
    """The shape of a parameter; of one packed by bitsandbytes or GGUF, the shape before packing."""
    own: Any = parameter
    unpacked = getattr(own, "quant_shape", None) or getattr(getattr(own, "quant_state", None), "shape", None)
    return tuple(parameter.shape if unpacked is None else unpacked)


def _sample(module: nn.Module) -> list[float | None]:
    """VALUES values of each of PARAMETERS parameters, spread over the module, in five digits; None where unknown."""
    large = [entry for entry in _parameters(module) if torch.Size(_shape(entry[2])).numel() >= VALUES]
    count = min(PARAMETERS, len(large))
    sample: list[float | None] = []
    for i in range(count):
        _, path, parameter = large[(2 * i + 1) * len(large) // (2 * count)]
        value = _readable_value(module, path, parameter)
        numbers = [math.nan] * VALUES
        if value is not None:
            places = [(2 * k + 1) * value.numel() // (2 * VALUES) for k in range(VALUES)]
            numbers = torch.take(value, torch.tensor(places, device=value.device)).tolist()
        sample += [float(f"{number:.5g}") if math.isfinite(number) else None for number in numbers]
    return sample


def _readable_value(module: nn.Module, path: str, parameter: nn.Parameter) -> torch.Tensor | None:
    """A parameter's value; None where it is not loaded, or quantised below 16 bits."""
    value: torch.Tensor = parameter.detach()
    if parameter.is_meta:
        try:
            value = _load_offloaded(module, path)
        except UnavailableError:
            return None
    plain = type(parameter) is nn.Parameter and value.is_floating_point() and value.element_size() >= 2
    return value if plain and bool(value.numel()) else None


def _load_offloaded(root: nn.Module, path: str) -> torch.Tensor:
    """A parameter that accelerate has offloaded: a hook on its module, or on one that contains it, knows where."""
    parts = path.split(".")
    for depth in range(len(parts)):
        hook = getattr(root.get_submodule(".".join(parts[:depth])), "_hf_hook", None)
        for part in getattr(hook, "hooks", [hook]):
            weights, name = getattr(part, "weights_map", None), ".".join(parts[depth:])
            with suppress(KeyError):  # without asking whether it has the name: it lists others than it accepts
                value: torch.Tensor | None = None if weights is None else weights[name]
                if value is not None:
                    return value
    raise UnavailableError(f"{path} has no values: load the model's weights first")


def _describe_size(known: Mapping[str, Any]) -> str:
    count = known.get("parameters")
    size = f" of {count:,} parameters" if isinstance(count, int) else ""
    return f"{known.get('class', 'another model')}{size}"


def _join(path: str, name: str) -> str:
    return ".".join(part for part in (path, name) if part)
