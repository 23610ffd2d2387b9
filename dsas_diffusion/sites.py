"""Where a pipeline can be steered: sites by role, by the names that people use, or by path."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dsas_core.errors import DSASError
from dsas_core.sites import Site, canonical, find, modules

from .families import family_of, layers_read, roots_of
from .family import Family, Group

#: parts of a path, and what people call them; the role says the rest ("attn2" is "cross")
_CALLED = (
    (r"^(unet|transformer)(\.|$)", ""),
    (r"^text_encoder(_\d)?\.((encoder|model|language_model)\.)*(layers|block)\.", r"text\1."),
    (r"(^|\.)(down|up)_blocks\.", r"\1\2."),
    (r"(^|\.)mid_block", r"\1mid"),
    (r"(^|\.)single_transformer_blocks\.", r"\1single."),
    (r"^(transformer_blocks|layers)\.", "block."),
    (r"\.transformer_blocks\.", "."),
    (r"\.attentions\.", "."),
    (r"\.resnets\.", ".resnet."),
    (r"\.(attn\d?|attention)$", ""),
)


def find_sites(pipe: Any, sites: str | Sequence[str] | None = None) -> list[Site]:
    """Sites of a pipeline.

    Args:
        sites: None for the family's default roles, or one of these, or a list of them: a role ("cross", "text"),
            "denoiser" for all of the denoiser's default roles; a name as `site_name` gives it, or how it begins
            ("up.0.1"), among the default roles of denoiser and text encoders, or of the role before a colon
            ("self:up.0.1"); a regular expression on canonical paths.

    Raises:
        DSASError: a pattern that matches nothing; the message lists the roles, and what comes nearest.
    """
    family, roots = family_of(pipe), roots_of(pipe)
    wanted = list(family.default) if sites is None else [sites] if isinstance(sites, str) else list(sites)
    return list(dict.fromkeys(site for pattern in wanted for site in _matching(family, roots, pattern)))


def site_name(site: Site | str) -> str:
    """What people call a site: "up.0.1.0" for a block of attention, "single.12", "text_2.5"."""
    name = site if isinstance(site, str) else site.path
    for pattern, called in _CALLED:
        name = re.sub(pattern, called, name)
    return name


def role_of(pipe: Any, site: Site) -> str:
    """The role that a site has in its family, or "" for one that was named by its path."""
    return next((role for role, group in _groups(family_of(pipe)) if _is_in(site, group)), "")


def unread(pipe: Any, sites: Iterable[Site], clip_skip: int = 0) -> list[Site]:
    """Sites in text encoders behind the layer whose tokens the denoiser reads."""
    return _behind(family_of(pipe), modules(roots_of(pipe)), sites, clip_skip)


def _behind(family: Family, known: Mapping[str, nn.Module], sites: Iterable[Site], clip_skip: int = 0) -> list[Site]:
    encoders = {encoder.part: encoder for encoder in family.encoders}
    found = []
    for site in sites:
        layers, _, number = site.path.rpartition(".")
        encoder = encoders.get(site.root)
        if encoder is not None and number.isdecimal():
            count = sum(path.rpartition(".")[0] == layers for path in known)
            found += [site] if int(number) >= layers_read(encoder, known[site.root], count, clip_skip) else []
    return found


def _is_in(site: Site, group: Group) -> bool:
    here = re.fullmatch(group.pattern, site.path) is not None
    return here and (site.index, site.stream) == (group.index, group.stream)


def _matching(family: Family, roots: Mapping[str, nn.Module], pattern: str) -> Iterator[Site]:
    if pattern == "denoiser" or pattern in family.groups:
        for role in family.denoiser_default if pattern == "denoiser" else (pattern,):
            yield from _of_role(family, roots, role)
        return
    role, _, name = pattern.rpartition(":")
    usual = dict.fromkeys([*family.denoiser_default, "text"])
    if not role or role in family.groups:
        known = [site for one in ([role] if role else usual) for site in _of_role(family, roots, one, listed=False)]
        called = [site for site in known if f"{site_name(site)}.".startswith(f"{name}.")]
        if called:
            yield from called
            return
    try:
        paths = find(roots, pattern)
    except DSASError as error:
        named = (site_name(site) for one in usual for site in _of_role(family, roots, one, listed=False))
        told = f"roles of this {family.name}: {', '.join(family.groups)}; names: {next(iter(named))!r} and the like"
        raise DSASError(f"{error}; {told}") from None
    for path in paths:
        yield _site(family, roots, path)


def _of_role(family: Family, roots: Mapping[str, nn.Module], role: str, *, listed: bool = True) -> list[Site]:
    """Sites of a role, without layers that nobody reads; none at all raises, where the user has `listed` the role."""
    known = modules(roots)
    found = [
        group.site(path)
        for group in family.groups[role]
        for path, module in known.items()
        if re.fullmatch(group.pattern, path) and not (group.unless and getattr(module, group.unless, False))
    ]
    if listed and not found:
        there = [one for one in family.groups if one != role and _of_role(family, roots, one, listed=False)]
        raise DSASError(f"this {family.name} has no sites of the role {role!r}: it has {', '.join(there)}")
    behind = _behind(family, known, found)
    return [site for site in found if site not in behind]


def _site(family: Family, roots: Mapping[str, nn.Module], path: str) -> Site:
    """The site at a path: as the first role that it belongs to has it, else by the kind of module."""
    for _, group in _groups(family):
        if re.fullmatch(group.pattern, path):
            return group.site(path)
    module = modules(roots)[canonical(path)]
    return Site(path, layout="first" if isinstance(module, nn.Conv2d | nn.GroupNorm) else "last")


def _groups(family: Family) -> Iterator[tuple[str, Group]]:
    return ((role, group) for role, groups in family.groups.items() for group in groups)


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
        DSASError: there is none, or none of which it is known how it looks.
    """
    family, roots = family_of(pipe), roots_of(pipe)
    if family.looking is None:
        raise DSASError(f"words are known of UNets with cross-attention and CLIP's tokens, not of {family.name}")
    paths = {site.path for site in _of_role(family, roots, family.looking, listed=False)}
    found = [Looking(path, module) for path, module in modules(roots).items() if path in paths]
    found = [layer for layer in found if getattr(layer.module, "is_cross_attention", True)]
    if not found:
        raise DSASError(f"{family.denoiser} has no cross-attention, so it looks at no words")
    return found
