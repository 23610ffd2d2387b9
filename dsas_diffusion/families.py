"""What is known about each model family: which parts can be steered, where, and how to read its clock and rows.

A table, no guessing: an unknown family raises. The family is told by the class of the denoiser.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dsas_core.errors import DSASError
from dsas_core.sites import Site, canonical, find, modules


@dataclass(frozen=True)
class Family:
    """One model family.

    Args:
        name: for messages.
        denoiser: attribute of the pipeline.
        text_encoders: attributes of the pipeline.
        groups: name of a group of sites -> (regular expression on canonical paths, layout).
        default: the groups that steer when the user names none; what benchmarks/concept.py shows best.
        denoiser_default: the groups that "denoiser" stands for.
        watched: the groups that a concept of text sites alone reads for the heat-map, without changing them.
        looking: the group whose layers look from patches of the picture at the prompt's tokens (`looking_at`).
        edges: timesteps that separate the bins of denoiser sites, unless the user names others.
        bounds: what the clock shows at the noisy and at the clean end; 1000 and 0 for raw timesteps.
        unconditional_first: whether classifier-free guidance stacks [unconditional, conditional] rows.
    """

    name: str
    denoiser: str
    text_encoders: tuple[str, ...]
    groups: Mapping[str, tuple[str, str]]
    default: tuple[str, ...]
    denoiser_default: tuple[str, ...]
    watched: tuple[str, ...] = ("cross",)
    looking: str = "cross"
    edges: tuple[float, ...] = (500.0,)
    bounds: tuple[float, float] = (1000.0, 0.0)
    unconditional_first: bool = True


_UNET = Family(
    name="Stable Diffusion",
    denoiser="unet",
    text_encoders=("text_encoder",),
    groups={
        "cross": (r"unet\..*\.attn2", "last"),
        "self": (r"unet\..*\.attn1", "last"),
        "block": (r"unet\.(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.(attentions|resnets)\.\d+", "first"),
        "text": (r"text_encoder\.encoder\.layers\.\d+", "last"),
    },
    default=("text",),
    denoiser_default=("cross",),
)

#: class of the denoiser -> family
FAMILIES: dict[str, Family] = {"UNet2DConditionModel": _UNET}


def family_of(pipe: Any) -> Family:
    """The family of a pipeline.

    Raises:
        DSASError: the pipeline has no denoiser that the table knows, or lacks a part that its family has.
    """
    parts = [getattr(pipe, name, None) for name in ("unet", "transformer")]
    denoiser = next((part for part in parts if part is not None), None)
    if denoiser is None:
        raise DSASError(f"{type(pipe).__name__} has neither unet nor transformer: expected a text-to-image pipeline")
    kind = type(getattr(denoiser, "_orig_mod", denoiser)).__name__
    if kind not in FAMILIES:
        raise DSASError(f"{kind} is not a family that is known; known are {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    if getattr(pipe, "text_encoder_2", None) is not None:
        raise DSASError(
            f"{type(pipe).__name__} has two text encoders, as SDXL; only {family.name} 1.x-shaped are known"
        )
    wanted = (family.denoiser, *family.text_encoders, "tokenizer", "scheduler", "vae")
    missing = [part for part in wanted if getattr(pipe, part, None) is None]
    if missing:
        raise DSASError(f"the pipeline lacks {', '.join(missing)}; a {family.name} pipeline has {', '.join(wanted)}")
    return family


def roots_of(pipe: Any) -> dict[str, nn.Module]:
    """The modules that can be steered, by name."""
    family = family_of(pipe)
    return {name: getattr(pipe, name) for name in (family.denoiser, *family.text_encoders)}


def find_sites(pipe: Any, sites: str | Sequence[str] | None = None) -> list[Site]:
    """Sites of a pipeline.

    Args:
        sites: None for the family's default groups; a group's name (`dsas_diffusion.families`), "denoiser" for all of
            the denoiser's default groups, a regular expression on canonical paths, or a list of these.

    Raises:
        DSASError: a pattern that matches nothing; the message lists what exists.
    """
    family, roots = family_of(pipe), roots_of(pipe)
    wanted = list(family.default) if sites is None else [sites] if isinstance(sites, str) else list(sites)
    found: dict[str, Site] = {}
    for pattern in wanted:
        if pattern == "denoiser":
            patterns = [family.groups[name][0] for name in family.denoiser_default]
        else:
            patterns = [family.groups[pattern][0] if pattern in family.groups else pattern]
        for expression in patterns:
            for path in find(roots, expression):
                found[path] = Site(path, layout=_layout(family, roots, path))
    return list(found.values())


@dataclass(frozen=True)
class Looking:
    """A cross-attention layer.

    Args:
        path: canonical. module: diffusers' `Attention`.
    """

    path: str
    module: nn.Module

    @property
    def queries(self) -> Site:
        """Of patches of the picture; keys and values are of the prompt's tokens."""
        return Site(f"{self.path}.to_q")

    @property
    def keys(self) -> Site:
        return Site(f"{self.path}.to_k")

    @property
    def values(self) -> Site:
        return Site(f"{self.path}.to_v")

    @property
    def scale(self) -> float:
        """Of the products of queries and keys."""
        return float(self.module.scale)  # type: ignore[arg-type]

    def by_head(self, x: torch.Tensor, kind: str) -> torch.Tensor:
        """Queries ("q") or keys ("k") as the layer compares them: [batch, heads, positions, width of a head]."""
        norm = getattr(self.module, f"norm_{kind}", None)
        parts = x.unflatten(-1, (self.module.heads, -1)).transpose(1, 2)
        return parts if norm is None else norm(parts)


def looking_at(pipe: Any) -> list[Looking]:
    """The layers in which a pipeline's pictures look at its prompts.

    Raises:
        DSASError: there is none.
    """
    family, roots = family_of(pipe), roots_of(pipe)
    known, expression = modules(roots), re.compile(family.groups[family.looking][0])
    found = [Looking(path, module) for path, module in known.items() if expression.fullmatch(path)]
    found = [layer for layer in found if getattr(layer.module, "is_cross_attention", True)]
    if not found:
        raise DSASError(f"{family.denoiser} has no cross-attention, so it looks at no words")
    return found


def _layout(family: Family, roots: Mapping[str, nn.Module], path: str) -> str:
    """The layout of a path's output: by the group that it belongs to, else by the kind of module."""
    for expression, layout in family.groups.values():
        if re.fullmatch(expression, path):
            return layout
    module = modules(roots)[canonical(path)]
    return "first" if isinstance(module, nn.Conv2d | nn.GroupNorm) else "last"
