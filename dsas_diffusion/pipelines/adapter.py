"""What steering, learning and evaluation know of a diffusers pipeline: one object, handed on in place of the pipeline.

The class of the denoiser decides the family; where several families share one, the parts that the pipeline has decide.
An unknown family raises; nothing is guessed.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from torch import nn

from dsas_core.errors import UnavailableError, UnsupportedError
from dsas_core.model.loading import name_of
from dsas_core.model.sites import Site

from .families.spec import Family, TextEncoder, class_name, uncompiled
from .families.table import FAMILIES, TEXT_LAYERS
from .load import BUILTIN
from .prompt_tokens import PromptTokens
from .sites import match_sites, role_of, unused_layers

#: candidates for reading masks, at most
MASK_SITES = 12


class PipelineAdapter:
    """A diffusers pipeline of a known family, with what is known of it.

    Parts are looked up whenever they are asked for, as they may be compiled, offloaded or replaced in between.

    Args:
        pipe: a diffusers text-to-image pipeline.

    Raises:
        UnsupportedError: a pipeline without a denoiser, or with a denoiser or text encoder of an unknown class.
        UnavailableError: a pipeline that lacks a part that its family has.

    Attributes:
        pipe: the pipeline itself, to run it.
        family: its entry in the table of families.

    Example:
        >>> from dsas_diffusion import load_pipeline
        >>> adapter = PipelineAdapter(load_pipeline("builtin:emoji", device="cpu"))
        >>> adapter.family.name, list(adapter.roots), adapter.timestep_range
        ('Stable Diffusion', ['unet', 'text_encoder'], (1000.0, 0.0))
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.family: Family = _find_family(pipe)

    @property
    def name(self) -> str:
        """What it was loaded by: the name of a built-in model, else its `name_or_path`."""
        return name_of(self.pipe, BUILTIN)

    @property
    def is_builtin(self) -> bool:
        """Whether it comes with the package."""
        return self.name in BUILTIN

    @property
    def roots(self) -> dict[str, nn.Module]:
        """The modules that can be steered, by name: the denoiser and the text encoders that are loaded."""
        names = [self.family.denoiser, *(encoder.part for encoder in self.text_encoders)]
        return {name: getattr(self.pipe, name) for name in names}

    @property
    def text_encoders(self) -> list[TextEncoder]:
        """The text encoders that are loaded; some pipelines run without the largest, or on ready-made embeddings."""
        return _loaded_encoders(self.pipe, self.family)

    @property
    def tokens(self) -> list[PromptTokens]:
        """How each loaded text encoder tokenises prompts, in the pipeline's order.

        Raises:
            UnavailableError: no text encoder is loaded.
        """
        if not self.text_encoders:
            raise UnavailableError("the pipeline has no text encoder, whose tokens are asked for: load one")
        return [PromptTokens(self.pipe, encoder) for encoder in self.text_encoders]

    @property
    def denoiser(self) -> Any:
        """The UNet or transformer, without the wrapper of torch.compile."""
        return uncompiled(getattr(self.pipe, self.family.denoiser))

    @property
    def timestep_range(self) -> tuple[float, float]:
        """The denoiser's timestep at pure noise and at the clean picture."""
        scale = float(self.denoiser.config.get("timestep_scale", 1.0))
        noisy, clean = self.family.timestep_range
        return noisy * scale, clean * scale

    @property
    def size_multiple(self) -> int:
        """Pixels that the sides of pictures are multiples of: those of one patch of the denoiser."""
        config = self.denoiser.config
        patch = config.get("patch_size") or (config.get("all_patch_size") or (1,))[0]
        side = int(patch if isinstance(patch, int) else patch[-1])
        side = max(side, 2 if hasattr(self.pipe, "_pack_latents") else 1)
        return max(8, self.pipe.vae_scale_factor * side)

    @property
    def usual_size(self) -> int | None:
        """Pixels of a side that the pipeline draws by itself; None where it does not say."""
        sample = getattr(self.pipe, "default_sample_size", None) or self.denoiser.config.get("sample_size")
        if isinstance(sample, list | tuple):
            sample = max(sample, default=None)
        return None if sample is None else int(sample) * self.pipe.vae_scale_factor

    @cached_property
    def call_parameters(self) -> Mapping[str, inspect.Parameter]:
        """The parameters that the pipeline's `__call__` takes, by name."""
        return inspect.signature(type(self.pipe).__call__).parameters

    def check_loaded(self) -> None:
        """Raise an UnavailableError where a part that drawing from prompts needs is not loaded."""
        missing = [] if self.text_encoders else [self.family.encoders[0].part]
        missing += [] if getattr(self.pipe, "vae", None) is not None else ["vae"]
        if missing:
            raise UnavailableError(
                f"the pipeline's {' and '.join(missing)} is not loaded, and drawing from prompts takes it: load it"
            )

    def find_sites(self, sites: str | Sequence[str] | None = None) -> list[Site]:
        """Sites by role, name or path; see `dsas_diffusion.find_sites`."""
        return match_sites(self.family, self.roots, sites)

    def find_mask_sites(self) -> list[Site]:
        """Sites that may show where in a picture a thing is, at most `MASK_SITES`, evenly among the family's."""
        sites = self.find_sites(self.family.mask_sites)
        return sites[:: -(-len(sites) // MASK_SITES)]

    def role_of(self, site: Site) -> str:
        """The role that a site has in the family, or "" for a site that was named by its path."""
        return role_of(self.family, site)

    def unused_layers(self, sites: Iterable[Site], clip_skip: int = 0) -> list[Site]:
        """Of some sites, those in text encoders behind the layer whose hidden states the denoiser reads."""
        return unused_layers(self.family, self.roots, sites, clip_skip)


def adapt(pipe: Any) -> PipelineAdapter:
    """The adapter of a pipeline; an adapter is returned as it is.

    Example:
        >>> from dsas_diffusion import load_pipeline
        >>> adapter = adapt(load_pipeline("builtin:emoji", device="cpu"))
        >>> adapt(adapter) is adapter
        True
    """
    return pipe if isinstance(pipe, PipelineAdapter) else PipelineAdapter(pipe)


def find_sites(pipe: Any, sites: str | Sequence[str] | None = None) -> list[Site]:
    """Sites of a pipeline.

    Args:
        pipe: a diffusers text-to-image pipeline of a known family, or its adapter.
        sites: None for the family's default roles, or one of these, or a list of them: a role ("cross", "text"),
            "denoiser" for all of the denoiser's default roles; a name as `site_name` gives it, or how it begins
            ("up.0.1"), among the default roles of denoiser and text encoders, or of the role before a colon
            ("self:up.0.1"); a regular expression on canonical paths.

    Returns:
        The sites, each once, in the order of the patterns and of the model.

    Raises:
        DSASError: a pattern that matches nothing; the message lists the roles, and what comes nearest.

    Example:
        >>> from dsas_diffusion import load_pipeline
        >>> pipe = load_pipeline("builtin:emoji", device="cpu")
        >>> [str(site) for site in find_sites(pipe, "mid")]
        ['unet.mid_block.attentions.0.transformer_blocks.0.attn2']
    """
    return adapt(pipe).find_sites(sites)


def _find_family(pipe: Any) -> Family:
    parts = [getattr(pipe, name, None) for name in ("unet", "transformer")]
    denoiser = next((part for part in parts if part is not None), None)
    if denoiser is None:
        raise UnsupportedError(
            f"{type(pipe).__name__} has neither unet nor transformer: expected a text-to-image pipeline"
        )
    kind = class_name(denoiser)
    if kind not in FAMILIES:
        raise UnsupportedError(
            f"{kind} is not a family that is known; known are {', '.join(FAMILIES)}: describe another with an entry in "
            "families.yaml, see dsas_diffusion.pipelines.families.table"
        )
    candidates = FAMILIES[kind]
    family = next((candidate for candidate in candidates if _has_encoders_of(pipe, candidate)), candidates[-1])
    _check_parts(pipe, family)
    return family


def _loaded_encoders(pipe: Any, family: Family) -> list[TextEncoder]:
    return [encoder for encoder in family.encoders if getattr(pipe, encoder.part, None) is not None]


def _has_encoders_of(pipe: Any, family: Family) -> bool:
    """Whether a pipeline has every text encoder of a family among its parts, loaded or not."""
    return all(
        hasattr(pipe, encoder.part) and encoder.kind in ("", class_name(getattr(pipe, encoder.part)))
        for encoder in family.encoders
    )


def _check_parts(pipe: Any, family: Family) -> None:
    """Raise where a pipeline lacks a part that its family has, or has a text encoder of an unknown class."""
    encoders = _loaded_encoders(pipe, family)
    needed = [family.denoiser, "scheduler", *(encoder.tokenizer for encoder in encoders)]
    missing = [part for part in needed if getattr(pipe, part, None) is None]
    missing += [part for part in ("vae", family.encoders[0].part) if not hasattr(pipe, part)]
    # families of one denoiser class are told apart by these
    missing += [encoder.part for encoder in family.encoders if encoder.kind and encoder not in encoders]
    if missing:
        expected = [part for encoder in family.encoders for part in (encoder.part, encoder.tokenizer)]
        raise UnavailableError(
            f"the pipeline lacks {', '.join(missing)}; a {family.name} pipeline has "
            f"{', '.join([family.denoiser, 'scheduler', 'vae', *expected])}"
        )
    for encoder in encoders:
        kind = class_name(getattr(pipe, encoder.part))
        if kind not in TEXT_LAYERS:
            raise UnsupportedError(
                f"{type(pipe).__name__} has a {kind} for a text encoder; {family.name} is known with "
                f"{', '.join(TEXT_LAYERS)}: describe its layers below text_layers in families.yaml, see "
                "dsas_diffusion.pipelines.families.table"
            )
