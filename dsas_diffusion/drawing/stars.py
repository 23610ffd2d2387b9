"""`stars(pipe)`: the concept that pushes several pictures of one prompt apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dsas_core.concept.concept import Concept
from dsas_core.methods.unlearned import make_stars
from dsas_core.model.sites import Site

from ..pipelines.adapter import PipelineAdapter, adapt
from ..pipelines.sites import match_sites, sites_of_role


def stars(
    pipe: Any,
    *,
    c: float = 0.5,
    site: str | Sequence[str] | None = None,
    gate: str = "on",
    seed: int = 0,
    name: str = "stars",
) -> Concept:
    """The concept of STARS (arXiv 2601.22010): the pictures of one prompt in a batch are pushed apart.

    Nothing is learned. The paper steers language models; the sites in pictures are ours.

    Args:
        pipe: a diffusers text-to-image pipeline of a known family, or its `PipelineAdapter`.
        c: squared length of the offsets, as a share of the largest squared singular value of the pictures' activations
            at a patch. Strengths scale the length itself.
        site: where, see `find_sites`; None for the output of the middle block of the denoiser.
        gate: "on"; "stars" to steer as far as the pictures are alike, "stars(least=0.5)" where the mean cosine of two
            is above that.
        seed: of the random directions that the offsets begin with.
        name: of the concept.

    Raises:
        DSASError: a value that an option does not take, or no such site.

    Example:
        >>> from dsas_diffusion import load_pipeline, steer
        >>> pipe = load_pipeline("builtin:emoji", device="cpu")
        >>> with steer(pipe, {stars(pipe): 1.0}):
        ...     images = pipe("a dog", num_images_per_prompt=4, num_inference_steps=1).images
    """
    adapter = adapt(pipe)
    sites = [_middle_block(adapter)] if site is None else match_sites(adapter.family, adapter.roots, site)
    return make_stars(adapter.roots, sites, c=c, gate=gate, seed=seed, name=name)


def _middle_block(adapter: PipelineAdapter) -> Site:
    """The block between the way down and the way up, or halfway through a denoiser whose blocks are alike."""
    blocks = sites_of_role(adapter.family, adapter.roots, "block")
    middle = [site for site in blocks if ".mid_block." in f"{site.path}."] or [blocks[len(blocks) // 2]]
    return middle[0]
