"""Caches that diffusers puts over a denoiser, and what they do to steering.

A cache answers a step from an earlier one. Caches of attention replay what a layer returned, before any hook: steering
by hooks comes on top, at the present strength. Caches of blocks leave out all blocks but the first and add what these
changed in an earlier step, steering included: the layers inside do not run, and a block that is a site as a whole,
whose hook does run, would be steered once more on top of it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

from dsas_core.model.sites import Roots, Site, modules

#: modules of diffusers.hooks: caches of blocks, and all caches
_OF_BLOCKS = ("first_block_cache", "mag_cache", "sea_cache")
_CACHES = (*_OF_BLOCKS, "faster_cache", "pyramid_attention_broadcast", "taylorseer_cache")


def caches_of(denoiser: nn.Module) -> list[str]:
    """The caches that are on, by the names of their modules in `diffusers.hooks`.

    Example:
        >>> caches_of(nn.Linear(2, 2))
        []
    """
    return list(dict.fromkeys(cache for module in denoiser.modules() for cache in _caches_at(module)))


def sites_steered_twice(roots: Roots, sites: Collection[Site]) -> list[Site]:
    """Sites that are blocks as a whole which a cache leaves out."""
    known = modules(roots)
    return [site for site in sites if set(_OF_BLOCKS).intersection(_caches_at(known[site.path]))]


def _caches_at(module: nn.Module) -> list[str]:
    hooks: Mapping[str, object] = getattr(getattr(module, "_diffusers_hook", None), "hooks", {})
    kinds = (type(hook).__module__.rpartition(".")[2] for hook in hooks.values())
    return [kind for kind in kinds if kind in _CACHES]
