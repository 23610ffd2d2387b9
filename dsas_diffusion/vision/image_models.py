"""CLIP, and what image models of transformers share.

A model that is missing raises `UnavailableError`, so that an evaluation can go on without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from dsas_core.errors import DSASError, UnavailableError
from dsas_core.model.loading import load_pretrained

#: pictures a forward pass
BATCH = 32


class Clip:
    """A CLIP: unit vectors of pictures and of texts in one space. Texts that are too long are truncated.

    Args:
        name: folder or Hub name of a model with `get_image_features` and `get_text_features` (CLIP, SigLIP, …).
        device: "auto" takes a GPU if there is one.
        options: further arguments of `from_pretrained` (revision, token, …).

    Raises:
        UnavailableError: no such model, or no CLIP.
    """

    def __init__(self, name: str | Path, *, device: str = "auto", **options: Any) -> None:
        self.name = str(name)
        self.model, self.processor, missing = load_pretrained(name, "AutoModel", "AutoProcessor", device, **options)
        if not all(hasattr(self.model, f"get_{side}_features") for side in ("image", "text")):
            raise UnavailableError(
                f"{name} is no CLIP: {type(self.model).__name__} has no features of pictures and texts"
            )
        if not all(hasattr(self.processor, part) for part in ("image_processor", "tokenizer")):
            raise UnavailableError(f"{name} is no CLIP: it lacks its image processor or its tokenizer")
        if missing:
            raise UnavailableError(f"{name} is no CLIP: it lacks {missing[0]}, which would be random")

    @torch.inference_mode()
    def of_pictures(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Unit vectors [n, d] of pictures."""
        batches = []
        for chunk in chunks(pictures):
            inputs = self.processor.image_processor(images=chunk, return_tensors="pt").to(self.model.device)
            batches.append(embedding(self.model.get_image_features(pixel_values=inputs["pixel_values"])))
        return F.normalize(torch.cat(batches).float(), dim=-1).cpu()

    @torch.inference_mode()
    def of_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors [n, d] of texts."""
        positions = getattr(getattr(self.model.config, "text_config", None), "max_position_embeddings", None)
        stated = int(self.processor.tokenizer.model_max_length)
        inputs = self.processor.tokenizer(
            list(texts),
            # SigLIP was trained on padded texts only
            padding="max_length" if "siglip" in str(self.model.config.model_type) else True,
            truncation=True,
            max_length=min(stated, positions or stated),
            return_tensors="pt",
        )
        known = {key: inputs[key].to(self.model.device) for key in ("input_ids", "attention_mask") if key in inputs}
        return F.normalize(embedding(self.model.get_text_features(**known)).float(), dim=-1).cpu()


def array_of(pictures: Sequence[Image.Image]) -> np.ndarray:
    """PIL images of one size as uint8 [n, height, width, 3].

    Raises:
        DSASError: pictures of several sizes, or items that are no pictures.

    Example:
        >>> array_of([Image.new("RGB", (4, 2))]).shape
        (1, 2, 4, 3)
    """
    wrong = [picture for picture in pictures if not isinstance(picture, Image.Image)]
    if wrong:
        raise DSASError(f"pictures: expected PIL images, found {type(wrong[0]).__name__}")
    sizes = sorted({picture.size for picture in pictures})
    if len(sizes) > 1:
        listed = ", ".join(f"{width} x {height}" for width, height in sizes[:3])
        raise DSASError(f"pictures are to have one size, found {listed}: resize them first")
    if not sizes:
        return np.zeros((0, 0, 0, 3), np.uint8)
    return np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])


def embedding(outputs: Any) -> torch.Tensor:
    """The embeddings [n, d]: transformers 5 returns them in an output object, version 4 as a tensor."""
    return outputs if isinstance(outputs, torch.Tensor) else outputs.pooler_output


def chunks(pictures: Sequence[Image.Image]) -> Iterator[list[Image.Image]]:
    """Pictures in RGB, in batches."""
    for start in range(0, len(pictures), BATCH):
        yield [picture.convert("RGB") for picture in pictures[start : start + BATCH]]
