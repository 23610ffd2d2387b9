"""Tiny random pipelines of every family, from configs, and plain ways to run them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch

from dsas_diffusion.builtin import architecture
from tests.helpers import TINY, build_ddim_pipe

WIDTH = 32
STEPS = 2
#: pixels of a side
SIZE = 32


def _clip(tokenizer: Any, projected: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def _words(folder: Path, begin: str | None, side: str, also: Sequence[str] = (), **options: Any) -> Any:
    """A tokenizer of whole words, for the text encoders that bring no CLIP; of turns of a conversation if `also`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "</s>", "<unk>", *([begin] if begin else []), *also]
    listed = [*special, *sorted({word for word in architecture.vocabulary() if word.isalpha()})]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(listed)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    pattern = f"{begin} $A" if begin else "$A </s>"
    if not also:
        inner.post_processor = processors.TemplateProcessing(
            single=pattern, special_tokens=[(token, listed.index(token)) for token in special]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token=begin,
        padding_side=side,
        **{"eos_token": "</s>", "model_max_length": 24, **options},
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def _t5(tokenizer: Any) -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=len(tokenizer), d_model=WIDTH, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    )


def _gemma(tokenizer: Any) -> Any:
    from transformers import Gemma2Config, Gemma2Model

    return Gemma2Model(
        Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            initializer_range=0.2,
        )
    )


def _turns(folder: Path, template: str, side: str = "right") -> Any:
    """A tokenizer of words within turns, which end with a token of their own."""
    marks = ["<|im_start|>", "<|im_end|>"]
    options = {"eos_token": "<|im_end|>", "chat_template": template, "additional_special_tokens": marks[:1]}
    return _words(folder, None, side, marks, model_max_length=64, **options)


#: of decoder language models that read prompts
_DECODER: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.2,
}


def _qwen3(tokenizer: Any, kind: str, layers: int = 3) -> Any:
    import transformers

    config = transformers.Qwen3Config(vocab_size=len(tokenizer), **_DECODER | {"num_hidden_layers": layers})
    return getattr(transformers, kind)(config)


def _vae(levels: int = 2, shift: float | None = None) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8,) * levels,
        latent_channels=4,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        shift_factor=shift,
    )


def _sd(folder: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    parts = {**build_ddim_pipe(folder).components, "vae": _vae()}
    return StableDiffusionPipeline(**parts, requires_safety_checker=False)


def _sdxl(folder: Path) -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    first, second = (architecture.build_tokenizer(folder / name) for name in ("tokenizer", "tokenizer_2"))
    unet = UNet2DConditionModel(
        sample_size=SIZE // 2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=2 * WIDTH,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        norm_num_groups=8,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )
    return StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=_clip(first),
        text_encoder_2=_clip(second, projected=True),
        tokenizer=first,
        tokenizer_2=second,
        unet=unet,
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear"),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def _sd3(folder: Path) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    first, second = (architecture.build_tokenizer(folder / name) for name in ("tokenizer", "tokenizer_2"))
    third = _words(folder / "tokenizer_3", None, "right")
    transformer = SD3Transformer2DModel(
        sample_size=SIZE // 2,
        patch_size=1,
        in_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=2 * WIDTH,
        out_channels=4,
        pos_embed_max_size=SIZE,
        dual_attention_layers=(0,),
    )
    from transformers import T5Config, T5EncoderModel

    wide = T5Config(vocab_size=len(third), d_model=2 * WIDTH, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(shift=0.1),
        text_encoder=_clip(first, projected=True),
        tokenizer=first,
        text_encoder_2=_clip(second, projected=True),
        tokenizer_2=second,
        text_encoder_3=T5EncoderModel(wide),
        tokenizer_3=third,
    )


def _flux(folder: Path) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    first, second = architecture.build_tokenizer(folder / "tokenizer"), _words(folder / "tokenizer_2", None, "right")
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(2, 2, 4),
    )
    return FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(shift=0.1),
        text_encoder=_clip(first),
        tokenizer=first,
        text_encoder_2=_t5(second),
        tokenizer_2=second,
    )


def _pixart(folder: Path) -> Any:
    from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

    tokenizer = _words(folder / "tokenizer", None, "right")
    transformer = PixArtTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=WIDTH,
        caption_channels=WIDTH,
        sample_size=SIZE // 2,
        patch_size=2,
        norm_num_groups=8,
        use_additional_conditions=False,
    )
    return PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=_t5(tokenizer),
        vae=_vae(),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(),
    )


def _sana(folder: Path) -> Any:
    from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler, SanaPipeline, SanaTransformer2DModel

    tokenizer = _words(folder / "tokenizer", "<bos>", "left")
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=4,
        cross_attention_head_dim=8,
        cross_attention_dim=WIDTH,
        caption_channels=WIDTH,
        sample_size=SIZE // 2,
        patch_size=1,
    )
    vae = AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.4,
    )
    return SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=_gemma(tokenizer),
        vae=vae,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


#: as the chat templates of real tokenizers, if shorter
_USER = (
    "{% for m in messages %}<|im_start|> {{ m.role }} {{ m.content }} <|im_end|> {% endfor %}"
    "<|im_start|> assistant {% if not enable_thinking %} think {% endif %}"
)
_PARTS = "<|im_start|>{% for m in messages %} {{ m.role }} {{ m.content[0].text }} {% endfor %}<|im_end|>"


def _flux2_transformer(guided: bool) -> Any:
    from diffusers import Flux2Transformer2DModel

    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=3 * WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(2, 2, 2, 2),
        guidance_embeds=guided,
    )
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if "modulation" in name:  # its gates would hardly let anything of the prompt through
                parameter *= 4
    return transformer


def _flux2_vae() -> Any:
    from diffusers import AutoencoderKLFlux2

    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    return vae


def _flux2(folder: Path) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, Flux2Pipeline
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, MistralConfig, PixtralVisionConfig

    tokenizer = _turns(folder / "tokenizer", _PARTS, "left")
    vision = PixtralVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    config = Mistral3Config(
        text_config=MistralConfig(vocab_size=len(tokenizer), **_DECODER | {"num_hidden_layers": 31}),
        vision_config=vision,
        image_token_index=0,
    )
    pipe = Flux2Pipeline(
        transformer=_flux2_transformer(guided=True),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_flux2_vae(),
        text_encoder=Mistral3ForConditionalGeneration(config),
        tokenizer=tokenizer,
    )
    pipe.system_message = "words in front"
    return pipe


def _klein(folder: Path) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline

    tokenizer = _turns(folder / "tokenizer", _USER)
    return Flux2KleinPipeline(
        transformer=_flux2_transformer(guided=False),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_flux2_vae(),
        text_encoder=_qwen3(tokenizer, "Qwen3ForCausalLM", 28),
        tokenizer=tokenizer,
    )


def _qwen(folder: Path) -> Any:
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = _turns(folder / "tokenizer", "")
    text = {name: value for name, value in _DECODER.items() if name != "head_dim"}
    text["rope_scaling"] = {"type": "mrope", "mrope_section": [1, 1, 2], "rope_type": "default"}
    encoder = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={"vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": None, **text},
            vision_config={
                "depth": 1,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_heads": 2,
                "out_hidden_size": WIDTH,
            },
        )
    )
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(2, 2, 4),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, 0.2, -0.1, 0.0],
        latents_std=[1.5, 0.5, 2.0, 1.0],
    )
    pipe = QwenImagePipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
    )
    pipe.prompt_template_encode = "<|im_start|> words <|im_end|> in front <|im_start|> {} <|im_end|> behind"
    pipe.prompt_template_encode_start_idx = 6
    return pipe


def _z_image(folder: Path) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

    tokenizer = _turns(folder / "tokenizer", _USER)
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=WIDTH,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=4,
        n_kv_heads=4,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 2, 2],
        axes_lens=[128, 32, 32],
    )
    return ZImagePipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(3, shift=0.1),
        text_encoder=_qwen3(tokenizer, "Qwen3Model"),
        tokenizer=tokenizer,
    )


def _lumina(folder: Path) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel

    tokenizer = _words(folder / "tokenizer", "<bos>", "right")
    transformer = Lumina2Transformer2DModel(
        in_channels=4,
        hidden_size=WIDTH,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=8,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(64, 32, 32),
        cap_feat_dim=WIDTH,
    )
    pipe = Lumina2Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(4, shift=0.1),
        text_encoder=_gemma(tokenizer),
        tokenizer=tokenizer,
    )
    pipe.system_prompt = "words in front"
    return pipe


_BUILD: dict[str, Callable[[Path], Any]] = {
    "sd": _sd,
    "sdxl": _sdxl,
    "sd3": _sd3,
    "flux": _flux,
    "pixart": _pixart,
    "sana": _sana,
    "flux2": _flux2,
    "klein": _klein,
    "qwen": _qwen,
    "zimage": _z_image,
    "lumina": _lumina,
}
#: pipelines that came later than the oldest diffusers that is supported
_LATER = {"flux2": "Flux2Pipeline", "klein": "Flux2KleinPipeline", "zimage": "ZImagePipeline"}
FAMILIES = tuple(family for family in _BUILD if _LATER.get(family, "DiffusionPipeline") in dir(diffusers))
#: what a pipeline has to be told beside what all understand
_OPTIONS: dict[str, dict[str, Any]] = {
    "flux": {"max_sequence_length": 12},
    "sd3": {"max_sequence_length": 12},
    "pixart": {"max_sequence_length": 12, "clean_caption": False, "use_resolution_binning": False},
    "sana": {
        "max_sequence_length": 12,
        "clean_caption": False,
        "use_resolution_binning": False,
        "complex_human_instruction": ["words that", "are not the prompt: "],
    },
    "flux2": {"max_sequence_length": 16},
    "klein": {"max_sequence_length": 16},
    "qwen": {"max_sequence_length": 16},
    "zimage": {"max_sequence_length": 16},
    "lumina": {"max_sequence_length": 16},
}
#: what guides them
GUIDED = {"flux": "true_cfg_scale", "qwen": "true_cfg_scale"}
#: families that are told no negative prompt
UNTOLD = ("flux2", "klein")
NEGATIVE = "a dog"


def build(family: str, folder: Path) -> Any:
    """A pipeline of a family; random, and by far not so timid as it comes out of its configs."""
    torch.manual_seed(0)
    pipe = _BUILD[family](folder)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.float().eval().requires_grad_(False)
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    with torch.no_grad():
        for parameter in denoiser.parameters():
            if parameter.abs().max() == 0:  # gates and heads that begin at zero would hide what is steered
                parameter.normal_(0, 0.1)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def brief(pipe: Any, family: str) -> Callable[..., Any]:
    """The `__call__` of a pipeline's class with a family's options: for those who tell it none, as learning does."""
    own = type(pipe).__call__

    @functools.wraps(own)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return own(self, *args, **{**_OPTIONS.get(family, {}), **kwargs})

    return call


def latents(pipe: Any, family: str, prompts: str | Sequence[str], seeds: Sequence[int] = (0,), **options: Any) -> Any:
    """What a pipeline makes of prompts, before decoding; one noise per picture, by its seed; guided."""
    settings: dict[str, Any] = {
        "num_inference_steps": STEPS,
        "height": SIZE,
        "width": SIZE,
        "output_type": "latent",
        GUIDED.get(family, "guidance_scale"): 3.0,
        **_OPTIONS.get(family, {}),
        **options,
    }
    texts = prompts if isinstance(prompts, str) else list(prompts)
    count = 1 if isinstance(texts, str) else len(texts)
    if family not in UNTOLD:
        settings.setdefault("negative_prompt", NEGATIVE if isinstance(texts, str) else [NEGATIVE] * count)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(prompt=texts, generator=generators if len(generators) > 1 else generators[0], **settings).images


__all__ = ["FAMILIES", "GUIDED", "NEGATIVE", "SIZE", "STEPS", "TINY", "UNTOLD", "WIDTH", "brief", "build", "latents"]
