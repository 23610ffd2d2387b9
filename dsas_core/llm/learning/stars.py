"""`stars(model)`: the concept that pushes several answers to one prompt apart."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ...concept.concept import Concept
from ...methods.unlearned import make_stars
from ...model.sites import Site
from ..model.layers import find_sites, roots_of


def stars(
    model: nn.Module,
    *,
    c: float = 0.5,
    site: str | Sequence[str] | None = None,
    gate: str = "on",
    seed: int = 0,
    name: str = "stars",
) -> Concept:
    """The concept of STARS (arXiv 2601.22010): the answers to one prompt in a batch are pushed apart.

    Nothing is learned.

    Args:
        model: a transformers language model.
        c: squared length of the offsets, as a share of the largest squared singular value of the answers' activations;
            the paper has 0.1 and 0.5. Strengths scale the length itself.
        site: where, see `find_sites`; None for the concatenated heads of the middle layer, before its output
            projection, as in the paper.
        gate: "on", as published; "stars" to steer as far as the answers are alike, "stars(least=0.5)" where the mean
            cosine of two is above that.
        seed: of the random directions that the offsets begin with.
        name: of the concept.

    Raises:
        DSASError: a value that an option does not take, or no such site.
        UnsupportedError: a model whose attention heads are not known, and no site.

    Example:
        >>> from dsas_core import llm
        >>> model, tokenizer = llm.load("builtin:chat", device="cpu")
        >>> stars(model, c=0.1)
        Concept('stars', stars+on, 1 sites, unit 1)
    """
    sites = [_middle_heads(model)] if site is None else find_sites(model, site)
    return make_stars(roots_of(model), sites, c=c, gate=gate, seed=seed, name=name)


def _middle_heads(model: nn.Module) -> Site:
    """All heads of the middle layer, of the stack that writes."""
    heads = dict.fromkeys(site.path for site in find_sites(model, "heads") if site.root != "encoder")
    return Site(list(heads)[len(heads) // 2], side="input")
