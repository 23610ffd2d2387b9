"""The cross-attention layers of a denoiser, and how much positions attend to some tokens, as a mask of the positions.

Fused attention kernels return no weights, so the weights are computed again from a layer's queries and keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from dsas_core.errors import UnsupportedError
from dsas_core.model.sites import Site, modules, patch_grid

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


def attention_to(queries: torch.Tensor, keys: torch.Tensor, tokens: torch.Tensor, scale: float) -> torch.Tensor:
    """How much each position attends to chosen tokens: softmax(Q K^T · scale), mean over heads.

    Args:
        queries: [batch, heads, positions, width]; computed in float32.
        keys: [batch, heads, all tokens, width].
        tokens: float [n, batch, all tokens], n choices, each with a weight for every token; zeros give zeros.
        scale: factor of the products in the layer, usually width ** -0.5.

    Returns:
        float32 [n, batch, positions].

    Example:
        >>> ones = torch.ones(1, 1, 4, 2)
        >>> attention_to(ones, ones, torch.tensor([[[1.0, 0, 0, 0]]]), scale=1.0)
        tensor([[[0.2500, 0.2500, 0.2500, 0.2500]]])
    """
    weights = (queries.float() @ keys.float().transpose(-1, -2) * scale).softmax(-1).mean(1)
    return torch.einsum("bpt,nbt->nbp", weights, tokens)


def normalise_attention(maps: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Scale each map by two of its own quantiles: 0 up to the lower, 1 from the higher on, linear between them.

    The scale of attention differs from word to word and from step to step, so no fixed threshold suits all; quantiles
    of each picture are SEGA's idea (arXiv 2301.12247). A constant map becomes 0.

    Args:
        maps: float32 [..., height, width].
        low: the lower quantile, 0 to 1.
        high: the higher quantile, 0 to 1.

    Returns:
        float32 [..., height, width], 0 to 1.

    Example:
        >>> normalise_attention(torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0]]), 0.0, 0.5)
        tensor([[0.0000, 0.5000, 1.0000, 1.0000, 1.0000]])
    """
    bounds = maps.new_tensor([low, high])
    below, above = torch.quantile(maps.flatten(-2), bounds, dim=-1)[..., None, None].unbind()
    return ((maps - below) / (above - below).clamp_min(1e-6)).clamp(0, 1)


def on_grid(maps: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Maps by patch [n, batch, positions] as maps of the picture's shape [n, batch, height, width]."""
    return resample(maps.unflatten(-1, patch_grid(maps.shape[-1], height, width)), height, width)


def on_patches(maps: torch.Tensor, positions: int) -> torch.Tensor:
    """Maps [..., height, width] by patch, [..., positions]: the inverse of `on_grid`."""
    return resample(maps, *patch_grid(positions, *maps.shape[-2:])).flatten(-2)


def resample(maps: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Maps [n, batch, height, width] in another size: means where smaller, else linear between centres."""
    if maps.shape[-2:] == (height, width):
        return maps
    if height <= maps.shape[-2] and width <= maps.shape[-1]:
        return F.adaptive_avg_pool2d(maps, (height, width))
    return F.interpolate(maps, (height, width), mode="bilinear", align_corners=False)
