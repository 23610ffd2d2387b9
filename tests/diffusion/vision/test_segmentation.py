"""Masks by a tiny segmentation model, by functions, and from data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dsas_core import DSASError
from dsas_core.errors import UnavailableError
from dsas_diffusion.vision.segmentation import CallableMasks, SegmentationMasks, masks_from

SIZE = 32
LABELS = ["dark", "Light", "never"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Segformer that says "Light" where a picture is light: its decoder reads the brightness of patches."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    torch.manual_seed(0)
    config = SegformerConfig(
        num_encoder_blocks=1,
        depths=[1],
        sr_ratios=[1],
        hidden_sizes=[8],
        patch_sizes=[3],
        strides=[1],
        num_attention_heads=[1],
        mlp_ratios=[1],
        decoder_hidden_size=8,
        id2label=dict(enumerate(LABELS)),
        label2id={name: i for i, name in enumerate(LABELS)},
    )
    model = SegformerForSemanticSegmentation(config).eval()
    processor = SegformerImageProcessor(do_resize=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    sides = torch.linspace(-1, 1, SIZE)[None, None, None].expand(1, 3, SIZE, SIZE)
    optimizer = torch.optim.Adam(model.parameters(), 3e-2)
    for _ in range(60):  # enough to tell light from dark
        logits = model(pixel_values=sides).logits
        wanted = (torch.linspace(-1, 1, logits.shape[-1]) > 0).long().expand(1, logits.shape[-2], -1)
        loss = torch.nn.functional.cross_entropy(logits, wanted)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    path = tmp_path_factory.mktemp("segmentation") / "model"
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return str(path)


def ramp(reverse: bool = False) -> Image.Image:
    """Dark on the left, light on the right, or the other way round."""
    row = np.linspace(0, 255, SIZE).astype(np.uint8)[:: -1 if reverse else 1]
    return Image.fromarray(np.broadcast_to(row[None, :, None], (SIZE, SIZE, 3)).copy())


def test_a_segmentation_model_marks_its_labels(folder: str) -> None:
    first, other = SegmentationMasks(folder, ["light"])([ramp(), ramp(reverse=True)])
    assert first is not None
    assert other is not None
    assert first.shape == (SIZE, SIZE)
    assert first[:, 20:].mean() > 0.9 > 0.1 > first[:, :12].mean()
    assert other[:, :12].mean() > 0.9 > 0.1 > other[:, 20:].mean()
    (both,) = masks_from({"segmentation": {"model": folder, "labels": ["light", "dark"]}})([ramp()])
    assert both is not None
    assert both.mean() > 0.9
    assert masks_from({"segmentation": {"model": folder, "labels": ["never"]}})([ramp()]) == [None]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "expected segmentation: {model: …, labels: […]}"),
        ({"segmentation": {"model": "x"}}, "expected segmentation"),
        ({"segmentation": {"model": "FOLDER", "labels": "light"}}, "labels are to be a list of names"),
        ({"segmentation": {"model": "FOLDER", "labels": ["banana"]}}, "has no label 'banana'; it has dark, light"),
    ],
)
def test_bad_data(spec: dict[str, Any], message: str, folder: str) -> None:
    if spec.get("segmentation", {}).get("model") == "FOLDER":
        spec["segmentation"]["model"] = folder
    with pytest.raises(DSASError, match=re.escape(message)):
        masks_from(spec)


def test_a_model_that_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="cannot load"):
        SegmentationMasks(tmp_path, ["light"])


def left_half(pictures: list[Image.Image]) -> list[Any]:
    """As a user may write it: numbers, and None."""
    mask = np.zeros((SIZE, SIZE))
    mask[:, : SIZE // 2] = 1
    return [mask, None, np.zeros((SIZE, SIZE))][: len(pictures)]


def test_functions_mark_too() -> None:
    masks = CallableMasks(f"{__name__}:left_half")([ramp()] * 3)
    assert masks[0] is not None
    assert (masks[0].dtype, masks[0].mean()) == (bool, 0.5)
    assert masks[1:] == [None, None], "an empty mask is none"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda pictures: [], "0 masks for 1 pictures"),
        (lambda pictures: [np.ones((2, 2))], r"a mask of shape \[2, 2\] for a picture of 32 x 32"),
        (lambda pictures: None, "NoneType for 1 pictures: expected a list"),
        (lambda pictures: [np.full((SIZE, SIZE), 0.5) * np.eye(SIZE) + 0.01], "a mask holds 0.01: expected 0 and one"),
        (lambda pictures: [[[1], [1, 2]]], "expected masks of numbers, found list"),
        ("nowhere:at_all", "masks 'nowhere:at_all'"),
        ("left_half", "expected 'package.module:function'"),
        (f"{__name__}:LABELS", "is no function: list"),
    ],
)
def test_functions_that_do_not(function: Any, message: str) -> None:
    with pytest.raises(DSASError, match=message):
        CallableMasks(function)([ramp()])
