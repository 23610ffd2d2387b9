"""Random models in the shape of those that people run, narrower."""

from __future__ import annotations

from typing import Any

import torch


def xl_unet(width: int, side: int, reading: int, channels: int) -> Any:
    """A random UNet with the blocks of SDXL (70 cross-attention layers).

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
