"""What is told of a model family: its parts, where it can be steered, and how to read its clock and rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from torch import nn

from dsas_core.model.sites import Site

from .prompt_templates import PromptTemplate, plain

#: text encoders of which transformers 4 records what a layer makes before hooks come, where the denoiser reads what
#: was recorded
_RECORDED = ("Gemma2Model", "Qwen3Model", "Qwen3ForCausalLM", "Mistral3ForConditionalGeneration")


@dataclass(frozen=True)
class SiteGroup:
    """Sites of one role.

    Args:
        pattern: regular expression on canonical paths.
        layout, index, stream: of the sites, see `dsas_core.model.sites.Site`.
        unless: an attribute of a module that has no such site where it is true.
    """

    pattern: str
    layout: str = "last"
    index: int = 0
    stream: str = ""
    unless: str = ""

    def site(self, path: str) -> Site:
        """The site at a path of its pattern."""
        return Site(path, index=self.index, layout=self.layout, stream=self.stream)


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder of a pipeline.

    Args:
        part, tokenizer: attributes of the pipeline.
        negative_argument: the argument of `encode_prompt` that holds its negative prompt; where that is not given, the
            first encoder's counts.
        unused_layers: of its last layers, how many show nothing in what the denoiser reads of each token, before
            `clip_skip`.
        depth: of its first layers, how many do; None for all that are not `unused_layers`.
        kind: its class, where that tells families apart.
        wording: how the pipeline words a prompt for it.
    """

    part: str = "text_encoder"
    tokenizer: str = "tokenizer"
    negative_argument: str = "negative_prompt"
    unused_layers: int = 0
    depth: int | None = None
    kind: str = ""
    wording: PromptTemplate = plain

    def layers_read(self, module: nn.Module, layers: int, clip_skip: int = 0) -> int:
        """How many of the layers of the loaded module, the first of them, show in what the denoiser reads."""
        last = layers - self.unused_layers - clip_skip
        last = last if self.depth is None else min(last, self.depth)
        early = class_name(module) in _RECORDED and find_spec("transformers.utils.output_capturing") is None
        return last - 1 if early and last < layers else last


@dataclass(frozen=True)
class Family:
    """One model family.

    Args:
        name: for messages.
        denoiser: attribute of the pipeline.
        encoders: its text encoders; a pipeline may lack some, not all.
        groups: name of a role -> its sites; a role may lie in blocks of more than one kind.
        default: the groups that steer when the user names none.
        denoiser_default: the groups that "denoiser" stands for.
        heatmap_sites: the groups that a concept of text sites alone reads for the heat-map, without changing them.
        cross_attention: the group whose layers look from patches of the picture at the prompt's tokens, if any.
        classifier_sites: the group that tells what is in a picture (`held_out.Eyes`).
        edges: timesteps that separate the bins of denoiser sites, unless the user names others.
        timestep_range: what the clock shows at the noisy and at the clean end; 1000 and 0 for raw timesteps. Where the
            denoiser's config has a `timestep_scale`, times that.
        guidance: how classifier-free guidance asks the denoiser: "uncond, cond" and "cond, uncond" in one call of
            stacked rows, "two calls".
        negative_encoding: whether `encode_prompt` makes prompts and negative prompts "together", or is called for them
            "apart".
        negative_index: of what it makes together for two calls, which element is that of the negative prompts.
        sequence: how a picture's patches and a prompt's tokens lie in one sequence: "text, image" and "image, text" one
            behind the other, "tokens, image" with the picture right behind each row's own tokens.
        sequence_multiple: both are padded to multiples of that many positions.
    """

    name: str
    denoiser: str
    encoders: tuple[TextEncoder, ...]
    groups: Mapping[str, tuple[SiteGroup, ...]]
    default: tuple[str, ...]
    denoiser_default: tuple[str, ...]
    heatmap_sites: tuple[str, ...]
    cross_attention: str | None = None
    classifier_sites: str = "block"
    edges: tuple[float, ...] = (500.0,)
    timestep_range: tuple[float, float] = (1000.0, 0.0)
    guidance: str = "uncond, cond"
    negative_encoding: str = "together"
    negative_index: int | None = None
    sequence: str = "text, image"
    sequence_multiple: int = 1


def uncompiled(part: Any) -> Any:
    """A part of a pipeline without the wrapper of torch.compile."""
    return getattr(part, "_orig_mod", part)


def class_name(part: nn.Module | None) -> str:
    """The class of a part of a pipeline, compiled or not."""
    return type(uncompiled(part)).__name__
