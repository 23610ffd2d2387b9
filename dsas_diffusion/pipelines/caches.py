"""Caches that diffusers puts over a denoiser, and what they do to steering.

A cache answers a step from an earlier one. Those of attention replay what a layer made, before any hook: steering by
hooks comes on top, at the strength of now. Those of blocks leave out all blocks but the first and add what these
changed in an earlier step, steering and all: the layers inside are not come to, and a block as a whole, which is come
to, would be steered once more on top of it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

from dsas_core.model.sites import Roots, Site, modules

#: modules of diffusers.hooks
_CACHES = (
    "faster_cache",
    "first_block_cache",
    "mag_cache",
    "pyramid_attention_broadcast",
    "sea_cache",
    "taylorseer_cache",
)
_OF_BLOCKS = ("first_block_cache", "mag_cache", "sea_cache")


def caches_of(denoiser: nn.Module) -> list[str]:
    """The caches that are on, by the names of their modules in `diffusers.hooks`."""
    return list(dict.fromkeys(cache for module in denoiser.modules() for cache in _at(module)))


def steered_again(roots: Roots, sites: Collection[Site]) -> list[Site]:
    """Blocks that are sites as a whole, and that a cache leaves out."""
    known = modules(roots)
    return [site for site in sites if set(_OF_BLOCKS).intersection(_at(known[site.path]))]


def _at(module: nn.Module) -> list[str]:
    hooks: Mapping[str, object] = getattr(getattr(module, "_diffusers_hook", None), "hooks", {})
    kinds = (type(hook).__module__.rpartition(".")[2] for hook in hooks.values())
    return [kind for kind in kinds if kind in _CACHES]
