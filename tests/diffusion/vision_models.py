"""Tiny random models that look at pictures, saved as transformers saves them, and pictures for them to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dsas_diffusion.builtin.architecture import TEXT_POSITIONS, build_tokenizer
from tests.helpers import drawn

SMALL = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, initializer_range=0.3)


def noise_pictures(count: int, seed: int = 0, size: tuple[int, int] = (32, 32)) -> list[Image.Image]:
    """Random colours in blocks, so that what a network sees of them differs."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return [Image.fromarray(b).resize(size, Image.Resampling.BICUBIC) for b in blocks]


def save_processor(folder: Path, tokenizer: Any = None) -> Any:
    """An image processor for pictures of 32 x 32, with a tokenizer if one is given; saved."""
    from transformers import CLIPImageProcessor, CLIPProcessor

    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = CLIPProcessor(image_processor=images, tokenizer=tokenizer) if tokenizer else images
    processor.save_pretrained(folder)
    return processor


def save_clip(folder: Path) -> tuple[Any, Any]:
    """A tiny random CLIP with the built-in model's tokenizer, saved; returns model and processor."""
    from transformers import CLIPConfig, CLIPModel

    tokenizer = build_tokenizer(folder)
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    text = dict(vocab_size=len(tokenizer), max_position_embeddings=TEXT_POSITIONS, **SMALL, **ids)
    vision = dict(image_size=32, patch_size=8, **SMALL)
    model = drawn(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval())
    model.save_pretrained(folder)
    return model, save_processor(folder, tokenizer)


def save_vit(folder: Path, kind: str) -> Any:
    from transformers import ViTConfig, ViTForImageClassification, ViTModel

    config = ViTConfig(image_size=32, patch_size=8, **SMALL)
    torch.manual_seed(0)
    model = (ViTModel if kind == "vit" else ViTForImageClassification)(config).eval()
    model.save_pretrained(folder)
    return model if kind == "vit" else model.vit


def save_resnet(folder: Path, kind: str) -> Any:
    from transformers import ResNetConfig, ResNetModel

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    torch.manual_seed(0)
    model = ResNetModel(config).eval()
    model.save_pretrained(folder)
    return model


def projected(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
