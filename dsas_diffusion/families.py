"""What is known about each model family: which parts can be steered, where, and how to read its clock and rows.

To describe another: an entry in `FAMILIES` and, if its text encoder is new, one in `TEXT_LAYERS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

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


def _one_stream(attention: str) -> Mapping[str, tuple[Group, ...]]:
    """Roles of a transformer whose layers see picture and prompt as one sequence, by what they call their attention."""
    return {
        "image": (Group(rf"transformer\.layers\.\d+\.{attention}", stream="image"),),
        "prompt": (Group(rf"transformer\.layers\.\d+\.{attention}", stream="text"),),
        "block": (Group(r"transformer\.layers\.\d+", stream="image"),),
        "text": (_TEXT,),
    }


_SD = Family(
    name="Stable Diffusion",
    denoiser="unet",
    encoders=(TextEncoder(),),
    groups=_UNET,
    default=("text",),
    denoiser_default=("cross",),
    heatmap_sites=("cross",),
    cross_attention="cross",
)
_SDXL = replace(
    _SD,
    name="Stable Diffusion XL",
    encoders=(
        TextEncoder(unused_layers=1),
        TextEncoder("text_encoder_2", "tokenizer_2", "negative_prompt_2", unused_layers=1),
    ),
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
    heatmap_sites=("image",),
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
    timestep_range=(1.0, 0.0),
    guidance="two calls",
    negative_encoding="apart",
)
_PIXART = replace(_SD, name="PixArt", denoiser="transformer", groups=_CROSSING, cross_attention=None)
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
    encoders=(TextEncoder(unused_layers=1, wording=wording.thinking),),
    groups=_one_stream("attention"),
    timestep_range=(0.0, 1.0),
    guidance="cond, uncond",
    sequence="image, text",
    sequence_multiple=32,
)
_LUMINA2 = replace(
    _SD3,
    name="Lumina 2",
    encoders=(TextEncoder(unused_layers=1, wording=wording.assisted),),
    groups=_one_stream("attn"),
    timestep_range=(0.0, 1.0),
    guidance="two calls",
    negative_index=2,
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
