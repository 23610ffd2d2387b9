"""Masks of pictures: read from what users give, brought to the size of pictures and latents, and applied to both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageChops

from dsas_core.errors import DSASError, UnsupportedError
from dsas_core.model.sites import patch_grid

#: the feather of a composed picture: so many steps of its shorter side, and twice as wide in all
FEATHER = 1 / 128
#: by how much a mask's aspect may differ from that of the pictures
ASPECT_TOLERANCE = 0.02


def read_masks(given: Any) -> np.ndarray | list[np.ndarray]:
    """Masks as users give them: one for all pictures, or a list with one for each.

    Args:
        given: an array or tensor [height, width] of bools, floats in [0, 1] or uint8 from 0 to 255, or a PIL picture;
            or a list of these.

    Returns:
        float32 [height, width] in [0, 1], or a list of these.

    Raises:
        DSASError: anything else.

    Example:
        >>> read_masks(np.array([[0, 255]], np.uint8))
        array([[0., 1.]], dtype=float32)
    """
    return [_read_mask(item) for item in given] if isinstance(given, list | tuple) else _read_mask(given)


def _read_mask(given: Any) -> np.ndarray:
    if isinstance(given, Image.Image):
        if given.mode == "RGB" and not ImageChops.difference(given, given.convert("L").convert("RGB")).getbbox():
            given = given.convert("L")
        if given.mode not in ("1", "L", "F"):
            raise DSASError(
                f"a mask in colour or with transparency (mode {given.mode}): expected a grey picture, white where "
                "pictures may change"
            )
    array = np.asarray(given.detach().cpu() if isinstance(given, torch.Tensor) else given)
    kind = array.dtype.kind
    if array.ndim != 2 or not array.size or not (kind in "bf" or array.dtype == np.uint8):
        raise DSASError(
            "preserve: expected False, True, 'latents', or a mask (or one for each picture): a PIL picture or an array "
            f"[height, width] of bools, floats from 0 to 1 or uint8 from 0 to 255; found {_describe(given, array)}"
        )
    if array.dtype == np.uint8:
        if array.max() == 1:
            raise DSASError("a mask of uint8 goes from 0 to 255, and this one from 0 to 1: mask.astype(bool)")
        return (array / np.float32(255)).astype(np.float32)
    if kind == "f" and not (array.min() >= 0 and array.max() <= 1):  # nor NaN
        raise DSASError(f"a mask of floats goes from 0 to 1, and this one from {array.min():g} to {array.max():g}")
    return array.astype(np.float32)


def _describe(given: Any, array: np.ndarray) -> str:
    return f"{given!r:.60}" if array.ndim == 0 else f"{list(array.shape)} of {array.dtype}"


def fit_masks(masks: np.ndarray | Sequence[np.ndarray], size: tuple[int, int], pictures: int) -> list[np.ndarray]:
    """Masks in the size of the pictures, one for each.

    Args:
        masks: as `read_masks` returns them, of the pictures' aspect up to 2 %; or 1 × 1, one value for all pixels.
        size: (width, height) of the pictures.
        pictures: how many there are.

    Returns:
        float32 [height, width] in [0, 1]; what is made smaller keeps the highest values, so that thin parts stay.

    Raises:
        DSASError: another number of masks than of pictures, or a mask of another aspect.

    Example:
        >>> [mask.shape for mask in fit_masks(np.ones((2, 2), np.float32), size=(8, 8), pictures=2)]
        [(8, 8), (8, 8)]
    """
    several = [masks] * pictures if isinstance(masks, np.ndarray) else masks
    if len(several) != pictures:
        raise DSASError(f"preserve: {len(several)} masks for {pictures} pictures: give one for each, or one for all")
    width, height = size
    for mask in several:
        rows, columns = mask.shape
        if (rows, columns) != (1, 1) and abs(columns * height / (rows * width) - 1) > ASPECT_TOLERANCE:
            raise DSASError(
                f"a mask of {columns} × {rows} for pictures of {width} × {height}: expected the same aspect"
            )
    return [_pool(mask, height, width)[0, 0].numpy() for mask in several]


def latents_mask(masks: Sequence[np.ndarray], latents: torch.Tensor) -> torch.Tensor:
    """The masks of pictures on their latents, covering every cell that they touch.

    Args:
        masks: of the pictures, float32 [height, width].
        latents: [pictures, channels, height, width], packed [pictures, patches, channels], or with frames
            [pictures, …, …, height, width].

    Returns:
        In the latents' dtype and on their device, broadcastable to them.

    Raises:
        UnsupportedError: latents of another form.

    Example:
        >>> mask = np.zeros((16, 16), np.float32)
        >>> mask[0, 0] = 1
        >>> latents_mask([mask], torch.zeros(1, 4, 2, 2))
        tensor([[[[1., 0.],
                  [0., 0.]]]])
        >>> latents_mask([mask], torch.zeros(1, 4, 16))[0, :, 0]
        tensor([1., 0., 0., 0.])
    """
    height, width = masks[0].shape
    known = latents.ndim in (3, 4, 5) and len(latents) == len(masks)
    if known:
        packed = latents.ndim == 3
        rows, columns = patch_grid(latents.shape[1], height, width) if packed else latents.shape[-2:]
        known = abs(rows * width - columns * height) <= max(height, width)  # up to one row or column
    if not known:
        raise UnsupportedError(
            f"latents {list(latents.shape)} of {len(masks)} pictures of {width} × {height}: expected [pictures, "
            "channels, height, width] or [pictures, patches, channels] of their aspect; generate without preserve, or, "
            "where the pipeline resizes them at the end, with use_resolution_binning=False"
        )
    pooled = torch.cat([_pool(mask, rows, columns) for mask in masks]).to(latents)
    return pooled.flatten(1)[..., None] if packed else pooled.unflatten(1, (1,) * (latents.ndim - 3))


def _pool(mask: np.ndarray, rows: int, columns: int) -> torch.Tensor:
    """[1, 1, rows, columns]: the highest value of each cell, or, on a finer grid, that of the cell around it."""
    return F.adaptive_max_pool2d(torch.from_numpy(mask)[None, None], (rows, columns))


def feather(mask: np.ndarray) -> np.ndarray:
    """A mask with a linear slope around it: its own values inside, 0 beyond twice the feather.

    Example:
        >>> mask = np.zeros((1, 8), np.float32)
        >>> mask[0, 0] = 1
        >>> feather(mask)[0].round(2)
        array([1.  , 0.67, 0.33, 0.  , 0.  , 0.  , 0.  , 0.  ], dtype=float32)
    """
    reach = feather_width(mask.shape)
    column, row = (2 * reach + 1, 1), (1, 2 * reach + 1)  # one after the other, as a square takes many times as long
    grown = F.max_pool2d(torch.from_numpy(mask)[None, None], column, 1, (reach, 0))
    grown = F.max_pool2d(grown, row, 1, (0, reach))
    padded = F.pad(grown, (reach,) * 4, mode="replicate")
    mean = F.avg_pool2d(F.avg_pool2d(padded, column, 1), row, 1)
    return np.maximum(mean[0, 0].numpy(), mask).clip(0, 1)


def feather_width(shape: tuple[int, ...]) -> int:
    """Half the width of the feather of a picture [height, width], in pixels."""
    return max(1, round(min(shape) * FEATHER))


def compose(steered: Image.Image, unsteered: Image.Image, mask: np.ndarray) -> Image.Image:
    """The steered picture where the mask is 1, the unsteered one outside of it, and a feathered edge in between.

    Args:
        steered: a picture.
        unsteered: another of the same size and mode.
        mask: float32 [height, width] in [0, 1].

    Example:
        >>> white, black, mask = Image.new("L", (4, 1), 255), Image.new("L", (4, 1)), np.zeros((1, 4), np.float32)
        >>> mask[0, 0] = 1
        >>> np.asarray(compose(white, black, mask)).tolist()
        [[255, 170, 85, 0]]
    """
    inside, outside = (torch.from_numpy(np.array(picture, np.float32)) for picture in (steered, unsteered))
    weights = torch.from_numpy(feather(mask))
    mixed = torch.lerp(outside, inside, weights[(..., *(None,) * (inside.ndim - 2))].expand_as(inside))
    return Image.fromarray(mixed.round().to(torch.uint8).numpy())


def count_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Memory that tensors take.

    Example:
        >>> count_bytes([torch.zeros(1, 4, 128, 128, dtype=torch.float16)] * 30)  # SDXL, 1024 pixels, 30 steps
        3932160
    """
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
