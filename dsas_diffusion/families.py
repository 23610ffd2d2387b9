"""What is known about each model family: which parts can be steered, where, and how to read its clock and rows.

A table, no guessing: an unknown family raises. The family is told by the class of the denoiser, and where two share one
by the parts that the pipeline has. To describe another: an entry in `FAMILIES` and, if its text encoder is new, one in
`TEXT_LAYERS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from torch import nn

from dsas_core.errors import DSASError

from . import wording
from .family import Family, Group, TextEncoder

#: class of a text encoder -> its layers, below its own path
TEXT_LAYERS: Mapping[str, str] = {
    "CLIPTextModel": r"encoder\.layers\.\d+",
    "CLIPTextModelWithProjection": r"encoder\.layers\.\d+",
    "T5EncoderModel": r"encoder\.block\.\d+",
    "Gemma2Model": r"layers\.\d+",
    "Qwen3Model": r"layers\.\d+",
    "Qwen3ForCausalLM": r"model\.layers\.\d+",
    "Qwen2_5_VLForConditionalGeneration": r"model\.language_model\.layers\.\d+",
    "Mistral3ForConditionalGeneration": r"model\.language_model\.layers\.\d+",
}

#: of these, transformers 4 records what a layer makes before hooks come, where the denoiser reads what was recorded
_RECORDED = ("Gemma2Model", "Qwen3Model", "Qwen3ForCausalLM", "Mistral3ForConditionalGeneration")

_TEXT = Group(rf"text_encoder(_\d)?\.({'|'.join(dict.fromkeys(TEXT_LAYERS.values()))})")
_UNET: Mapping[str, tuple[Group, ...]] = {
    "cross": (Group(r"unet\..*\.attn2"),),
    "self": (Group(r"unet\..*\.attn1"),),
    "block": (Group(r"unet\.(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.(attentions|resnets)\.\d+", "first"),),
    "text": (_TEXT,),
}
#: transformers whose blocks attend to themselves, then to the prompt
_CROSSING: Mapping[str, tuple[Group, ...]] = {
    "cross": (Group(r"transformer\.transformer_blocks\.\d+\.attn2"),),
    "self": (Group(r"transformer\.transformer_blocks\.\d+\.attn1"),),
    "block": (Group(r"transformer\.transformer_blocks\.\d+"),),
    "text": (_TEXT,),
}

_SD = Family(
    name="Stable Diffusion",
    denoiser="unet",
    encoders=(TextEncoder(),),
    groups=_UNET,
    default=("text",),
    denoiser_default=("cross",),
    watched=("cross",),
    looking="cross",
)
_SDXL = replace(
    _SD,
    name="Stable Diffusion XL",
    encoders=(TextEncoder(unread=1), TextEncoder("text_encoder_2", "tokenizer_2", "negative_prompt_2", unread=1)),
)
#: attends to picture and prompt at once
_SD3 = Family(
    name="Stable Diffusion 3",
    denoiser="transformer",
    encoders=(*_SDXL.encoders, TextEncoder("text_encoder_3", "tokenizer_3", "negative_prompt_3")),
    groups={
        "image": (Group(r"transformer\.transformer_blocks\.\d+\.attn", stream="image"),),
        "prompt": (
            Group(r"transformer\.transformer_blocks\.\d+\.attn", index=1, stream="text", unless="context_pre_only"),
        ),
        "self": (Group(r"transformer\.transformer_blocks\.\d+\.attn2"),),
        "block": (Group(r"transformer\.transformer_blocks\.\d+", index=1, stream="image"),),
        "text": (_TEXT,),
    },
    default=("image",),
    denoiser_default=("image",),
    watched=("image",),
)
_FLUX = replace(
    _SD3,
    name="FLUX.1",
    encoders=(TextEncoder(), TextEncoder("text_encoder_2", "tokenizer_2", "negative_prompt_2")),
    groups={
        "image": (
            Group(r"transformer\.transformer_blocks\.\d+\.attn", stream="image"),
            Group(r"transformer\.single_transformer_blocks\.\d+\.attn", stream="image"),
        ),
        "prompt": (
            Group(r"transformer\.transformer_blocks\.\d+\.attn", index=1, stream="text"),
            Group(r"transformer\.single_transformer_blocks\.\d+\.attn", stream="text"),
        ),
        "block": (Group(r"transformer\.(single_)?transformer_blocks\.\d+", index=1, stream="image"),),
        "text": (_TEXT,),
    },
    bounds=(1.0, 0.0),
    guidance="two calls",
    negatives="apart",
)
_PIXART = replace(_SD, name="PixArt", denoiser="transformer", groups=_CROSSING, looking=None)
_SANA = replace(_PIXART, name="Sana", encoders=(TextEncoder(wording=wording.instructed),))
_FLUX2 = replace(
    _FLUX,
    name="FLUX.2",
    encoders=(TextEncoder(kind="Mistral3ForConditionalGeneration", depth=30, wording=wording.conversation),),
    groups={
        **_FLUX.groups,
        "block": (
            Group(r"transformer\.transformer_blocks\.\d+", index=1, stream="image"),
            Group(r"transformer\.single_transformer_blocks\.\d+", stream="image"),
        ),
    },
)
_KLEIN = replace(
    _FLUX2,
    name="FLUX.2 [klein]",
    encoders=(TextEncoder(kind="Qwen3ForCausalLM", depth=27, wording=wording.unthinking),),
)
_QWEN = replace(
    _FLUX,
    name="Qwen-Image",
    encoders=(TextEncoder(wording=wording.described),),
    groups={
        "image": (Group(r"transformer\.transformer_blocks\.\d+\.attn", stream="image"),),
        "prompt": (Group(r"transformer\.transformer_blocks\.\d+\.attn", index=1, stream="text"),),
        "block": (Group(r"transformer\.transformer_blocks\.\d+", index=1, stream="image"),),
        "text": (_TEXT,),
    },
)
_Z_IMAGE = replace(
    _SD3,
    name="Z-Image",
    encoders=(TextEncoder(unread=1, wording=wording.thinking),),
    groups={
        "image": (Group(r"transformer\.layers\.\d+\.attention", stream="image"),),
        "prompt": (Group(r"transformer\.layers\.\d+\.attention", stream="text"),),
        "block": (Group(r"transformer\.layers\.\d+", stream="image"),),
        "text": (_TEXT,),
    },
    bounds=(0.0, 1.0),
    guidance="cond, uncond",
    sequence="image, text",
    multiple=32,
)
_LUMINA2 = replace(
    _SD3,
    name="Lumina 2",
    encoders=(TextEncoder(unread=1, wording=wording.assisted),),
    groups={
        "image": (Group(r"transformer\.layers\.\d+\.attn", stream="image"),),
        "prompt": (Group(r"transformer\.layers\.\d+\.attn", stream="text"),),
        "block": (Group(r"transformer\.layers\.\d+", stream="image"),),
        "text": (_TEXT,),
    },
    bounds=(0.0, 1.0),
    guidance="two calls",
    negative=2,
    sequence="tokens, image",
)

#: class of the denoiser -> its family, or those that share it, the one with more parts first
FAMILIES: Mapping[str, tuple[Family, ...]] = {
    "UNet2DConditionModel": (_SDXL, _SD),
    "SD3Transformer2DModel": (_SD3,),
    "FluxTransformer2DModel": (_FLUX,),
    "PixArtTransformer2DModel": (_PIXART,),
    "SanaTransformer2DModel": (_SANA,),
    "Flux2Transformer2DModel": (_KLEIN, _FLUX2),
    "QwenImageTransformer2DModel": (_QWEN,),
    "ZImageTransformer2DModel": (_Z_IMAGE,),
    "Lumina2Transformer2DModel": (_LUMINA2,),
}


def family_of(pipe: Any) -> Family:
    """The family of a pipeline.

    Raises:
        DSASError: the pipeline has no denoiser or text encoder that the table knows, or lacks a part that its family
            has.
    """
    parts = [getattr(pipe, name, None) for name in ("unet", "transformer")]
    denoiser = next((part for part in parts if part is not None), None)
    if denoiser is None:
        raise DSASError(f"{type(pipe).__name__} has neither unet nor transformer: expected a text-to-image pipeline")
    kind = _kind(denoiser)
    if kind not in FAMILIES:
        raise DSASError(
            f"{kind} is not a family that is known; known are {', '.join(FAMILIES)}: describe another with an entry in "
            "dsas_diffusion.families.FAMILIES"
        )
    candidates = FAMILIES[kind]
    family = next((one for one in candidates if _has_parts_of(pipe, one)), candidates[-1])
    wanted = [family.denoiser, "scheduler", "vae"]
    missing = [part for part in wanted[:2] if getattr(pipe, part, None) is None]
    missing += [part for part in ("vae", family.encoders[0].part) if not hasattr(pipe, part)]
    encoders = [encoder for encoder in family.encoders if getattr(pipe, encoder.part, None) is not None]
    missing += [encoder.tokenizer for encoder in encoders if getattr(pipe, encoder.tokenizer, None) is None]
    missing += [one.part for one in family.encoders if one.kind and one not in encoders]  # by which families are told
    if missing:
        wanted += [part for encoder in family.encoders for part in (encoder.part, encoder.tokenizer)]
        raise DSASError(f"the pipeline lacks {', '.join(missing)}; a {family.name} pipeline has {', '.join(wanted)}")
    unknown = [_kind(getattr(pipe, encoder.part)) for encoder in encoders]
    unknown = [kind for kind in unknown if kind not in TEXT_LAYERS]
    if unknown:
        raise DSASError(
            f"{type(pipe).__name__} has a {unknown[0]} for a text encoder; {family.name} is known with "
            f"{', '.join(TEXT_LAYERS)}: describe its layers in dsas_diffusion.families.TEXT_LAYERS"
        )
    return family


def check_loaded(pipe: Any) -> None:
    """Raise a DSASError where a part of a pipeline is not loaded that drawing pictures from prompts takes."""
    family = family_of(pipe)
    missing = [] if encoders_of(pipe) else [family.encoders[0].part]
    missing += [] if getattr(pipe, "vae", None) is not None else ["vae"]
    if missing:
        raise DSASError(
            f"the pipeline's {' and '.join(missing)} is not loaded, and drawing from prompts takes it: load it"
        )


def encoders_of(pipe: Any) -> list[TextEncoder]:
    """The text encoders that a pipeline has of its family's; some run without the largest, or on given embeddings."""
    return [encoder for encoder in family_of(pipe).encoders if getattr(pipe, encoder.part, None) is not None]


def roots_of(pipe: Any) -> dict[str, nn.Module]:
    """The modules that can be steered, by name."""
    names = [family_of(pipe).denoiser, *(encoder.part for encoder in encoders_of(pipe))]
    return {name: getattr(pipe, name) for name in names}


def layers_read(encoder: TextEncoder, module: nn.Module, layers: int, clip_skip: int = 0) -> int:
    """How many of the layers of a text encoder, the first of them, show in what the denoiser reads when steered."""
    last = layers - encoder.unread - clip_skip
    last = last if encoder.depth is None else min(last, encoder.depth)
    early = _kind(module) in _RECORDED and find_spec("transformers.utils.output_capturing") is None
    return last - 1 if early and last < layers else last


def denoiser_of(pipe: Any) -> nn.Module:
    """The denoiser itself, without the wrapper of torch.compile."""
    return _bare(getattr(pipe, family_of(pipe).denoiser))


def bounds_of(pipe: Any) -> tuple[float, float]:
    """What the clock of a pipeline's denoiser shows at the noisy and at the clean end."""
    config: Any = denoiser_of(pipe).config
    scale = float(config.get("timestep_scale", 1.0))
    noisy, clean = family_of(pipe).bounds
    return noisy * scale, clean * scale


def _has_parts_of(pipe: Any, family: Family) -> bool:
    """Whether a pipeline has every text encoder of a family among its parts, loaded or not."""
    return all(
        hasattr(pipe, encoder.part) and encoder.kind in ("", _kind(getattr(pipe, encoder.part)))
        for encoder in family.encoders
    )


def _kind(part: nn.Module | None) -> str:
    return type(_bare(part)).__name__


def _bare(part: Any) -> Any:
    return getattr(part, "_orig_mod", part)
