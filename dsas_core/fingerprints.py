"""What tells models from one another: their architecture, and what they have learned."""

from __future__ import annotations

import hashlib
import re

import torch
from torch import nn

from .errors import DSASError
from .sites import Roots, canonical

#: what comes and goes while an architecture stays: adapters, IP-Adapters, and the projections that diffusers fuses
_ADDED = re.compile(
    r"lora_|\.processor\.|^encoder_hid_proj\.image_projection_layers\.|^image_proj\.|\.to_(added_)?q?kv\."
)


def fingerprint(module: nn.Module) -> str:
    """Sixteen hex digits of a module's architecture: parameter names and shapes, adapters left out."""
    module = getattr(module, "_orig_mod", module)
    # parameters that are one are named once, also where accelerate has offloaded them apart
    tied = getattr(module, "all_tied_weights_keys", None) or {}
    shapes = {
        f"{canonical(tied.get(name, name).replace('.base_layer', ''))}{tuple(parameter.shape)}"
        for name, parameter in module.named_parameters()
        if not _ADDED.search(name)
    }
    return hashlib.sha256("\n".join([type(module).__name__, *sorted(shapes)]).encode()).hexdigest()[:16]


def weights_digest(roots: Roots) -> str:
    """Sixteen hex digits of what modules have learned: a sample of every parameter, adapters and all.

    Raises:
        DSASError: parameters that are nowhere to be read.
    """
    digest = hashlib.sha256()
    for name in sorted(roots):
        for path, parameter in roots[name].named_parameters():
            value = _offloaded(roots[name], path) if parameter.is_meta else parameter.detach()
            flat = value.flatten()
            sample = flat[:: max(1, len(flat) // 64)].cpu().double()
            digest.update(f"{name}.{canonical(path)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def _offloaded(root: nn.Module, path: str) -> torch.Tensor:
    """A parameter that accelerate keeps elsewhere: a hook on its module, or on one around it, knows where."""
    parts = path.split(".")
    for depth in range(len(parts)):
        hook = getattr(root.get_submodule(".".join(parts[:depth])), "_hf_hook", None)
        for one in getattr(hook, "hooks", [hook]):
            kept, name = getattr(one, "weights_map", None), ".".join(parts[depth:])
            if kept is not None and name in set(kept):
                value: torch.Tensor = kept[name]
                return value
    raise DSASError(f"{path} has no values: load the model's weights first")
