"""Random models in the shape of SDXL and FLUX.1, of a chosen width, and calls of their denoisers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

import dsas_diffusion as dsas
from dsas_diffusion.pipelines.adapter import adapt

PROMPT = "a banana and a dog on the grass"
#: channels of SDXL's first block; of FLUX.1: attention heads, width of a head, numbers of double and single blocks
XL_WIDTH = 320
FLUX_HEADS, FLUX_HEAD, FLUX_BLOCKS = 24, 128, (19, 38)


@dataclass(frozen=True)
class Model:
    """A pipeline, and one call of its denoiser.

    Args:
        pipe: the pipeline.
        prompt_arguments: arguments of `encode_prompt`.
        call_arguments: arguments of the denoiser.
    """

    pipe: Any
    prompt_arguments: Mapping[str, Any]
    call_arguments: Mapping[str, Any]

    @property
    def denoiser(self) -> Any:
        """The denoiser of the pipeline."""
        return adapt(self.pipe).denoiser

    def copy_modules(self) -> Model:
        """A copy with modules of its own that share the weights, which are in memory once."""
        modules = adapt(self.pipe).roots.values()
        weights = {id(tensor): tensor for module in modules for tensor in (*module.parameters(), *module.buffers())}
        return replace(self, pipe=copy.deepcopy(self.pipe, weights))

    def begin(self) -> None:
        """Encode the prompt, as a generation does first, so that steering knows the layout of the batch."""
        self.pipe.encode_prompt(**self.prompt_arguments)

    def call(self) -> Any:
        """Call the denoiser once."""
        return self.denoiser(**self.call_arguments)


@torch.no_grad()  # as a generation encodes its prompt
def build_builtin(device: str, dtype: torch.dtype) -> Model:
    """The built-in model."""
    pipe = dsas.load_pipeline("builtin:emoji").to(device, dtype)
    side = pipe.unet.config.sample_size
    texts = pipe.encode_prompt([PROMPT], device, 1, True)
    call_arguments = {
        "sample": torch.randn(2, pipe.unet.config.in_channels, side, side, device=device, dtype=dtype),
        "timestep": torch.tensor(500, device=device),
        "encoder_hidden_states": torch.cat(texts[::-1]),
    }
    return Model(pipe, _guided_prompt(device), call_arguments)


def build_xl(width: int, side: int, device: str, dtype: torch.dtype) -> Model:
    """The blocks of SDXL (70 cross-attention layers); text encoders and decoder are the built-in model's.

    Args:
        width: channels of the first block; 320 in SDXL.
        side: side of the latents; 128 for pictures of 1024 pixels.
        device: device of the pipeline.
        dtype: dtype of the pipeline.
    """
    text_width = 32 * round(2048 * width / XL_WIDTH / 32)
    pipe = dsas.load_pipeline("builtin:emoji").to(device, dtype)
    pipe.unet = build_xl_unet(width, side, text_width, channels=4).to(device, dtype)
    call_arguments = {
        "sample": torch.randn(2, 4, side, side, device=device, dtype=dtype),
        "timestep": torch.tensor(500, device=device),
        "encoder_hidden_states": torch.randn(2, 77, text_width, device=device, dtype=dtype),
    }
    return Model(pipe, _guided_prompt(device), call_arguments)


def build_flux(heads: int, side: int, device: str, dtype: torch.dtype) -> Model:
    """The blocks of FLUX.1 (19 double, 38 single), without text encoders and decoder.

    Args:
        heads: attention heads; 24 in FLUX.1.
        side: side of the picture in patches; 64 for 1024 pixels.
        device: device of the transformer.
        dtype: dtype of the transformer.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(0)
    text_width, pooled, tokens = 4096 * heads // FLUX_HEADS, 768, 512
    double, single = FLUX_BLOCKS
    default_dtype = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # a float32 model and its converted copy would not fit in memory together
    with torch.device(device):
        transformer = FluxTransformer2DModel(
            num_layers=double,
            num_single_layers=single,
            attention_head_dim=FLUX_HEAD,
            num_attention_heads=heads,
            joint_attention_dim=text_width,
            pooled_projection_dim=pooled,
            guidance_embeds=True,
        )
    torch.set_default_dtype(default_dtype)
    transformer.eval().requires_grad_(False)
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipe = FluxPipeline(transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), **parts)
    like: dict[str, Any] = {"device": device, "dtype": dtype}
    prompt, pooled_prompt = torch.randn(1, tokens, text_width, **like), torch.randn(1, pooled, **like)
    positions = torch.zeros(side, side, 3, **like)
    positions[..., 1], positions[..., 2] = torch.arange(side, **like)[:, None], torch.arange(side, **like)
    call_arguments = {
        "hidden_states": torch.randn(1, side * side, transformer.config.in_channels, **like),
        "timestep": torch.tensor([0.5], **like),
        "guidance": torch.tensor([3.5], **like),
        "pooled_projections": pooled_prompt,
        "encoder_hidden_states": prompt,
        "txt_ids": torch.zeros(tokens, 3, **like),
        "img_ids": positions.flatten(0, 1),
    }
    prompt_arguments = {
        "prompt": None,
        "prompt_embeds": prompt,
        "pooled_prompt_embeds": pooled_prompt,
        "device": device,
    }
    return Model(pipe, prompt_arguments, call_arguments)


def build_xl_unet(width: int, side: int, text_width: int, channels: int) -> Any:
    """A random UNet with the blocks of SDXL.

    Args:
        width: channels of the first block; 320 in SDXL.
        side: side of the latents.
        text_width: width of the hidden states of the prompt.
        channels: channels of the latents.
    """
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(width, 2 * width, 4 * width),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(width // 64, width // 32, width // 16),
        cross_attention_dim=text_width,
        use_linear_projection=True,
        norm_num_groups=16,
    )
    return unet.eval().requires_grad_(False)


def _guided_prompt(device: str) -> dict[str, Any]:
    """Arguments of `encode_prompt` of Stable Diffusion for one prompt with classifier-free guidance."""
    return {
        "prompt": [PROMPT],
        "device": device,
        "num_images_per_prompt": 1,
        "do_classifier_free_guidance": True,
    }
