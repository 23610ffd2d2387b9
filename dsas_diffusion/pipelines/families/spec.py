"""What is described of a model family: its parts, where it can be steered, and how to read its timesteps and rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from torch import nn

from dsas_core.errors import DSASError
from dsas_core.model.sites import Site
from dsas_core.model.wrappers import bare

from .prompt_templates import PromptTemplate, plain

#: text encoders whose layers' outputs transformers 4 records before hooks run; the denoiser reads what was recorded
_RECORDED_BEFORE_HOOKS = ("Gemma2Model", "Qwen3Model", "Qwen3ForCausalLM", "Mistral3ForConditionalGeneration")


@dataclass(frozen=True)
class SiteGroup:
    """Sites of one role.

    Args:
        pattern: regular expression on canonical paths.
        layout: of the sites, see `dsas_core.model.sites.Site`.
        index: of the output, see `Site`.
        stream: "image" or "text" where both share a sequence, see `Site`.
        unless: an attribute of a module that has no such site where the attribute is true.
        argument: of the input, see `Site`; "" for the output.

    Example:
        >>> SiteGroup(r"unet[.]mid_block[.].*[.]attn2").site("unet.mid_block.attentions.0.attn2").root
        'unet'
    """

    pattern: str
    layout: str = "last"
    index: int = 0
    stream: str = ""
    unless: str = ""
    argument: str = ""

    def site(self, path: str) -> Site:
        """The site at a path that matches the pattern."""
        side = "input" if self.argument else "output"
        return Site(path, side, self.index, layout=self.layout, stream=self.stream, argument=self.argument)


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder of a pipeline.

    Args:
        part: attribute of the pipeline that holds it.
        tokenizer: attribute of the pipeline that holds its tokenizer.
        negative_argument: the argument of `encode_prompt` that holds its negative prompt; where it is not given, that
            of the first encoder counts.
        unused_layers: how many of its last layers have no effect on what the denoiser reads of each token, before
            `clip_skip`.
        depth: how many of its first layers have; None for all that are not `unused_layers`.
        kind: its class, where families are told apart by it; "" for any.
        prompt_template: how the pipeline wraps a prompt before it is tokenised.
    """

    part: str = "text_encoder"
    tokenizer: str = "tokenizer"
    negative_argument: str = "negative_prompt"
    unused_layers: int = 0
    depth: int | None = None
    kind: str = ""
    prompt_template: PromptTemplate = plain

    def layers_read(self, module: nn.Module, layers: int, clip_skip: int = 0) -> int:
        """How many of the first layers have an effect on what the denoiser reads.

        Args:
            module: the loaded text encoder.
            layers: how many it has.
            clip_skip: how many of the last ones the generation leaves out.
        """
        last = layers - self.unused_layers - clip_skip
        last = last if self.depth is None else min(last, self.depth)
        early = (
            class_name(module) in _RECORDED_BEFORE_HOOKS and find_spec("transformers.utils.output_capturing") is None
        )
        return last - 1 if early and last < layers else last


#: fields of a family that take a few values
_CHOICES = {
    "guidance": ("uncond, cond", "cond, uncond", "two calls"),
    "negative_encoding": ("together", "apart"),
    "sequence": ("text, image", "image, text", "tokens, image"),
}


# size: one field for each thing that differs between families
@dataclass(frozen=True)
class Family:
    """One model family.

    Args:
        name: for messages.
        denoiser: attribute of the pipeline that holds the denoiser.
        encoders: its text encoders; a pipeline may lack some, not all.
        groups: role -> its sites; a role may lie in blocks of more than one kind.
        default: the roles that steer when the user names none.
        denoiser_default: the roles that "denoiser" stands for.
        cross_attention: the role whose layers attend from patches of the picture to the prompt's tokens, if any.
        classifier_sites: the role whose activations show what is in a picture (`held_out_trial.OutcomeClassifier`).
        mask_sites: the role whose activations show where in a picture a thing is: candidates for reading masks.
        edges: timesteps that separate the bins of denoiser sites, unless the user names others.
        timestep_range: the denoiser's timestep at pure noise and at the clean picture; 1000 and 0 for raw timesteps.
            Where its config has a `timestep_scale`, times that.
        guidance: how the branches of classifier-free guidance are batched: "uncond, cond" or "cond, uncond" in one call
            of stacked rows, or "two calls", of which the one for the prompts comes first.
        negative_encoding: whether `encode_prompt` encodes prompts and negative prompts "together", or is called for
            each of them ("apart").
        negative_index: where it encodes both together, which element of its result is that of the negative prompts.
        sequence: how a picture's patches and a prompt's tokens lie in one sequence: "text, image" or "image, text" one
            behind the other, "tokens, image" with the picture right behind each row's own tokens.
        sequence_multiple: both are padded to multiples of that many positions.
    """

    name: str
    denoiser: str
    encoders: tuple[TextEncoder, ...]
    groups: Mapping[str, tuple[SiteGroup, ...]]
    default: tuple[str, ...]
    denoiser_default: tuple[str, ...]
    cross_attention: str | None = None
    classifier_sites: str = "block"
    mask_sites: str = "block"
    edges: tuple[float, ...] = (500.0,)
    timestep_range: tuple[float, float] = (1000.0, 0.0)
    guidance: str = "uncond, cond"
    negative_encoding: str = "together"
    negative_index: int | None = None
    sequence: str = "text, image"
    sequence_multiple: int = 1

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise DSASError(f"family {self.name!r}: {name} {value!r}, expected one of {choices}")
        named = {*self.default, *self.denoiser_default, self.mask_sites}
        named |= {self.cross_attention} if self.cross_attention else set()
        if unknown := sorted(named - set(self.groups)):
            raise DSASError(f"family {self.name!r} names roles without sites: {', '.join(unknown)}")


def uncompiled(part: Any) -> Any:
    """A part of a pipeline without the wrappers of torch.compile and PEFT."""
    return bare(part) if isinstance(part, nn.Module) else part


def class_name(part: nn.Module | None) -> str:
    """The class of a part of a pipeline, compiled or not."""
    return type(uncompiled(part)).__name__
