"""What is known about each model family: which parts can be steered, where, and how to read its clock and rows.

To describe another: an entry in `FAMILIES` and, if its text encoder is new, one in `TEXT_LAYERS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from . import prompt_templates
from .spec import Family, SiteGroup, TextEncoder

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

_TEXT = SiteGroup(rf"text_encoder(_\d)?\.({'|'.join(dict.fromkeys(TEXT_LAYERS.values()))})")
_UNET: Mapping[str, tuple[SiteGroup, ...]] = {
    "cross": (SiteGroup(r"unet\..*\.attn2"),),
    "self": (SiteGroup(r"unet\..*\.attn1"),),
    "block": (SiteGroup(r"unet\.(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.(attentions|resnets)\.\d+", "first"),),
    "text": (_TEXT,),
}
#: transformers whose blocks attend to themselves, then to the prompt
_CROSSING: Mapping[str, tuple[SiteGroup, ...]] = {
    "cross": (SiteGroup(r"transformer\.transformer_blocks\.\d+\.attn2"),),
    "self": (SiteGroup(r"transformer\.transformer_blocks\.\d+\.attn1"),),
    "block": (SiteGroup(r"transformer\.transformer_blocks\.\d+"),),
    "text": (_TEXT,),
}


def _one_stream(attention: str) -> Mapping[str, tuple[SiteGroup, ...]]:
    """Roles of a transformer whose layers see picture and prompt as one sequence, by what they call their attention."""
    return {
        "image": (SiteGroup(rf"transformer\.layers\.\d+\.{attention}", stream="image"),),
        "prompt": (SiteGroup(rf"transformer\.layers\.\d+\.{attention}", stream="text"),),
        "block": (SiteGroup(r"transformer\.layers\.\d+", stream="image"),),
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
        "image": (SiteGroup(r"transformer\.transformer_blocks\.\d+\.attn", stream="image"),),
        "prompt": (
            SiteGroup(r"transformer\.transformer_blocks\.\d+\.attn", index=1, stream="text", unless="context_pre_only"),
        ),
        "self": (SiteGroup(r"transformer\.transformer_blocks\.\d+\.attn2"),),
        "block": (SiteGroup(r"transformer\.transformer_blocks\.\d+", index=1, stream="image"),),
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
            SiteGroup(r"transformer\.transformer_blocks\.\d+\.attn", stream="image"),
            SiteGroup(r"transformer\.single_transformer_blocks\.\d+\.attn", stream="image"),
        ),
        "prompt": (
            SiteGroup(r"transformer\.transformer_blocks\.\d+\.attn", index=1, stream="text"),
            SiteGroup(r"transformer\.single_transformer_blocks\.\d+\.attn", stream="text"),
        ),
        "block": (SiteGroup(r"transformer\.(single_)?transformer_blocks\.\d+", index=1, stream="image"),),
        "text": (_TEXT,),
    },
    timestep_range=(1.0, 0.0),
    guidance="two calls",
    negative_encoding="apart",
)
_PIXART = replace(_SD, name="PixArt", denoiser="transformer", groups=_CROSSING, cross_attention=None)
_SANA = replace(_PIXART, name="Sana", encoders=(TextEncoder(wording=prompt_templates.sana),))
_FLUX2 = replace(
    _FLUX,
    name="FLUX.2",
    encoders=(TextEncoder(kind="Mistral3ForConditionalGeneration", depth=30, wording=prompt_templates.flux2),),
    groups={
        **_FLUX.groups,
        "block": (
            SiteGroup(r"transformer\.transformer_blocks\.\d+", index=1, stream="image"),
            SiteGroup(r"transformer\.single_transformer_blocks\.\d+", stream="image"),
        ),
    },
)
_KLEIN = replace(
    _FLUX2,
    name="FLUX.2 [klein]",
    encoders=(TextEncoder(kind="Qwen3ForCausalLM", depth=27, wording=prompt_templates.flux2_klein),),
)
_QWEN = replace(
    _FLUX,
    name="Qwen-Image",
    encoders=(TextEncoder(wording=prompt_templates.qwen_image),),
    groups={
        "image": (SiteGroup(r"transformer\.transformer_blocks\.\d+\.attn", stream="image"),),
        "prompt": (SiteGroup(r"transformer\.transformer_blocks\.\d+\.attn", index=1, stream="text"),),
        "block": (SiteGroup(r"transformer\.transformer_blocks\.\d+", index=1, stream="image"),),
        "text": (_TEXT,),
    },
)
_Z_IMAGE = replace(
    _SD3,
    name="Z-Image",
    encoders=(TextEncoder(unused_layers=1, wording=prompt_templates.z_image),),
    groups=_one_stream("attention"),
    timestep_range=(0.0, 1.0),
    guidance="cond, uncond",
    sequence="image, text",
    sequence_multiple=32,
)
_LUMINA2 = replace(
    _SD3,
    name="Lumina 2",
    encoders=(TextEncoder(unused_layers=1, wording=prompt_templates.lumina2),),
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
