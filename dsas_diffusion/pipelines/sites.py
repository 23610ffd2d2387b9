"""Where a pipeline can be steered: sites by role, by the names that people use, or by path."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import nn

from dsas_core.errors import DSASError, UnsupportedError
from dsas_core.model.sites import Site, canonical_path, find, modules

from .families.spec import Family, SiteGroup

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


def match_sites(family: Family, roots: Mapping[str, nn.Module], sites: str | Sequence[str] | None = None) -> list[Site]:
    """Sites below the roots of a pipeline of a family; `dsas_diffusion.find_sites` tells how they are named."""
    wanted = list(family.default) if sites is None else [sites] if isinstance(sites, str) else list(sites)
    return list(dict.fromkeys(site for pattern in wanted for site in _matching(family, roots, pattern)))


def site_name(site: Site | str) -> str:
    """What people call a site: "up.0.1.0" for a block of attention, "single.12", "text_2.5"."""
    name = site if isinstance(site, str) else site.path
    for pattern, called in _CALLED:
        name = re.sub(pattern, called, name)
    return name


def role_of(family: Family, site: Site) -> str:
    """The role that a site has in a family, or "" for one that was named by its path."""
    return next((role for role, group in _groups(family) if _is_in(site, group)), "")


def unused_layers(
    family: Family, roots: Mapping[str, nn.Module], sites: Iterable[Site], clip_skip: int = 0
) -> list[Site]:
    """Of some sites, those in text encoders behind the layer whose hidden states the denoiser reads."""
    encoders, known = {encoder.part: encoder for encoder in family.encoders}, modules(roots)
    unused = []
    for site in sites:
        layers, _, number = site.path.rpartition(".")
        encoder = encoders.get(site.root)
        if encoder is not None and number.isdecimal():
            count = sum(path.rpartition(".")[0] == layers for path in known)
            unused += [site] if int(number) >= encoder.layers_read(known[site.root], count, clip_skip) else []
    return unused


def _is_in(site: Site, group: SiteGroup) -> bool:
    here = re.fullmatch(group.pattern, site.path) is not None
    return here and (site.index, site.stream) == (group.index, group.stream)


def _matching(family: Family, roots: Mapping[str, nn.Module], pattern: str) -> Iterator[Site]:
    if pattern == "denoiser" or pattern in family.groups:
        for role in family.denoiser_default if pattern == "denoiser" else (pattern,):
            yield from sites_of_role(family, roots, role)
        return
    role, _, name = pattern.rpartition(":")
    usual = dict.fromkeys([*family.denoiser_default, "text"])
    if not role or role in family.groups:
        known = [
            site for one in ([role] if role else usual) for site in sites_of_role(family, roots, one, listed=False)
        ]
        called = [site for site in known if f"{site_name(site)}.".startswith(f"{name}.")]
        if called:
            yield from called
            return
    try:
        paths = find(roots, pattern)
    except DSASError as error:
        named = (site_name(site) for one in usual for site in sites_of_role(family, roots, one, listed=False))
        told = f"roles of this {family.name}: {', '.join(family.groups)}; names: {next(iter(named))!r} and the like"
        raise DSASError(f"{error}; {told}") from None
    for path in paths:
        yield _site(family, roots, path)


def sites_of_role(family: Family, roots: Mapping[str, nn.Module], role: str, *, listed: bool = True) -> list[Site]:
    """Sites of a role, without layers that nobody reads; none at all raises, where the user has `listed` the role."""
    found = [
        group.site(path)
        for group in family.groups[role]
        for path, module in modules(roots).items()
        if re.fullmatch(group.pattern, path) and not (group.unless and getattr(module, group.unless, False))
    ]
    if listed and not found:
        there = [one for one in family.groups if one != role and sites_of_role(family, roots, one, listed=False)]
        raise UnsupportedError(f"this {family.name} has no sites of the role {role!r}: it has {', '.join(there)}")
    unused = unused_layers(family, roots, found)
    return [site for site in found if site not in unused]


def _site(family: Family, roots: Mapping[str, nn.Module], path: str) -> Site:
    """The site at a path: as the first role that it belongs to has it, else by the kind of module."""
    for _, group in _groups(family):
        if re.fullmatch(group.pattern, path):
            return group.site(path)
    module = modules(roots)[canonical_path(path)]
    return Site(path, layout="first" if isinstance(module, nn.Conv2d | nn.GroupNorm) else "last")


def _groups(family: Family) -> Iterator[tuple[str, SiteGroup]]:
    return ((role, group) for role, groups in family.groups.items() for group in groups)
