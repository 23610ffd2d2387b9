"""The architecture of `builtin:emoji`: a small Stable Diffusion pipeline with random weights, built from a preset."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from .picture_scenes import vocabulary


@dataclass(frozen=True)
class Preset:
    """Sizes and numbers of training steps. `cpu` is the model that ships; `gpu` is larger, for one large GPU."""

    image_size: int
    latent_channels: int
    autoencoder_width: int
    autoencoder_blocks: tuple[int, ...]
    text_width: int
    text_layers: int
    unet_channels: tuple[int, ...]
    unet_layers: int
    scenes: int
    batch: int
    autoencoder_steps: int
    judge_steps: int
    text_steps: int
    unet_steps: int
    relation_steps: int
    binding_steps: int
    decoder_steps: int


PRESETS = {
    "cpu": Preset(
        image_size=64,
        latent_channels=4,
        autoencoder_width=48,
        autoencoder_blocks=(0, 2, 4),
        text_width=128,
        text_layers=3,
        unet_channels=(96, 160),
        unet_layers=1,
        scenes=144_000,
        batch=64,
        autoencoder_steps=1000,
        judge_steps=1300,
        text_steps=500,
        unet_steps=3600,
        relation_steps=1200,
        binding_steps=500,
        decoder_steps=300,
    ),
    "gpu": Preset(
        image_size=96,
        latent_channels=8,
        autoencoder_width=64,
        autoencoder_blocks=(1, 2, 4),
        text_width=192,
        text_layers=4,
        unet_channels=(128, 256),
        unet_layers=2,
        scenes=1_000_000,
        batch=256,
        autoencoder_steps=12_000,
        judge_steps=12_000,
        text_steps=4000,
        unet_steps=60_000,
        relation_steps=10_000,
        binding_steps=5000,
        decoder_steps=4000,
    ),
}
TEXT_POSITIONS = 24


def build_tokenizer(folder: Path):
    """A CLIP tokenizer in which every word of the vocabulary is one token, padded with its end token.

    Words that were never trained fall back to single letters, so no input fails.
    """
    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!?-'"
    merges = _merges(vocabulary())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": TEXT_POSITIONS,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return CLIPTokenizer.from_pretrained(folder)


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent pair first and ties by spelling, until every word is one token."""
    spelled = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for parts in spelled for pair in pairwise(parts)):
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for parts in spelled:
            i = 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == best:
                    parts[i : i + 2] = ["".join(best)]
                i += 1
    return merges


def build_autoencoder(preset: Preset):
    """A small convolutional autoencoder, four pixels to a latent."""
    from diffusers import AutoencoderTiny

    width = (preset.autoencoder_width,) * len(preset.autoencoder_blocks)
    return AutoencoderTiny(
        encoder_block_out_channels=width,
        decoder_block_out_channels=width,
        latent_channels=preset.latent_channels,
        num_encoder_blocks=preset.autoencoder_blocks,
        num_decoder_blocks=preset.autoencoder_blocks[::-1],
    )


def build_text_encoder(preset: Preset, tokenizer):
    """A causal CLIP text transformer over the tokenizer's vocabulary."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=preset.text_width,
            intermediate_size=4 * preset.text_width,
            num_hidden_layers=preset.text_layers,
            num_attention_heads=4,
            max_position_embeddings=TEXT_POSITIONS,
            projection_dim=preset.text_width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet(preset: Preset):
    """Convolutions at the latent's own size, attention at half of it and in the middle."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=preset.image_size // 4,
        in_channels=preset.latent_channels,
        out_channels=preset.latent_channels,
        block_out_channels=preset.unet_channels,
        layers_per_block=preset.unet_layers,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=preset.text_width,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_scheduler():
    """Flow matching: sample = (1 - sigma) * data + sigma * noise, timestep = 1000 * sigma."""
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=2, steps_offset=1
    )


def build_pipeline(autoencoder, text_encoder, tokenizer, unet):
    """The parts as a StableDiffusionPipeline without a safety checker."""
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
