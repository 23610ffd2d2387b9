"""Models in the shape of those that people run, random and as narrow as is asked, and calls of their denoisers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

import dsas_diffusion as dsas
from dsas_diffusion.pipelines.adapter import adapt

PROMPT = "a banana and a dog on the grass"
#: channels of SDXL's first blocks; attention heads of FLUX.1, their width, double and single blocks
XL_WIDTH = 320
FLUX_HEADS, FLUX_HEAD, FLUX_BLOCKS = 24, 128, (19, 38)


@dataclass(frozen=True)
class Model:
    """A pipeline, and one call of its denoiser.

    Args:
        pipe: the pipeline. asked: what its `encode_prompt` is called with before. given: of the denoiser.
    """

    pipe: Any
    asked: Mapping[str, Any]
    given: Mapping[str, Any]

    @property
    def denoiser(self) -> Any:
        return adapt(self.pipe).denoiser

    def twin(self) -> Model:
        """Another pipeline, of modules of its own with the same weights: they lie in memory once."""
        modules = adapt(self.pipe).roots.values()
        kept = {id(tensor): tensor for one in modules for tensor in (*one.parameters(), *one.buffers())}
        return replace(self, pipe=copy.deepcopy(self.pipe, kept))

    def begin(self) -> None:
        """What a generation begins with, so that rows are known."""
        self.pipe.encode_prompt(**self.asked)

    def call(self) -> Any:
        return self.denoiser(**self.given)


def builtin(device: str, dtype: torch.dtype) -> Model:
    """The built-in model."""
    pipe = dsas.load_pipeline("builtin:emoji").to(device, dtype)
    side = pipe.unet.config.sample_size
    texts = pipe.encode_prompt([PROMPT], device, 1, True)
    given = {
        "sample": torch.randn(2, pipe.unet.config.in_channels, side, side, device=device, dtype=dtype),
        "timestep": torch.tensor(500, device=device),
        "encoder_hidden_states": torch.cat(texts[::-1]),
    }
    return Model(pipe, _guided(device), given)


def xl(width: int, side: int, device: str, dtype: torch.dtype) -> Model:
    """The blocks of SDXL (70 cross-attention layers); text encoders and decoder are the built-in model's.

    Args:
        width: channels, of SDXL 320. side: of the latents, of 1024 pixels 128.
    """
    reading = 32 * round(2048 * width / XL_WIDTH / 32)
    pipe = dsas.load_pipeline("builtin:emoji").to(device, dtype)
    pipe.unet = xl_unet(width, side, reading, channels=4).to(device, dtype)
    given = {
        "sample": torch.randn(2, 4, side, side, device=device, dtype=dtype),
        "timestep": torch.tensor(500, device=device),
        "encoder_hidden_states": torch.randn(2, 77, reading, device=device, dtype=dtype),
    }
    return Model(pipe, _guided(device), given)


def flux(heads: int, side: int, device: str, dtype: torch.dtype) -> Model:
    """The blocks of FLUX.1 (19 double, 38 single), without text encoders and decoder.

    Args:
        heads: of attention, of FLUX.1 24. side: of the picture in patches, of 1024 pixels 64.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(0)
    reading, pooled, tokens = 4096 * heads // FLUX_HEADS, 768, 512
    double, single = FLUX_BLOCKS
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # in single precision the whole would not fit beside itself
    with torch.device(device):
        transformer = FluxTransformer2DModel(
            num_layers=double,
            num_single_layers=single,
            attention_head_dim=FLUX_HEAD,
            num_attention_heads=heads,
            joint_attention_dim=reading,
            pooled_projection_dim=pooled,
            guidance_embeds=True,
        )
    torch.set_default_dtype(usual)
    transformer.eval().requires_grad_(False)
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipe = FluxPipeline(transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), **parts)
    like: dict[str, Any] = {"device": device, "dtype": dtype}
    prompt, pooled_prompt = torch.randn(1, tokens, reading, **like), torch.randn(1, pooled, **like)
    places = torch.zeros(side, side, 3, **like)
    places[..., 1], places[..., 2] = torch.arange(side, **like)[:, None], torch.arange(side, **like)
    given = {
        "hidden_states": torch.randn(1, side * side, transformer.config.in_channels, **like),
        "timestep": torch.tensor([0.5], **like),
        "guidance": torch.tensor([3.5], **like),
        "pooled_projections": pooled_prompt,
        "encoder_hidden_states": prompt,
        "txt_ids": torch.zeros(tokens, 3, **like),
        "img_ids": places.flatten(0, 1),
    }
    asked = {"prompt": None, "prompt_embeds": prompt, "pooled_prompt_embeds": pooled_prompt, "device": device}
    return Model(pipe, asked, given)


def xl_unet(width: int, side: int, reading: int, channels: int) -> Any:
    """A random UNet with the blocks of SDXL.

    Args:
        width: channels, of SDXL 320. side: of the latents. reading: width of what is read of the prompt.
        channels: of the latents.
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
        cross_attention_dim=reading,
        use_linear_projection=True,
        norm_num_groups=16,
    )
    return unet.eval().requires_grad_(False)


def _guided(device: str) -> dict[str, Any]:
    """One prompt with classifier-free guidance, as Stable Diffusion's pipelines encode it."""
    return {
        "prompt": [PROMPT],
        "device": device,
        "num_images_per_prompt": 1,
        "do_classifier_free_guidance": True,
    }
