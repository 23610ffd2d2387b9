"""The cross-attention layers of a denoiser: the sites of their queries, keys and values, and how they compare them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from dsas_core.errors import UnsupportedError
from dsas_core.model.sites import Site, modules

from ..pipelines.adapter import PipelineAdapter
from ..pipelines.sites import sites_of_role


@dataclass(frozen=True)
class CrossAttention:
    """A cross-attention layer.

    Args:
        path: canonical.
        module: diffusers' `Attention`.

    Example:
        >>> CrossAttention("unet.mid_block.attn2", nn.Identity()).queries.path
        'unet.mid_block.attn2.to_q'
    """

    path: str
    module: nn.Module

    @property
    def queries(self) -> Site:
        """Queries, of the picture's patches; keys and values are of the prompt's tokens."""
        return Site(f"{self.path}.to_q")

    @property
    def keys(self) -> Site:
        return Site(f"{self.path}.to_k")

    @property
    def values(self) -> Site:
        return Site(f"{self.path}.to_v")

    @property
    def scale(self) -> float:
        """Factor of the products of queries and keys."""
        return float(self.module.scale)  # type: ignore[arg-type]

    def by_head(self, x: torch.Tensor, kind: str) -> torch.Tensor:
        """Queries ("q") or keys ("k") as the layer compares them: [batch, heads, positions, width of a head]."""
        norm = getattr(self.module, f"norm_{kind}", None)
        parts = x.unflatten(-1, (self.module.heads, -1)).transpose(1, 2)
        return parts if norm is None else norm(parts)


def cross_attention_layers(adapter: PipelineAdapter) -> list[CrossAttention]:
    """The layers in which patches of a pipeline's pictures attend to the tokens of its prompts.

    Raises:
        UnsupportedError: a family whose attention is not known, or a denoiser without such layers.
    """
    family, roots = adapter.family, adapter.roots
    if family.cross_attention is None:
        raise UnsupportedError(f"words are known of UNets with cross-attention and CLIP's tokens, not of {family.name}")
    paths = {site.path for site in sites_of_role(family, roots, family.cross_attention, required=False)}
    layers = [
        CrossAttention(path, module)
        for path, module in modules(roots).items()
        if path in paths and getattr(module, "is_cross_attention", True)
    ]
    if not layers:
        raise UnsupportedError(f"{family.denoiser} has no cross-attention, so it looks at no words")
    return layers
