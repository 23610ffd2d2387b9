"""What steering, learning and evaluation know of a diffusers pipeline: one object, handed on in place of the pipeline.

Only this file and `families` read a pipeline's parts; everything else asks a `PipelineAdapter`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from dsas_core.sites import Site

from .families import bounds_of, check_loaded, denoiser_of, encoders_of, family_of, roots_of
from .family import Family, TextEncoder
from .sites import find_sites, role_of, unread
from .tokens import Tokens, tokens_of


class PipelineAdapter:
    """A diffusers pipeline of a known family, with what is known of it.

    Parts are looked up when they are asked for, as they may be compiled, offloaded or replaced in between.

    Args:
        pipe: a diffusers text-to-image pipeline.

    Raises:
        DSASError: a pipeline of no known family, or without a part that its family has.

    Attributes:
        pipe: the pipeline itself, to run it.
        family: its entry in the table of families.
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.family: Family = family_of(pipe)

    @property
    def roots(self) -> dict[str, nn.Module]:
        """The modules that can be steered, by name: the denoiser and the text encoders that are loaded."""
        return roots_of(self.pipe)

    @property
    def text_encoders(self) -> list[TextEncoder]:
        """The text encoders that are loaded, of those of the family."""
        return encoders_of(self.pipe)

    @property
    def tokens(self) -> list[Tokens]:
        """What each loaded text encoder makes of a prompt."""
        return tokens_of(self.pipe)

    @property
    def denoiser(self) -> nn.Module:
        """The UNet or transformer, without the wrapper of torch.compile."""
        return denoiser_of(self.pipe)

    @property
    def timestep_range(self) -> tuple[float, float]:
        """The denoiser's timestep at pure noise and at the clean picture."""
        return bounds_of(self.pipe)

    def check_loaded(self) -> None:
        """Raise a DSASError where a part that drawing from prompts needs is not loaded."""
        check_loaded(self.pipe)

    def find_sites(self, sites: str | Sequence[str] | None = None) -> list[Site]:
        """Sites by role, name or path; see `dsas_diffusion.find_sites`."""
        return find_sites(self.pipe, sites)

    def role_of(self, site: Site) -> str:
        """The role that a site has in the family, or "" for one that was named by its path."""
        return role_of(self.pipe, site)

    def unused_layers(self, sites: Iterable[Site], clip_skip: int = 0) -> list[Site]:
        """Of some sites, those in text encoders behind the layer whose hidden states the denoiser reads."""
        return unread(self.pipe, sites, clip_skip)


def adapt(pipe: Any) -> PipelineAdapter:
    """The adapter of a pipeline; one that is an adapter already is given back."""
    return pipe if isinstance(pipe, PipelineAdapter) else PipelineAdapter(pipe)
