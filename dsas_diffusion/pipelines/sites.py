"""Where a pipeline can be steered: sites by role, by the names that people use, or by path."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from torch import nn

from dsas_core.errors import DSASError, UnsupportedError
from dsas_core.model.sites import Site, canonical_path, find, modules
from dsas_core.model.wrappers import bare

from .families.spec import Family, SiteGroup

#: (part of a path, what users write for it); the role says the rest ("attn2" is "cross")
_SHORT_NAMES = (
    (r"^\w+:input:\w+$", "embeddings"),
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
    """Sites of a pipeline of a family, each once; `dsas_diffusion.find_sites` says how they are named.

    Args:
        family: of the pipeline.
        roots: its denoiser and text encoders, by name.
        sites: a role, name or path, or a list of them; None for the family's default roles.
    """
    patterns = list(family.default) if sites is None else [sites] if isinstance(sites, str) else list(sites)
    return list(dict.fromkeys(site for pattern in patterns for site in _match(family, roots, pattern)))


def site_name(site: Site | str) -> str:
    """What users call a site.

    Example:
        >>> site_name("unet.up_blocks.0.attentions.1.transformer_blocks.0.attn2")
        'up.0.1.0'
        >>> site_name("transformer.single_transformer_blocks.12.attn"), site_name("text_encoder_2.encoder.layers.5")
        ('single.12', 'text_2.5')
        >>> site_name("unet:input:encoder_hidden_states")
        'embeddings'
    """
    if isinstance(site, Site) and site.argument:
        return "embeddings"
    name = site if isinstance(site, str) else site.path
    for pattern, short in _SHORT_NAMES:
        name = re.sub(pattern, short, name)
    return name


def has_patches(site: Site, denoiser: str) -> bool:
    """Whether positions at a site are patches of the picture, and not words of the prompt.

    Args:
        site: where.
        denoiser: name of the denoiser's root.

    Example:
        >>> given = Site("unet", side="input", argument="encoder_hidden_states")
        >>> has_patches(Site("unet.mid_block.attentions.0"), "unet"), has_patches(given, "unet")
        (True, False)
    """
    return site.root == denoiser and not site.argument


def role_of(family: Family, site: Site) -> str:
    """The role that a site has in a family, or "" for a site that was named by its path."""
    for role, group in _groups(family):
        if group.site(site.path) == replace(site, tokens=None, channels=None) and re.fullmatch(
            group.pattern, site.path
        ):
            return role
    return ""


def unused_layers(
    family: Family, roots: Mapping[str, nn.Module], sites: Iterable[Site], clip_skip: int = 0
) -> list[Site]:
    """Of some sites, those in text encoders behind the layer whose hidden states the denoiser reads.

    Args:
        family: of the pipeline.
        roots: its denoiser and text encoders, by name.
        sites: of which to choose.
        clip_skip: how many of the last layers the generation leaves out.
    """
    encoders, known = {encoder.part: encoder for encoder in family.encoders}, modules(roots)
    unused = []
    for site in sites:
        layers, _, number = site.path.rpartition(".")
        encoder = encoders.get(site.root)
        if encoder is not None and number.isdecimal():
            count = sum(path.rpartition(".")[0] == layers for path in known)
            unused += [site] if int(number) >= encoder.layers_read(known[site.root], count, clip_skip) else []
    return unused


def sites_of_role(family: Family, roots: Mapping[str, nn.Module], role: str, *, required: bool = True) -> list[Site]:
    """Sites of a role, without layers that the denoiser does not read.

    Raises:
        UnsupportedError: there are none, and they are `required`.
    """
    sites = [
        group.site(path)
        for group in family.groups[role]
        for path, module in modules(roots).items()
        if re.fullmatch(group.pattern, path) and not (group.unless and getattr(module, group.unless, False))
    ]
    if required and not sites:
        roles = [
            other for other in family.groups if other != role and sites_of_role(family, roots, other, required=False)
        ]
        raise UnsupportedError(f"this {family.name} has no sites of the role {role!r}: it has {', '.join(roles)}")
    unused = unused_layers(family, roots, sites)
    return [site for site in sites if site not in unused]


def _match(family: Family, roots: Mapping[str, nn.Module], pattern: str) -> list[Site]:
    """The sites of one role, name or path."""
    if pattern == "denoiser" or pattern in family.groups:
        roles = family.denoiser_default if pattern == "denoiser" else (pattern,)
        return [site for role in roles for site in sites_of_role(family, roots, role)]
    role, _, name = pattern.rpartition(":")
    usual = dict.fromkeys([*family.denoiser_default, "text"])
    if not role or role in family.groups:
        roles = (role,) if role else tuple(usual)
        known = [site for role in roles for site in sites_of_role(family, roots, role, required=False)]
        named = [site for site in known if f"{site_name(site)}.".startswith(f"{name}.")]
        if named:
            return named
    try:
        return [_site(family, roots, path) for path in find(roots, pattern)]
    except DSASError as error:
        names = (site_name(site) for role in usual for site in sites_of_role(family, roots, role, required=False))
        raise DSASError(
            f"{error}; roles of this {family.name}: {', '.join(family.groups)}; names: {next(names)!r} and the like"
        ) from None


def _site(family: Family, roots: Mapping[str, nn.Module], path: str) -> Site:
    """The site at a path: as the first role that it belongs to has it, else by the kind of module."""
    for _, group in _groups(family):
        if re.fullmatch(group.pattern, path) and not group.argument:
            return group.site(path)
    module = bare(modules(roots)[canonical_path(path)])
    return Site(path, layout="first" if isinstance(module, nn.Conv2d | nn.GroupNorm) else "last")


def _groups(family: Family) -> Iterator[tuple[str, SiteGroup]]:
    return ((role, group) for role, groups in family.groups.items() for group in groups)
